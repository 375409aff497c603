"""`ddpbp doctor` names what is wrong, and how to mend it; it never hangs."""

import re
import sys

import pytest

from launch import mpi

CHECKS = [
    "launcher",
    "versions",
    "environment",
    "ranks",
    "data",
    "canary",
    "memory",
    "shared memory",
    "reduction",
    "cores",
    "clock",
    "run folder",
    "links",
]
DOCTOR = ("-m", "ddpbp", "doctor")


def table(out: str) -> dict[str, tuple[str, str]]:
    """Read the table: check to (status, the rest)."""
    rows = re.findall(r"^(pass|warn|fail)  (.{13}) (.*(?:\n  .*)?)", out, re.MULTILINE)
    return {what.strip(): (status, rest) for status, what, rest in rows}


def failed(out: str) -> set[str]:
    return {what for what, (status, _) in table(out).items() if status == "fail"}


def test_one_process_is_well(python, tmp_path):
    ended = python(*DOCTOR, f"output={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(table(ended.stdout)) == CHECKS
    assert failed(ended.stdout) == set()
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_of_more_ranks_is_named(python, tmp_path):
    fitting = mpi.find([sys.executable])
    ended = python(*DOCTOR, f"output={tmp_path}")
    status, text = table(ended.stdout)["launcher"]
    assert status == "pass"
    assert f"{fitting.mpiexec} starts more, through {fitting}" in text


def test_without_mpi_one_process_is_well_and_the_fix_is_printed(python, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise RuntimeError('cannot load MPI library')")
    ended = python(*DOCTOR, f"output={tmp_path / 'run'}", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    status, text = table(ended.stdout)["launcher"]
    assert status == "warn"
    assert "finds no MPI library" in text
    assert "-m pip install mpi4py mpich" in text


def test_ranks_are_well_and_speak_once(mpirun, tmp_path):
    ended = mpirun(3, *DOCTOR, f"output={tmp_path}", "model.hidden=[300]")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = table(ended.stdout)
    assert list(found) == CHECKS
    assert "22,510 numbers × 8 leaves summed to the last bit on 3 ranks" in found["reduction"][1]


def test_hosts_are_well(hosts, tmp_path):
    command = [*hosts.mpiexec((2, 1)), sys.executable, *DOCTOR]
    ended = hosts.run("h1", [*command, f"output={tmp_path}"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = table(ended.stdout)
    assert "2 on h1, 1 on h2" in found["ranks"][1]
    assert "renamed in from 2 hosts" in found["run folder"][1]
    assert "h1 to h2" in found["links"][1]


def test_faults_are_told_with_their_fix(mpirun):
    ended = mpirun(3, *DOCTOR, "output=/proc/run", "batch_size=2", OMP_NUM_THREADS="4")
    assert ended.returncode == 1
    assert failed(ended.stdout) == {"ranks", "run folder"}
    found = table(ended.stdout)
    assert "start at most 2" in found["ranks"][1]
    assert "choose another with output=" in found["run folder"][1]
    assert found["environment"][0] == "warn"
    assert "OMP_NUM_THREADS=4" in found["environment"][1]


def test_srun_that_knows_another_mpi_is_told(slurm):
    ended = slurm.run(["srun", "--mpi=none", "-K1", "-N2", "-n3", sys.executable, *DOCTOR])
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert failed(ended.stdout) == {"launcher"}
    assert "--mpi=pmi2 for MPICH" in table(ended.stdout)["launcher"][1]


FAULTS = {
    "canary": """
from ddpbp.base import blas
if launched()[0] == 1:
    blas.HASWELL.clear()  # so that it does not mend this
    os.environ["OPENBLAS_CORETYPE"] = "Prescott"
""",
    "reduction": """
from ddpbp.comm.all_reduce.shared import SharedSmall
finish = SharedSmall.finish
def off_by_a_bit(self, signal=0):
    reduced = finish(self, signal)
    reduced.grad[-1:].view("u4")[:] ^= self.world.rank
    return reduced
SharedSmall.finish = off_by_a_bit
""",
    "launcher": """
if launched()[0] == 1:
    time.sleep(100)
""",
    # Only this check has a limit that a busy machine may reach.
    "links": """
from ddpbp.tools import bench
from ddpbp.tools.doctor import limits
limit = limits.limit
limits.limit = lambda seconds, what, **more: limit(2 if what == "links" else seconds, what, **more)
links = bench.links
bench.links = lambda world: time.sleep(100 * world.rank) or links(world)
""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_one_rank_is_found_and_nothing_hangs(mpirun, tmp_path, fault):
    script = tmp_path / "doctor.py"
    script.write_text(
        "import os, sys, time\nfrom ddpbp.comm.join import launched\n"
        f"{FAULTS[fault]}\nfrom ddpbp.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    hangs = fault in ("launcher", "links")
    limit = "2" if fault == "launcher" else "80"
    ended = mpirun(2, script, "doctor", "--timeout", limit, f"output={tmp_path}", seconds=90)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert failed(ended.stdout) == {fault}
    found = table(ended.stdout)[fault][1]
    assert ("no end after 2 s" if hangs else "rank 1") in found
    assert ended.stderr.count("Traceback") == 0
