"""Wrong use is one message and exit code 2; launch.toml holds defaults."""

import re

import pytest

from launch.options import DESCRIPTION, parse
from launch.start import main

MALFORMED = "h1 slots=2\n\nh2 slot=3\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "0", "train"], "-n 0: allowed: 1 or more"),
        (["-n", "two", "train"], "argument -n: two: allowed: a whole number"),
        (["--nonsense", "train"], "unrecognized arguments: --nonsense"),
        (["--hostfile", "nowhere", "train"], "--hostfile nowhere: No such file"),
        (["--hostfile", "bad", "train"], "--hostfile bad, line 3: h2 slot=3: allowed: HOST"),
        (["--hosts", "h1:0", "train"], "--hosts h1:0: h1:0: allowed: HOST"),
        (["--hosts", "h1", "--hostfile", "bad", "train"], "exclude each other"),
        (["-n", "3", "python", "my.py"], "python is not a command of ddpbp; allowed: bench"),
        (["-n", "3", "my.py", "x"], "of your own: mpirun -n 3 python my.py x"),
        (["launch", "train"], "launch is not a command of ddpbp"),
        (["--hosts", "h1,h2:1", "--dry-run", "train"], "host h1: its cores are not known"),
        (["--hosts", "localhost:2", "-n", "3", "train"], "-n 3, but there are 2 slots"),
        (["--hosts", "localhost:2", "--ppn", "3", "train"], "--ppn 3, but the slots are"),
        (["--hosts", "no.such.host.invalid:1", "train"], "host no.such.host.invalid: ssh: Could"),
        (["--hosts", "far", "--ssh", "nossh", "train"], "host far: nossh is missing here"),
        (["--python", "/no/python", "train"], "/no/python: No such file"),
        (["--slurm", "--time", "2h", "train"], "--time 2h: allowed: [D-]H:MM:SS"),
        (["--slurm", "--time", "0:01:00", "eval", "m"], "not longer than --grace 120"),
        (["--slurm", "eval", "m"], "sbatch is not on PATH"),
        (["--slurm", "--hosts", "h1", "eval", "m"], "do not go with a batch job"),
        (["--slurm", "train", "--overwrite"], "--no-requeue"),
        (["--slurm", "--ppn", "9", "train"], "9 ranks, but a batch has only 8 leaves"),
        (["--slurm", "--ppn", "9", "train"], "lower micro_batch_size"),
        (["--slurm", "--template", "bad.sh", "eval", "m"], "bad.sh, line 2: {{cpus}}: allowed:"),
        (["--kubernetes", "eval", "m"], "--image"),
        (["--kubernetes", "--image", "i", "--memory", "4 GB", "eval", "m"], "--memory 4 GB"),
    ],
)
def test_wrong_use_is_one_message_and_code_2(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text(MALFORMED)
    (tmp_path / "bad.sh").write_text("#!/bin/sh\n#SBATCH --cpus={{cpus}}\n")
    if "sbatch" in expected:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("launch: ")
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bad", "bad.sh"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppn = 'four'", "launch.toml: ppn = four: allowed: a number"),
        ("colour = true", "launch.toml: colour is not an option; allowed: n, hosts"),
        ("show = 'some'", "launch.toml: show = some: allowed: all, labelled, first"),
        ("n = ", "launch.toml cannot be read"),
    ],
)
def test_launch_toml_is_checked(tmp_path, monkeypatch, capsys, text, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text(text)
    assert main(["train"]) == 2
    assert expected in capsys.readouterr().err


def test_launch_toml_holds_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.toml").write_text('ppn = 4\nsetup = ["a", "b"]\ntime = "0:30:00"\n')
    options = parse(["--ppn", "2", "train"])
    assert (options.ppn, options.setup, options.time) == (2, ["a", "b"], 1800)


@pytest.mark.parametrize("word", ["hosts", "hostfile"])
def test_the_command_line_wins_where_launch_toml_has_the_other(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    other = {"hosts": "hostfile", "hostfile": "hosts"}[word]
    (tmp_path / "launch.toml").write_text(f"{other} = 'h1'")
    options = parse([f"--{word}", "h2", "train"])
    assert (str(getattr(options, word)), getattr(options, other)) == ("h2", None)


def test_the_examples_of_the_help_run_as_printed(launcher, tmp_path):
    examples = re.findall(r"^ +ddpbp launch (.*)$", DESCRIPTION, re.MULTILINE)
    assert len(examples) == 3
    for words in examples:
        ended = launcher("--dry-run", *words.split(), cwd=tmp_path)
        assert ended.returncode == 0, (words, ended.stderr)
