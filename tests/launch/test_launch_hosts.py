"""Where the ranks go: hostfiles, slots, the allocation of a batch system."""

import os

import pytest

from launch import hosts as where
from launch.errors import LaunchError
from launch.hosts import Host, Machines


def test_both_spellings_of_a_hostfile(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("h1 slots=2  # Open MPI\n\nh2:3\nh3\nn-4.x slots = 1 max_slots=2\n")
    assert where.from_file(file) == [Host("h1", 2), Host("h2", 3), Host("h3"), Host("n-4.x", 1)]


def test_a_hosts_slots_add_up_and_hosts_are_filled_in_turn():
    hosts = where.from_text("h1:1,h2,h1:2,h3:2")
    cores = {"h2": 4}
    assert where.spread(hosts, None, None, cores) == {"h1": 3, "h2": 4, "h3": 2}
    assert where.spread(hosts, 5, None, cores) == {"h1": 3, "h2": 2}
    assert where.spread(hosts, None, 2, cores) == {"h1": 2, "h2": 2, "h3": 2}


def test_an_allocation_is_found(tmp_path, monkeypatch):
    file = tmp_path / "nodes"
    file.write_text("h1\nh1\nh2\n")
    expected = [Host("h1", 2), Host("h2", 1)]
    assert where.allocation({}) is None
    assert where.allocation({"PBS_NODEFILE": str(file)}) == ("pbs", expected)
    assert where.allocation({"LSB_DJOB_HOSTFILE": str(file)}) == ("lsf", expected)
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'h1\\nh2\\nh3\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "h[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert where.allocation(slurm) == ("slurm", [Host("h1", 2), Host("h2", 2), Host("h3", 1)])


def test_slots_that_only_a_probe_could_find_are_asked_for():
    machines = Machines("localhost:1,h2", None, None, "python")
    with pytest.raises(LaunchError, match=r"host h2: its cores are not known .* h2:N, or add"):
        machines.place(None, None)
