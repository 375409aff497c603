"""A rank that no longer answers or gets on is named, and the job ends: never a silent hang."""

import json
import os

import pytest

STALL_SECONDS = 2
HOST = os.uname().nodename

# A rank does something in its step 5, late enough that the others have heard of that step.
DRIVER = """
import os, signal, sys, time
from ddpbp.cli import run
from ddpbp.trainer import Trainer
step = Trainer.train_step
def disturbed(self, batch):
    if self.step == 5 and self.world.rank == {rank}:
        time.sleep({wait})
        {what}
    return step(self, batch)
Trainer.train_step = disturbed
sys.exit(run(sys.argv[1:]))
"""
FAULTS = {
    "stopped": (1, "os.kill(os.getpid(), signal.SIGSTOP)", 3, [], "has not answered for "),
    "rank 0 stopped": (0, "os.kill(os.getpid(), signal.SIGSTOP)", 3, [], "has not answered for"),
    "stuck": (2, "time.sleep(100)", 3, [], "does not get on, for "),
    "rank 0 stuck": (0, "time.sleep(100)", 2, [], "does not get on, for "),
    "stuck thread": (3, "time.sleep(100)", 2, ["threads=2"], "does not get on, for "),
    "lost message": (
        *(1, "from mpi4py import MPI; MPI.COMM_WORLD.Dup().recv()", 2),
        *([], "does not get on, for "),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_who_stalls_is_named(mpirun, tmp_path, fault):
    rank, what, ranks, arguments, message = FAULTS[fault]
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(rank=rank, wait=1, what=what))
    ended = mpirun(
        *(ranks, driver, "train", f"output={out}", f"stall_seconds={STALL_SECONDS}"), *arguments
    )
    told = json.loads((out / "fault.json").read_text())
    assert ended.stderr.count("ddpbp: rank ") == 1, ended.stderr
    assert f"ddpbp: rank {rank} on {HOST} {message}" in ended.stderr
    assert "last seen at step 5, phase between" in ended.stderr
    if "stuck" in fault:
        assert ended.stderr.count("time.sleep(100)") == 1
    assert (told["rank"], told["host"], told["step"]) == (rank, HOST, 5)
    assert (told["phase"], told["exit_code"]) == ("between", 4)
    assert told["cause"] in ended.stderr
    assert ended.returncode == 4
    assert ended.seconds < 1 + STALL_SECONDS + 5


def test_a_killed_rank_is_told_in_the_run_folder(mpirun, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(rank=2, wait=0, what="os.kill(os.getpid(), signal.SIGKILL)"))
    ended = mpirun(3, driver, "train", f"output={out}")
    assert ended.returncode != 0
    assert ended.seconds < 5
    told = json.loads((out / "fault.json").read_text())
    assert told["rank"] == 2
    assert "has ended without a word" in told["cause"]
