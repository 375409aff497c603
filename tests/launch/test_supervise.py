"""A job: nothing runs before `run`; whose line is shown, whose exit code counts."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.supervise import Ended, Job, Output

STARTED = "echo @0 start h1 1; echo @1 start h2 2; "


def run(script: str, folder: Path | None = None, whose: str = "all") -> Ended:
    return Job(["sh", "-c", script], {}, 2, Output(whose, folder, colour=False)).run()


def test_a_job_starts_nothing_before_it_runs(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    job = Job(["touch", str(tmp_path / "ran")], {}, 1, Output("all", None, colour=False))
    assert not (tmp_path / "ran").exists()
    job.run()
    assert (tmp_path / "ran").exists()
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("echo @0 end 0; echo @1 end 0", 0),
        ("echo @1 end 3; echo @0 end 143; exit 15", 3),  # the first failure counts
        ("echo @0 end 0; exit 9", 137),  # MPICH: rank 1 was killed by signal 9
        ("echo @0 end 0; exit 137", 137),  # Open MPI: the same
        ("echo @0 end 0; exit 255", 1),
        ("echo @0 end 0", 1),  # Open MPI, when the host of rank 1 was lost
        ("kill -9 $$", 137),
    ],
)
def test_one_exit_code_whatever_mpiexec_returns(end, code):
    assert run(STARTED + end).code == code


def test_lines_are_shown_labelled_and_logged(tmp_path, capsys):
    script = STARTED + "echo @0 out one; echo @1 err two; echo of mpiexec; echo @1 end 0"
    ended = run(script, tmp_path, "labelled")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[0 h1] one\n", "[1 h2] two\n")
    assert (tmp_path / "rank-0001.log").read_text() == "two\n"
    assert ended.launcher_lines == ["of mpiexec"]
    assert ended.hosts == {0: "h1", 1: "h2"}


def test_a_traceback_is_held_back_and_its_rank_failed_first(capsys):
    traceback = "echo @1 err Traceback \\(most recent call last\\):; echo @1 err ValueError; "
    ended = run(STARTED + traceback + "echo @0 end 143; echo @1 end 1; exit 1")
    assert capsys.readouterr().err == ""
    assert ended.first_failed == 1
    assert ended.held == {1: ["Traceback (most recent call last):", "ValueError"]}


def test_output_that_is_lost_ends_no_job(tmp_path):
    code = (
        "from launch.supervise import Job, Output; "
        "lines = 'echo @0 start h 1; echo @0 out one; echo @0 out two; echo @0 end 0'; "
        "job = Job(['sh', '-c', lines], {}, 1, Output('all', None, colour=False)); "
        "raise SystemExit(job.run().code)"
    )
    words = [sys.executable, "-c", code]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stderr.startswith("launch: standard output cannot be written (No space left")
    assert ended.stderr.count("\n") == 1
