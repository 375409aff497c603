"""A job is ended if its ranks do not meet, or if none of them moves; nobody else is judged."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import probe, rank
from launch.supervise import STALLED, Job, Output
from launch.watch import MARGIN_SECONDS, PAUSE_SECONDS, SLOW_FACTOR, Watch
from tests.launch.conftest import ENDLESS, LAUNCH

HOSTS = {0: "h1", 1: "h2"}


def judged(watch: Watch, until: float, begin: float = 0.0) -> tuple[str, float]:
    """Judge each second until there is a fault; return it and its time."""
    now = begin
    while now < until:
        if fault := watch.judge(now, HOSTS):
            return fault, now
        now += 1
    return "", now


def test_ranks_that_do_not_meet_are_named():
    watch = Watch(2, 10, 0)
    watch.heard(1, "met 300", 5)
    fault, now = judged(watch, 100)
    assert (fault, now) == (
        "1 of 2 ranks have met within 10 s (--meet-seconds), without rank 0 on h1",
        11,
    )
    assert judged(Watch(2, 0, 0), 100) == ("", 100)


@pytest.mark.parametrize(("slow", "factor"), [(0, 1), (1, SLOW_FACTOR)])
def test_a_job_of_which_no_rank_moves_is_ended(slow, factor):
    watch = Watch(2, 10, 0)
    for number in range(2):
        watch.heard(number, "met 30", 0)
        watch.heard(number, f"beat 7 reduce 5 {slow}", 1)
    watch.heard(1, f"beat 8 forward 6 {slow}", 4)
    watch.heard(0, f"beat 7 reduce 5 {slow}", 5)  # heard, but it has not moved
    fault, now = judged(watch, 1000, 5)
    assert now == pytest.approx(4 + 30 * factor + MARGIN_SECONDS, abs=1.5)
    assert f"no rank has moved for {now - 4:.0f} s (stall_seconds = 30)" in fault
    assert "rank 0 on h1, step 7, reduce" in fault
    assert "rank 1 on h2, step 8, forward" in fault


def test_all_that_are_frozen_before_the_first_beat_are_found():
    watch = Watch(2, 10, 0)
    for number in range(2):
        watch.heard(number, "met 1e-100" if number else "met 30", 0)
    fault, now = judged(watch, 1000)
    assert now == pytest.approx(30 * SLOW_FACTOR + MARGIN_SECONDS, abs=1.5)
    assert "no rank has moved" in fault


@pytest.mark.parametrize(
    "lines",
    [[], ["met 0", "beat 1 read 1 0"], ["met 30", "beat 1 x 1 0", "bye"], ["here", "met 1e+100"]],
)
def test_who_has_no_pulse_or_left_is_not_judged(lines):
    watch = Watch(1, 10, 0)
    for line in lines:
        watch.heard(0, line, 0)
    assert judged(watch, 1000) == ("", 1000)


def test_one_rank_that_moves_is_enough_and_so_is_a_launcher_that_was_stopped():
    watch = Watch(2, 10, 0)
    for number in range(2):
        watch.heard(number, "met 30", 0)
        watch.heard(number, "beat 1 reduce 1 0", 0)
    for now in range(200):
        watch.heard(1, f"beat 1 write {now} 0", now)
        assert watch.judge(now, HOSTS) == ""
    assert watch.judge(now + PAUSE_SECONDS + 1000, HOSTS) == ""


def test_beats_are_passed_on_now_and_then_and_other_lines_never(capfd):
    listen, tell = os.pipe()
    lines = ["met 300", *(f"beat {i} reduce {i} 0" for i in range(50)), "beat 50 save 50 1"]
    os.write(tell, "\n".join([*lines, "@0 end 0", "beat x y z 0", "bye", ""]).encode())
    os.close(tell)
    with os.fdopen(listen, "rb") as pulse:
        rank.pass_on(pulse, "@0 pulse ")
    assert capfd.readouterr().out.splitlines() == [
        "@0 pulse met 300",
        "@0 pulse beat 0 reduce 0 0",
        "@0 pulse beat 50 save 50 1",
        "@0 pulse bye",
    ]


def test_a_rank_gets_the_pipe_and_its_lines_arrive(tmp_path):
    code = "import os; f = int(os.environ['LAUNCH_PULSE_FD']); os.write(f, b'met 7\\nbye\\n')"
    line = [sys.executable, "-IS", rank.__file__, "--", sys.executable, "-c", code]
    ended = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    assert "@0 pulse met 7\n@0 pulse bye\n" in ended.stdout


def test_a_stopped_job_is_killed_whole(capfd):
    # As MPICH does: what starts the ranks is in a session of its own, and all of it is stopped.
    words = [sys.executable, "-IS", rank.__file__, "--job", "some-job", "--", "sleep", "60"]
    script = "echo @0 start h1 1; echo @0 pulse here; "
    script += f"setsid {' '.join(words)} & sleep 2; kill -STOP $! $$"
    job = Job(
        ["sh", "-c", script], {}, 1, Output("all", None, colour=False), name="some-job",
        meet_seconds=3,
    )  # fmt: skip
    ended = job.run()
    assert ended.code == STALLED
    assert ended.stalled.startswith("0 of 1 ranks have met within 3 s")
    deadline = time.monotonic() + 20
    while (left := processes_of("some-job")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def processes_of(job: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"\0--job\0{job}\0".encode() in words:
            found.append(process.name)
    return found


def test_only_processes_of_the_job_are_killed():
    other = subprocess.Popen(["sleep", "60"], env={"LAUNCH_JOB": "another-job"})
    own = subprocess.Popen(["sleep", "60"], env={"LAUNCH_JOB": "this-job"})
    own.send_signal(signal.SIGSTOP)
    probe.kill_job("")
    probe.kill_job("this-job")
    assert own.wait(20) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.slow
def test_ranks_that_are_all_stopped_end_with_4(tmp_path):
    words = ["-n", "2", "train", *ENDLESS, "stall_seconds=1", f"output={tmp_path / 'run'}"]
    job = subprocess.Popen(
        [sys.executable, str(LAUNCH), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout
    while "epoch" not in job.stdout.readline():
        assert job.poll() is None
    time.sleep(3)  # a pulse has to arrive
    for pid in _ranks(job.pid):
        os.kill(pid, signal.SIGSTOP)
    _, err = job.communicate(timeout=100)
    assert job.returncode == STALLED
    assert re.search(r"launch: no rank has moved for \d+ s .*rank [01] on \S+, step \d+, ", err)


def _ranks(launcher: int) -> list[int]:
    """Return the process ids of the ranks below a launcher, which have rank.py as parents."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int(
                (process / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    below, ranks = {launcher}, []
    while new := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= new
    for pid in below:
        words = Path(f"/proc/{parents[pid]}/cmdline").read_bytes().split(b"\0")
        if words[2:] and words[2].endswith(b"rank.py") and parents[pid] in below:
            ranks.append(pid)
    assert len(ranks) == 2
    return ranks
