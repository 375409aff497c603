"""bench and plan start ranks of this host by `ddpbp launch`, which finds the mpiexec that fits."""

import json

import pytest

from ddpbp.errors import ConfigError
from ddpbp.tools.launcher import run_on_ranks

pytestmark = pytest.mark.slow

SMALL = ("batch_size=16", "model.hidden=[8]")


def test_ranks_start_here_whatever_launch_toml_says_of_hosts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text("hostfile = 'nowhere'\nppn = 1\n")
    run_on_ranks(2, "bench", *SMALL, "--json", str(tmp_path / "bench.json"))
    assert json.loads((tmp_path / "bench.json").read_text())["world_size"] == 2


def test_the_message_of_ranks_that_fail_is_passed_on():
    message = r"^train on 2 ranks failed: .*nonsense"
    with pytest.raises(ConfigError, match=message) as caught:
        run_on_ranks(2, "train", "nonsense=1")
    assert "launch:" not in str(caught.value)


def test_bench_measures_each_number_of_ranks(python, tmp_path):
    file = tmp_path / "bench.json"
    ended = python("-m", "ddpbp", "bench", *SMALL, "--ranks", "1,2", "--json", file)
    assert (ended.returncode, ended.stderr) == (0, "")
    figures = json.loads(file.read_text())
    for kind, batches in (("strong", [16, 16]), ("weak", [16, 32])):
        rows = figures[f"{kind}_scaling"]
        assert [row["world_size"] for row in rows] == [1, 2]
        assert [row["batch_size"] for row in rows] == batches


def test_bench_on_ranks_without_mpi_says_what_to_install(python, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise RuntimeError('cannot load MPI library')")
    ended = python("-m", "ddpbp", "bench", *SMALL, "--ranks", "2", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2
    assert "finds no MPI library" in ended.stderr
    assert "-m pip install mpi4py mpich" in ended.stderr
