"""A rank that stops responding or making progress is named, and the job ends."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpbp.comm.heartbeat import Clock, stuck
from ddpbp.comm.peers import Beat, Peer
from tests.conftest import environment

STALL_SECONDS = 3  # a busy machine lets no rank wait for its core as long
HOST = os.uname().nodename

# A rank does something in its step 5, after it has reported that step to the others.
DRIVER = """
import os, signal, sys, time
from ddpbp.cli.main import run
from ddpbp.comm.heartbeat import Heartbeat
from ddpbp.engine.trainer import Trainer
step, report = Trainer.train_step, Heartbeat._report
reports = 0
def counted(self):
    global reports
    report(self)
    reports += 1
def disturbed(self, batch):
    if self.step == 5 and self.world.rank == {rank}:
        before = reports
        while {told} and reports < before + 2:
            time.sleep(0.01)
        {what}
    return step(self, batch)
Trainer.train_step, Heartbeat._report = disturbed, counted
sys.exit(run(sys.argv[1:]))
"""
FAULTS = {
    "stopped": (1, "os.kill(os.getpid(), signal.SIGSTOP)", 3, [], "has not answered for "),
    "rank 0 stopped": (0, "os.kill(os.getpid(), signal.SIGSTOP)", 3, [], "has not answered for"),
    "stuck": (2, "time.sleep(100)", 3, [], "has made no progress for "),
    "rank 0 stuck": (0, "time.sleep(100)", 2, [], "has made no progress for "),
    "stuck thread": (3, "time.sleep(100)", 2, ["threads=2"], "has made no progress for "),
    "lost message": (
        *(1, "from mpi4py import MPI; MPI.COMM_WORLD.Dup().recv()", 2),
        *([], "has made no progress for "),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rank_at_fault_is_named(mpirun, tmp_path, fault):
    rank, what, ranks, arguments, message = FAULTS[fault]
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(rank=rank, told=True, what=what))
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


def test_a_killed_rank_is_named_in_the_run_folder(mpirun, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    what = "os.kill(os.getpid(), signal.SIGKILL)"
    driver.write_text(DRIVER.format(rank=2, told=False, what=what))
    # MPICH kills the others within milliseconds, so rank 0 is often too late.
    for _ in range(10):
        ended = mpirun(3, driver, "train", f"output={out}", "--overwrite")
        assert ended.returncode != 0
        if (out / "fault.json").exists() and (out / "fault.json").stat().st_size:
            break
    told = json.loads((out / "fault.json").read_text())
    assert told["rank"] == 2
    assert "exited without saying why" in told["cause"]


# Rank 0, which judges, is stopped again and again.
PAUSES = """
import os, subprocess, sys
from ddpbp.comm.heartbeat import Heartbeat
enter = Heartbeat.__enter__
def paused(self):
    if self._world.rank == 0:
        pid = os.getpid()
        beat = f"kill -STOP {pid} && sleep 2.4; kill -CONT {pid} && sleep 0.5"
        subprocess.Popen(["sh", "-c", f"while :; do {beat} || exit; done"], stderr=-3)
    return enter(self)
Heartbeat.__enter__ = paused
"""


def test_pauses_of_this_process_do_not_hide_a_stall(mpirun, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(PAUSES + DRIVER.format(rank=1, told=True, what="time.sleep(100)"))
    ended = mpirun(2, driver, "train", f"output={out}", "stall_seconds=2")
    assert ended.returncode == 4, ended.stderr
    assert json.loads((out / "fault.json").read_text())["exit_code"] == 4


def test_the_clock_passes_pauses_over(monkeypatch):
    times = iter([100.0, 100.5, 103.5, 104.0])
    monkeypatch.setattr("ddpbp.comm.heartbeat.time.monotonic", lambda: next(times))
    clock = Clock(1.0)
    assert [clock.advance() for _ in range(3)] == [0.5, 1.5, 2.0]


BLIND = """
import sys
from ddpbp.cli.main import run
from ddpbp.comm.heartbeat import Heartbeat
def broken(self, now):
    assert self._world.rank != 1, "a bug"
Heartbeat._judge = broken
sys.exit(run(sys.argv[1:]))
"""


def test_a_heartbeat_that_fails_ends_the_run(mpirun, tmp_path):
    (tmp_path / "driver.py").write_text(BLIND)
    out = tmp_path / "run"
    ended = mpirun(2, tmp_path / "driver.py", "train", "epochs=100000", f"output={out}")
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("ddpbp: ") == 1
    assert f"ddpbp: rank 1 on {HOST} cannot watch the other ranks any more" in ended.stderr
    assert json.loads((out / "fault.json").read_text())["rank"] == 1


NO_ALARM = """
import os, subprocess, sys, time
from ddpbp.cli.main import run
from ddpbp.comm import handshake
from ddpbp.engine.trainer import Trainer
from ddpbp.store.checkpoint_writer import Writer
write, step = Writer._write, Trainer.train_step
def slow(self, *arguments):
    time.sleep(3)
    return write(self, *arguments)
def frozen(self, batch):
    if self.step == 5:
        ranks = " ".join(map(str, self.world.all_gather_object(os.getpid())))
        if self.world.rank == 0:
            subprocess.Popen(["sh", "-c", f"kill -STOP {ranks}; sleep 3; kill -CONT {ranks}"])
    return step(self, batch)
def refused(*arguments):
    raise ConnectionRefusedError
if sys.argv[1] == "slow":
    Writer._write = slow
elif sys.argv[1] == "frozen":
    Trainer.train_step = frozen
else:
    handshake._introduce, handshake.CONNECT_SECONDS = refused, 0.2
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("what", ["slow", "frozen"])
def test_a_slow_save_or_a_pause_of_all_is_no_stall(mpirun, tmp_path, what):
    (tmp_path / "driver.py").write_text(NO_ALARM)
    command = ["train", "epochs=2", "data.test=0.1", f"output={tmp_path / 'run'}"]
    ended = mpirun(3, tmp_path / "driver.py", what, *command, "stall_seconds=1.5")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.seconds > 3
    assert not (tmp_path / "run/fault.json").exists()


def test_a_rank_that_cannot_be_watched_is_reported(mpirun, tmp_path):
    (tmp_path / "driver.py").write_text(NO_ALARM)
    command = ["train", "epochs=1", f"output={tmp_path / 'run'}"]
    ended = mpirun(3, tmp_path / "driver.py", "refused", *command)
    assert (ended.returncode, ended.stderr) == (0, "")
    note = f"note: rank 1 on {HOST}, rank 2 on {HOST} cannot reach rank 0 by TCP"
    assert ended.stdout.count(note) == 1


def peer(rank: int, step: int, phase: str, *, waits: int = 0, moved_seconds: float = 0.0) -> Peer:
    peer = Peer(rank, "h", None)
    peer.beats, peer.moved_seconds = [Beat(step, phase, 100, waits)], [moved_seconds]
    return peer


def named(*peers: Peer, now: float = 10.0, all_watched: bool = True) -> list[str]:
    verdict = stuck([*peers], now, stall_seconds=3.0, all_watched=all_watched)
    return [fault["cause"] for fault in verdict.faults] if verdict else []


def test_a_rank_that_waits_is_not_at_fault():
    assert named(peer(0, 5, "reduce"), peer(1, 5, "data", waits=1), peer(2, 5, "data")) == [
        "rank 2 on h has made no progress for 10 s; last seen at step 5, phase data"
    ]
    # A rank that waits may do so for one that has not reached the limit yet.
    assert named(peer(0, 5, "reduce"), peer(1, 5, "data", moved_seconds=8.0)) == []


def test_a_slow_phase_has_ten_times_the_limit():
    assert named(peer(0, 5, "reduce"), peer(1, 5, "checkpoint")) == []
    (cause,) = named(peer(0, 5, "reduce"), peer(1, 5, "checkpoint"), now=31.0)
    assert cause.startswith("rank 1 on h has made no progress for 31 s")


def test_if_all_wait_those_furthest_behind_are_named():
    waiting = [peer(0, 6, "reduce"), peer(1, 5, "reduce"), peer(2, 6, "data", waits=1)]
    (cause,) = named(*waiting)
    assert cause.startswith("rank 1 on h has waited for 10 s, as all others do")
    assert named(*waiting, all_watched=False) == []


# --- the launcher --------------------------------------------------------------------------------


def pulse_of(lines: str, *arguments: str, read: bool = True) -> list[str]:
    """Run a training with a pipe to the launcher, and return what was written to it."""
    listen, tell = os.pipe()
    command = [sys.executable, "-c", lines, "train", *arguments]
    env = environment(LAUNCH_PULSE_FD=str(tell))
    if not read:
        os.set_blocking(tell, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(tell, b"x" * 4096)
    subprocess.run(command, env=env, pass_fds=[tell], check=True, capture_output=True, timeout=60)
    os.close(tell)
    with os.fdopen(listen) as pipe:
        return pipe.read().splitlines()


TRAIN = "import sys; from ddpbp.cli.main import run; sys.exit(run(sys.argv[1:]))"
SLOWLY = "from ddpbp.run.loop import Run; import time; Run._finish = lambda *_: time.sleep(2.5)\n"


def test_the_launcher_hears_that_a_rank_moves(tmp_path):
    met, *beats, bye = pulse_of(SLOWLY + TRAIN, f"output={tmp_path / 'run'}")
    assert (met, bye) == ("met 300", "bye")
    moves = [re.fullmatch(r"beat (\d+) (\w+) (\d+) ([01])", beat) for beat in beats]
    assert len(moves) >= 2
    steps, _, progress, _ = zip(*(move.groups() for move in moves if move), strict=True)
    assert int(steps[-1]) > 0
    assert int(progress[-1]) >= int(progress[0])


def test_without_a_heartbeat_the_launcher_hears_no_limit(tmp_path):
    lines = pulse_of(TRAIN, f"output={tmp_path / 'run'}", "stall_seconds=0", "epochs=1")
    assert lines == ["met 0", "bye"]


def test_a_launcher_that_does_not_read_is_not_waited_for(tmp_path):
    (full,) = pulse_of(TRAIN, f"output={tmp_path / 'run'}", "epochs=1", read=False)
    assert set(full) == {"x"}


def test_children_do_not_write_to_the_launcher():
    child = "import os, sys; print(os.environ.get('LAUNCH_PULSE_FD'), end='')"
    lines = (
        "import os, subprocess, sys; from ddpbp.comm.launcher_pulse import launcher_pulse\n"
        "number = int(os.environ['LAUNCH_PULSE_FD']); launcher_pulse().write('met', 0)\n"
        f"said = subprocess.check_output([sys.executable, '-c', {child!r}], close_fds=False)\n"
        "launcher_pulse().write(said.decode(), os.get_inheritable(number))"
    )
    assert pulse_of(lines) == ["met 0", "None False"]


@pytest.fixture
def own_hosts():
    from tests.cluster.hosts import Hosts, missing

    if reason := missing():
        pytest.skip(f"no simulated hosts: {reason}")
    with Hosts(3) as up:
        yield up


def test_a_host_that_is_cut_off_is_named(own_hosts, tmp_path):
    """Both sides notice: rank 0 names the lost host, and the rank there ends as well."""
    train = [sys.executable, "-m", "ddpbp", "train", f"output={tmp_path / 'run'}", "epochs=100000"]
    train += [f"stall_seconds={STALL_SECONDS}", "log_every_steps=1"]
    line = own_hosts.command("h1", [*own_hosts.mpiexec((1, 1, 1)), *train])
    with (tmp_path / "log").open("w+") as log:
        job = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
        metrics = tmp_path / "run/metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size > 1000):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)  # until rank 0 knows that all are training: loading may take longer
        own_hosts.cut("h3")
        try:
            code = job.wait(60)
        finally:
            job.kill()
            job.wait()
        log.seek(0)
        told = log.read()
    assert "ddpbp: rank 2 on h3 has not answered for " in told
    fault = json.loads((tmp_path / "run/fault.json").read_text())
    assert (fault["rank"], fault["host"], fault["exit_code"]) == (2, "h3", 4)
    assert code == 4
    # No rank is left waiting on the other side of the cut.
    deadline = time.monotonic() + 30
    while ranks := [p for p in Path("/proc").glob("[0-9]*") if str(tmp_path) in command_of(p)]:
        assert time.monotonic() < deadline, ranks
        time.sleep(0.1)


def command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
