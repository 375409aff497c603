"""The launcher on simulated hosts, and under a real Slurm on them."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.launch.conftest import LAUNCH, SETTINGS, hash_of


def test_uneven_hosts_train_the_same_bits(hosts, alone, tmp_path):
    words = ["--hosts", "h2:2,h3:1", "train", *SETTINGS, f"output={tmp_path}"]
    before = hosts.sent_bytes("h3")
    ended = hosts.run("h1", [sys.executable, LAUNCH, *words])
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path) == alone
    assert hosts.sent_bytes("h3") - before > 46 * 4_810 * 4 / 2


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.77.0.99:1", "host 10.77.0.99: "), ("h2:1", "host h2: ")],
)
def test_a_host_that_refuses_is_named(hosts, tmp_path, host, expected):
    words = ["--hosts", f"h1:1,{host}", "train", f"output={tmp_path}"]
    ssh = "ssh -o ConnectTimeout=1 -p 2" if host == "h2:1" else "ssh -o ConnectTimeout=1"
    ended = hosts.run("h1", [sys.executable, LAUNCH, "--ssh", ssh, *words])
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_batch_job_uses_its_allocation(slurm, alone, tmp_path):
    words = ["--slurm", "--nodes=2", "--ppn=2", "-n3", "--time=0:05:00", "--directive=--wait"]
    train = ["train", *SETTINGS, f"output={tmp_path / 'run'}"]
    done = slurm.run([sys.executable, LAUNCH, *words, "--no-requeue", *train], cwd=tmp_path)
    log = next(tmp_path.glob("ddpbp-*.log")).read_text()
    assert done.returncode == 0, done.stderr + log
    assert "3 ranks on h1:2,h2:1" in log
    assert hash_of(tmp_path / "run") == alone


@pytest.mark.slow
@pytest.mark.hosts
def test_the_remaining_hosts_continue(python, tmp_path):
    from tests.cluster.hosts import Hosts, missing

    if reason := missing():
        pytest.skip(f"no simulated hosts: {reason}")
    quick = "ssh -o ConnectTimeout=1 -o ServerAliveInterval=1"
    ssh = ["--ssh", quick, "--max-restarts", "1", "--elastic"]
    settings = ["epochs=60", "stall_seconds=2", "checkpoint.every_steps=50"]
    train = ["train", *settings, f"output={tmp_path / 'run'}"]
    assert python("-m", "ddpbp", "train", *settings, f"output={tmp_path / 'alone'}").returncode == 0
    with Hosts(2) as own, ThreadPoolExecutor() as pool:
        words = [sys.executable, str(LAUNCH), *ssh, "--hosts", "h1:1,h2:2", *train]
        job = pool.submit(own.run, "h1", words)
        own.shape("5mbit")
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        own.kill("h2")
        ended = job.result()
    assert ended.returncode == 0, ended.stderr
    assert "host h2 is gone" in ended.stderr
    assert "1 rank on h1:1 " in ended.stderr
    assert hash_of(tmp_path / "run") == hash_of(tmp_path / "alone")
