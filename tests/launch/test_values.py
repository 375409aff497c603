"""A value is refused with one message, or quoted; none becomes an option, a line or a command."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.hosts import Machines, from_text
from launch.start import main
from tests.faults import launcher_values
from tests.launch.conftest import LAUNCH


def test_hostile_values_in_every_field():
    told: list[str] = []
    assert launcher_values.run([*launcher_values.SYSTEMS], 100, 1, told.append, 60) == 0, "\n".join(
        told
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hosts=-Fcfg"], "--hosts -Fcfg"),
        (["--hosts=h1,-Fcfg:2"], "host -Fcfg"),
        (["--slurm", "--account=a\n#SBATCH --wrap=x"], r"--account a\n#SBATCH --wrap=x"),
        (["--slurm", "--job-name=../x"], "--job-name ../x"),
        (["--slurm", "--module=gcc mpich"], "--module gcc mpich"),
        (["--slurm", "--setup=echo 'x"], "--setup echo 'x"),
        (["--slurm", "--setup=cat <<END"], "--setup cat <<END"),
        (["--slurm", "--setup=a \\"], "--setup a \\"),
        (["--pbs", "--ssh=--"], "--ssh: -- is no value"),
        (["--kubernetes", "--image=i\nkind: Pod"], r"--image i\nkind: Pod"),
        (["--lsf", "-n", "²"], "-n: ²"),
        (["--lsf", "--nodes", "9" * 5000], "--nodes: 99999"),
        (["--slurm", "--python=/no/such/python"], "/no/such/python: No such file"),
        (["--ssh", "'", "--hosts=h1:1"], "--ssh ': allowed: words"),
    ],
)
def test_what_a_value_may_not_be_is_named(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "train"]) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("n = true", "n = True: allowed: a number"),
        ("n = -1", "n = -1: allowed: a number"),
        (f"ppn = 0x{'f' * 9000}", "ppn = a number of thousands of digits: allowed: a number"),
        (f"ppn = {'9' * 5000}", "launch.toml cannot be read"),
        (f"a = {'[' * 2000}", "launch.toml cannot be read"),
        ('hostfile = "a\\u0000b"', "--hostfile a\\x00b: allowed"),
        ('"a\\nb" = 1', "a\\nb is not an option"),
    ],
)
def test_launch_toml_is_as_strict(tmp_path, monkeypatch, capsys, text, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text(text)
    assert main(["eval", "m"]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


def test_a_module_reaches_the_script_as_one_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.sh").write_text("{{setup}}\n{{launch}} # {{account}}\n")
    words = ["--lsf", "--template=t.sh", "--dry-run", "--module=it's$(x)", "--account=a"]
    assert main([*words, "eval", "{{n}}"]) == 0
    assert capsys.readouterr().out == (
        "module load 'it'\"'\"'s$(x)'\npython -m ddpbp launch eval '{{n}}' # a\n"
    )


def test_a_host_is_never_an_option_of_ssh(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.words"\n')
    (tmp_path / "ssh").chmod(0o755)
    place = tmp_path / "a place; touch x"
    machines = Machines("far:1", None, str(tmp_path / "ssh"), "my python")
    machines.probe([place])
    words = (tmp_path / "ssh.words").read_text().splitlines()
    assert words[-7:] == ["--", "far", "'my python'", "-IS", "-", machines.job, f"'{place}'"]
    assert [host.name for host in from_text("h-1.x:2,h_2")] == ["h-1.x", "h_2"]


@pytest.mark.parametrize("words", [["--help"], ["--simulate", "--dry-run", "train"]])
def test_lost_output_is_exit_code_1(words):
    line = [sys.executable, str(LAUNCH), *words]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "launch: standard output cannot be written (No space left on device)\n"


def test_a_python_without_ddpbp_is_named(tmp_path):
    line = [sys.executable, "-IS", str(LAUNCH), "--which", f"--python={tmp_path / 'python'}"]
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -IS "$@"\n')
    (tmp_path / "python").chmod(0o755)
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 2
    assert "cannot run ddpbp (ModuleNotFoundError: No module named 'ddpbp'); name a" in ended.stderr
    assert "--python PATH" in ended.stderr
