"""`ddpbp plan`: the model by hand, what it says is sent against what was, and the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpbp.base import tree
from ddpbp.cli.main import run
from ddpbp.comm.all_reduce.reducer import Payload
from ddpbp.config.read import resolve
from ddpbp.tools.plan.machine import Compute, Machine, Shape
from ddpbp.tools.plan.predict import predict, shapes
from ddpbp.tools.plan.report import advice
from tests.cluster.hosts import Hosts

# A million numbers; forward 40 ms, backward 80 ms, update 4 ms for 8 leaves.
PAYLOAD = Payload(1_000_000, np.dtype(np.float32), 1, (8,), "none", 1_000_000)


def compute(leaves: int) -> Compute:
    """The upper half of the gradient is complete in the middle of the backward pass."""
    whole, half = 0.010 * leaves, 0.005 * leaves
    return Compute(0.005 * leaves, whole, ((half, 500_000), (whole, 0)), 0.0, 0.004)


def machine(bytes_per_second: float, slowdown: float = 1.0) -> Machine:
    alone = {leaves: compute(leaves) for leaves in (8, 4, 3, 2, 1)}
    together = {leaves: one.slower(slowdown) for leaves, one in alone.items()}
    return Machine(Shape(1, 2), alone, together, 0.0, 0.0, 0.0, 0.0, bytes_per_second)


def step(on: Machine, hosts: int, ranks_per_host: int) -> float:
    return predict(on, PAYLOAD, Shape(hosts, ranks_per_host))["step_seconds"]


def test_step_is_the_sum_of_its_parts():
    assert step(machine(0.0), 1, 1) == pytest.approx(0.040 + 0.080 + 0.004)
    assert step(machine(0.0), 1, 2) == pytest.approx(0.020 + 0.040 + 0.004, rel=0.01)
    # Two ranks at once are slower than one: what they share.
    assert step(machine(0.0, 1.5), 1, 2) == pytest.approx(0.064 * 1.5, rel=0.01)
    assert step(machine(0.0, 1.5), 1, 1) == pytest.approx(0.124)


def test_what_is_complete_travels_during_the_backward_pass():
    # Two hosts send 4 MB each, in 4 buckets; half of them are complete at 20 of 40 ms.
    fast, even, slow = (4e6 / seconds for seconds in (0.008, 0.040, 0.400))
    assert step(machine(fast), 2, 1) == pytest.approx(0.064 + 0.004, rel=0.01)
    assert step(machine(even), 2, 1) == pytest.approx(0.064 + 0.020, rel=0.01)
    assert step(machine(slow), 2, 1) == pytest.approx(0.020 + 0.020 + 0.400 + 0.004, rel=0.01)


def test_bytes_are_those_of_a_ring_and_half_of_them_in_16_bits():
    def sent(payload: Payload, hosts: int) -> float:
        return predict(machine(1e9), payload, Shape(hosts, 1))["sent_bytes_per_host"]

    for count in (2, 4, 8):
        # A rank's statistics, signal and "finite" go to all others; 8 leaves are one node a rank.
        tails = (count - 1) * 8 * 3
        ring = sent(PAYLOAD, count) - tails
        assert ring == pytest.approx(2 * (count - 1) / count * 4e6)
        assert sent(PAYLOAD._replace(wire="bf16"), count) - tails == pytest.approx(ring / 2)


def test_shapes_fill_a_host_first_and_end_with_the_leaves():
    assert shapes(16, 4, [2, 4, 8]) == [
        Shape(1, 1),
        Shape(1, 2),
        Shape(1, 4),
        Shape(2, 4),
        Shape(4, 4),
    ]
    assert shapes(16, 3, []) == [Shape(1, 1), Shape(1, 2), Shape(1, 3)]


def test_advice_is_honest_where_more_ranks_are_slower():
    rows = [
        {"hosts": n, "ranks": n, "step_seconds": s, "compute_seconds": s / 4, "speed_up": 1 / s}
        | {"efficiency": 1 / s / n, "sent_bytes_per_host": 1e6}
        for n, s in ((1, 1.0), (2, 0.8), (4, 1.1))
    ]
    said = " ".join(advice(resolve(None), rows, 8, ranks=2, connected=True))
    assert "fastest: 2 rank(s) on 2 host(s), 1.25 times" in said
    assert "more than 2 rank(s) are slower: raise batch_size" in said
    assert 'wire = "bf16"' in said


@pytest.mark.slow
def test_predictions_of_a_plan_are_near_what_bench_measures(python, tmp_path):
    wide = ["model.hidden=[256]", "batch_size=256"]
    for command in (["plan", "--bandwidth=1", "--hosts=2,4"], ["bench"]):
        ended = python("-m", "ddpbp", *command, *wide, "--json", tmp_path / command[0])
        assert ended.returncode == 0, ended.stderr
    found, bench = (json.loads((tmp_path / name).read_text()) for name in ("plan", "bench"))
    rows = found["predictions"]
    assert {row["hosts"] for row in rows} == {1, 2, 4}
    # Units are right; how near it is depends on what else the machine does.
    assert 1 / 3 < rows[0]["step_seconds"] / bench["seconds_per_step"]["all"] < 3
    # 16,640 + 2,570 parameters, 1 Gbit/s: a host sends them once, and most of that is seen.
    two = next(row for row in rows if row["hosts"] == 2)
    here = two["ranks"] // 2
    nodes = max(len(tree.cover(8, rank, 2 * here)) for rank in range(2 * here)) * here
    assert 0 < two["sent_bytes_per_host"] - 19_210 * 4 <= nodes * here * 8 * 3  # its statistics
    assert two["step_seconds"] - two["compute_seconds"] > 0.3e-3


WIDE = ["model.hidden=[512]", "batch_size=512", "data.source=synthetic", "data.examples=1536"]
WIDE += ["data.features=64", "data.classes=10", "data.validation=0"]
WIDE_LENGTH = 512 * 65 + 10 * 513


def on_hosts(hosts: Hosts, ranks: tuple[int, ...], *arguments: str | Path) -> None:
    command = [*hosts.mpiexec(ranks), sys.executable, "-m", "ddpbp"]
    ended = hosts.run("h1", [*command, *map(str, arguments), *WIDE])
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_send_what_is_predicted(hosts, tmp_path, count):
    def sent(epochs: int) -> list[int]:
        before = [hosts.sent_bytes(host) for host in hosts.names[:count]]
        on_hosts(
            hosts, (1,) * count, "train", f"epochs={epochs}", f"output={tmp_path / str(epochs)}"
        )
        after = [hosts.sent_bytes(host) for host in hosts.names[:count]]
        return [b - a for a, b in zip(before, after, strict=True)]

    steps = 3 * (11 - 1)  # what a start costs falls out
    measured = max((b - a) / steps for a, b in zip(sent(1), sent(11), strict=True))
    predicted = predict(machine(1e9), PAYLOAD._replace(length=WIDE_LENGTH), Shape(count, 1))[
        "sent_bytes_per_host"
    ]
    # Headers and acknowledgements come on top.
    assert measured == pytest.approx(predicted * 1.05, rel=0.05)


def test_plan_over_hosts_measures_their_network(hosts, tmp_path):
    file = tmp_path / "plan.json"
    on_hosts(hosts, (1, 1), "plan", "--hosts=2", "--json", file)
    found = json.loads(file.read_text())
    assert found["measured_on"] == {"hosts": 2, "ranks": 2}
    assert [row["hosts"] for row in found["predictions"]] == [1, 2]
    assert found["latency_seconds"] > 0
    assert found["bytes_per_second"] > 1e6


def test_wrong_numbers_of_hosts_are_refused(capsys):
    assert run(["plan", "--hosts", "2,x", "--bandwidth", "1"]) == 2
    assert "--hosts 2,x: expected numbers, as in 1,2,4" in capsys.readouterr().err
