"""Ranks are started, end together, are restarted: the same bits, and the right exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import ENDLESS, LAUNCH, SETTINGS, hash_of

pytestmark = pytest.mark.slow


def test_ranks_here_train_the_same_bits(launcher, alone, tmp_path):
    logs = tmp_path / "logs"
    output = f"output={tmp_path / 'run'}"
    ended = launcher(
        "-n",
        3,
        "--show",
        "labelled",
        "--log-dir",
        logs,
        "--color",
        "always",
        "train",
        *SETTINGS,
        output,
    )
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path / "run") == alone
    host = os.uname().nodename
    lines = ended.stdout.splitlines()
    assert all(line.startswith(f"\x1b[36m[0 {host}]\x1b[0m ") for line in lines)
    labels = "".join(line.partition(" ")[2].partition(" ")[2] + "\n" for line in lines)
    assert (logs / "rank-0000.log").read_text() == labels
    assert f"theta sha256 {alone}" in labels


def test_dry_run_prints_a_command_that_works(launcher, alone, tmp_path):
    shown = launcher("-n", 2, "--dry-run", "train", *SETTINGS, f"output={tmp_path / 'run'}")
    assert shown.returncode == 0, shown.stderr
    assert not (tmp_path / "run").exists()
    line = f"env {shown.stdout}"
    subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=60)
    assert hash_of(tmp_path / "run") == alone


def test_a_dry_run_contacts_no_host(launcher):
    words = ("--hosts", "no.such.host.invalid:2,h2:1", "--dry-run", "train")
    shown = launcher(*words)
    assert shown.returncode == 0, shown.stderr
    assert " --hosts no.such.host.invalid:2,h2:1 " in shown.stdout


def test_ddpbp_launch_is_the_launcher(python, alone, tmp_path):
    words = ("-n", 2, "--simulate", "train", *SETTINGS, f"output={tmp_path / 'run'}")
    ended = python("-m", "ddpbp", "launch", *words)
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path / "run") == alone
    assert "--max-restarts" in python("-m", "ddpbp", "launch", "--help").stdout


@pytest.mark.parametrize(
    ("fault", "code", "cause"),
    [
        ("os.kill(os.getpid(), 9)", 137, "killed by signal 9 (SIGKILL); exit code 137"),
        ("os._exit(5)", 5, "exit code 5"),
        ("raise ValueError('only here')", 1, "ValueError: only here; exit code 1"),
    ],
)
def test_the_rank_that_failed_is_named_last(launcher, spoiled, tmp_path, fault, code, cause):
    spoiled(fault)
    ended = launcher("-n", 3, "train", *ENDLESS, f"output={tmp_path / 'run'}")
    assert ended.returncode == code
    assert ended.seconds < 20
    *_, heading, rest = ended.stderr.rpartition("launch: rank 1 on ")
    first, *lines = (heading + rest).splitlines()
    assert " step " in first
    assert first.endswith(cause)
    if fault.startswith("raise"):
        assert lines[1].startswith("Traceback")
        assert "ValueError: only here" in lines[-3:]
    else:
        assert lines == []
    assert ended.stderr.count("Traceback") == fault.startswith("raise")


def test_a_restart_ends_with_the_bits_of_the_run_that_never_failed(
    launcher, spoiled, alone, tmp_path
):
    once = tmp_path / "once"
    spoiled(f"os.path.exists('{once}') or open('{once}', 'w') and os.kill(os.getpid(), 9)")
    words = ["-n", 2, "--max-restarts", 2, "train", *SETTINGS, "checkpoint.every_steps=10"]
    ended = launcher(*words, f"output={tmp_path / 'run'}", "--overwrite")
    assert ended.returncode == 0, ended.stderr
    assert "restart 1 of 2" in ended.stderr
    assert "restart 2" not in ended.stderr
    assert "step 30" in ended.stdout.partition("continuing from ")[2].partition("\n")[0]
    assert hash_of(tmp_path / "run") == alone


@pytest.mark.slow
def test_a_signal_saves_and_ends_with_75(tmp_path):
    output = f"output={tmp_path / 'run'}"
    line = [sys.executable, str(LAUNCH), "-n", "2", "train", *ENDLESS, output]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout
        while "epoch" not in job.stdout.readline():
            assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=30)
    assert job.returncode == 75
    assert "--resume auto" in err.splitlines()[-1]
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_second_signal_ends_at_once(spoiled, tmp_path):
    asleep = tmp_path / "asleep"
    spoiled(f"open('{asleep}', 'w'), time.sleep(60)")
    line = [sys.executable, str(LAUNCH), "-n", "2", "train", *ENDLESS, f"output={tmp_path / 'run'}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        while not asleep.exists():
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGINT)
        time.sleep(2.2)
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=20)
    assert job.returncode == 130
    assert err.splitlines()[-1] == "launch: ended by SIGINT for the second time"
