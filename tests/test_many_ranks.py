"""Many ranks: the same bits, and what one rank does and holds does not grow with their number."""

import json
import pickle
import resource

import numpy as np
import pytest

from ddpbp.base import tree
from ddpbp.cli.main import run
from ddpbp.comm import handshake, simulated
from ddpbp.comm.all_reduce.choose import make_reducer
from ddpbp.comm.all_reduce.reducer import Payload
from ddpbp.comm.simulated import SimulatedWorld, simulate
from ddpbp.comm.world import World
from ddpbp.tools.plan.machine import Compute, Machine, Shape
from ddpbp.tools.plan.predict import predict

SETTINGS = ["batch_size=64", "micro_batch_size=1", "data.source=synthetic", "data.examples=80"]
SETTINGS += ["data.features=8", "data.classes=3", "data.validation=0.2", "epochs=1"]
SMALL, LARGE = 10_000, 100_000  # elements of a gradient


def test_64_simulated_ranks_give_the_bits_of_one(tmp_path):
    for ranks in ("1", "64"):
        arguments = ["train", *SETTINGS, f"output={tmp_path / ranks}", "--simulate-ranks", ranks]
        assert run(arguments) == 0
    one, many = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("1", "64"))
    assert many["theta_sha256"] == one["theta_sha256"]


def test_what_all_ranks_receive_grows_in_proportion_to_their_number(tmp_path, monkeypatch):
    received = []

    class Counting:
        dumps = pickle.dumps

        @staticmethod
        def loads(message):
            received.append(len(message))
            return pickle.loads(message)

    monkeypatch.setattr(simulated, "pickle", Counting)
    totals = []
    for ranks in (16, 64):
        received.clear()
        arguments = ["train", *SETTINGS, f"output={tmp_path / str(ranks)}"]
        assert run([*arguments, "--simulate-ranks", str(ranks)]) == 0
        totals.append((len(received), sum(received)))
    (messages, bytes_), (more_messages, more_bytes) = totals
    assert more_messages < 4.5 * messages  # if each heard all others, 16 times
    assert more_bytes < 4.5 * bytes_


@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_what_a_rank_holds_does_not_grow_with_the_ranks(length):
    def held(ranks: int) -> int:
        world = World()
        world.world_size = ranks
        reducer = make_reducer(world, Payload(length, np.dtype(np.float32), 1, (ranks,)))
        return sum(x.nbytes for x in vars(reducer).values() if isinstance(x, np.ndarray))

    assert held(4_096) < 1.5 * held(1_024)


@pytest.mark.parametrize("ranks", [16, 64, 256])
@pytest.mark.parametrize("length", [SMALL, LARGE])
def test_a_plan_is_of_what_simulated_ranks_own_and_send(ranks, length, monkeypatch):
    owned, sent = [0] * ranks, [0.0] * ranks
    all_gather, all_to_all = SimulatedWorld.all_gather, SimulatedWorld.all_to_all

    def counted_gather(world, send, receive):
        sent[world.rank] += send.nbytes * (ranks - 1)
        all_gather(world, send, receive)

    def counted_to_all(world, send, receive):
        sent[world.rank] += send.nbytes * (ranks - 1) / ranks
        all_to_all(world, send, receive)

    monkeypatch.setattr(SimulatedWorld, "all_gather", counted_gather)
    monkeypatch.setattr(SimulatedWorld, "all_to_all", counted_to_all)
    payload = Payload(length, np.dtype(np.float32), 1, (512,))

    def main(world: World) -> int:
        reducer = make_reducer(world, payload)
        reducer.begin_step(512)
        reducer.finish()
        start, stop = tree.deal(512, world.rank, ranks)
        owned[world.rank] = stop - start
        return 0

    assert simulate(ranks, main) == 0
    leaves = 512 // ranks
    assert set(owned) == {leaves}
    step = {leaves: Compute(1e-3, 1e-3, ((1e-3, 0),), 0.0, 1e-3)}
    machine = Machine(Shape(1, 1), step, step, 0.0, 0.0, 0.0, 0.0, 1e9)
    predicted = predict(machine, payload, Shape(ranks, 1))["sent_bytes_per_host"]
    assert max(sent) == pytest.approx(predicted, rel=0.05)


def test_ranks_beyond_the_files_that_may_be_open_are_named_at_once(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400, 400))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert handshake._allow_files(100) == 100
    callers = handshake._allow_files(1_000)
    assert 1 < callers < 400 - handshake.GUESTS
    hosts = dict.fromkeys(range(1_000), "n1")
    (note,) = handshake._notes(list(range(callers, 1_000)), hosts, callers)
    assert (
        f"a stall of ranks {callers} to 999 goes unnoticed: rank 0 may open only 400 files" in note
    )
