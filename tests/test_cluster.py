"""Several hosts, each with a network of its own: the same bits, and gradients were sent."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpbp.cli.main import run

SETTINGS = ["epochs=2", "data.validation=0"]
STEPS, GRADIENT_BYTES = 2 * 23, 4_810 * 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """The hash of the weights that one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(["train", *SETTINGS, f"output={folder}"]) == 0
    return hash_of(folder)


def hash_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["theta_sha256"])


@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 1)])
def test_hosts_train_the_same_bits_as_one_process(hosts, alone, tmp_path, ranks):
    train = [sys.executable, "-m", "ddpbp", "train", *SETTINGS, f"output={tmp_path}"]
    before = [hosts.sent_bytes(host) for host in hosts.names]
    ended = hosts.run("h1", [*hosts.mpiexec(ranks), *train])
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path) == alone
    for host, was in list(zip(hosts.names, before, strict=True))[: len(ranks)]:
        assert hosts.sent_bytes(host) - was > STEPS * GRADIENT_BYTES / 2, host


def test_slurm_trains_the_same_bits_as_one_process(slurm, alone, tmp_path):
    train = [sys.executable, "-m", "ddpbp", "train", *SETTINGS, f"output={tmp_path}"]
    ended = slurm.run(["srun", "--mpi=pmi2", "-K1", "-N2", "-n3", *train])
    assert ended.returncode == 0, ended.stderr
    assert hash_of(tmp_path) == alone


HOLD = """
import sys, time
from tests.cluster.hosts import Hosts
with Hosts(2) as hosts:
    print(hosts.folder, hosts.run("h1", ["hostname"]).stdout, flush=True)
    time.sleep(60)
"""


def test_hosts_end_with_the_process_that_started_them(hosts):
    own = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert own.stdout is not None
    folder = own.stdout.readline().split()[0]
    own.kill()
    own.communicate()
    deadline = time.monotonic() + 5
    while left := [p for p in Path("/proc").glob("[0-9]*") if folder in command_of(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    shutil.rmtree(folder)
    # Hosts with the same names were not touched.
    assert hosts.run("h1", ["ssh", "h2", "hostname"]).stdout.split() == ["h2"]


def command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
