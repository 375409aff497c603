"""The mpiexec is that of the library which mpi4py loads."""

import json
import os
import sys
from pathlib import Path

import pytest

from launch import mpi
from launch.errors import LaunchError


def fake_mpiexec(folder: Path, says: str) -> None:
    folder.mkdir()
    (folder / "mpiexec").write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "mpiexec").chmod(0o755)


def test_the_mpiexec_is_the_librarys_not_the_first_on_path(tmp_path, monkeypatch):
    fitting = mpi.find([sys.executable])
    other = "mpirun (Open MPI) 4.1.4" if fitting.family == "mpich" else "HYDRA build details: 4.2"
    fake_mpiexec(tmp_path / "bin", other)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert mpi.find([sys.executable]) == fitting
    # A Python of elsewhere that loads that library has no other mpiexec than the foreign one.
    alien = tmp_path / "python"
    library = f"{mpi.FAMILIES[fitting.family].name}, but installed without a launcher"
    alien.write_text(f"#!/bin/sh\necho '{json.dumps([library, str(tmp_path / 'lib' / 'x.so')])}'\n")
    alien.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(alien))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LaunchError, match=r"no mpiexec of it was found: .*bin/mpiexec is of"):
        mpi.find([str(alien)])


def test_no_library_says_how_to_get_one(tmp_path, monkeypatch):
    (tmp_path / "mpi4py").mkdir()
    stub = "raise RuntimeError('cannot load MPI library')"
    (tmp_path / "mpi4py/__init__.py").write_text(stub)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"cannot load MPI library.*-m pip install mpi4py mpich"):
        mpi.find([sys.executable])


def test_which_prints_the_library_and_its_mpiexec(launcher):
    fitting = mpi.find([sys.executable])
    ended = launcher("--which")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [str(fitting), str(fitting.mpiexec)]


def test_which_prints_why_there_is_none(launcher, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise RuntimeError('cannot load MPI library')")
    ended = launcher("--which", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("launch: mpi4py of ")
