"""Run tests/mpi under mpirun; a failing rank must end such a run."""

import textwrap
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PYTEST = ("-m", "mpi4py", "-m", "pytest", "-x", "--only-mpi", "-p", "no:cacheprovider")


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_all_mpi_tests_pass(mpirun, ranks):
    ended = mpirun(ranks, *PYTEST, TESTS / "mpi", seconds=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"rank 0 of {ranks}" in ended.stdout
    assert ended.stdout.count("test session starts") == 1


FAULTS = {
    "assertion": "assert rank != 1, 'only here'\n    comm.Barrier()",
    "exit": "sys.exit(5) if rank == 1 else comm.Barrier()",
    "import": "pass\nassert rank != 1, 'only here'",
    "all ranks": "assert 0, 'only here'",
    "no partner": "comm.recv(source=0) if rank == 1 else None",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_rank_ends_the_run(mpirun, tmp_path, fault):
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    file = tmp_path / "test_fault.py"
    file.write_text(
        textwrap.dedent("""\
            import sys
            import pytest
            from mpi4py import MPI
            comm = MPI.COMM_WORLD
            rank = comm.rank
            pytestmark = [pytest.mark.mpi, pytest.mark.timeout(3, method="thread")]
            def test_before():
                comm.Barrier()
            def test_fault():
                """)
        + f"    {FAULTS[fault]}\n"
    )
    ended = mpirun(3, *PYTEST, "--rootdir", tmp_path, file, cwd=tmp_path, seconds=30)
    assert ended.returncode != 0
    assert ended.seconds < 15
    if fault == "no partner":
        assert "comm.recv(source=0)" in ended.stderr + ended.stdout  # the stack of rank 1
    else:
        rank = 0 if fault == "all ranks" else 1
        assert f"[rank {rank} of 3] " in ended.stderr
        assert ended.stderr.count("[rank ") == 1
        assert ("SystemExit" if fault == "exit" else "only here") in ended.stderr


@pytest.mark.slow
def test_missing_mpi_fails_and_names_the_installation(python):
    ended = python("-m", "pytest", __file__, "-k", "pass", MPIEXEC="/nowhere/mpirun", CI="true")
    assert ended.returncode == 1
    assert "4 failed" in ended.stdout
    assert "skipped" not in ended.stdout
    assert "pip install 'ddpbp[mpich]'" in ended.stdout
