"""What the launcher knows of ddpbp: its commands, and where a restart continues."""

import sys

import click

from ddpbp.cli.main import cli
from launch import train_command


def test_the_commands_are_those_of_ddpbp():
    commands = cli.list_commands(click.Context(cli))
    assert {*train_command.COMMANDS, "launch"} == set(commands)


def test_a_restart_of_a_run_from_a_named_checkpoint_goes_on_from_its_own(tmp_path):
    line = ["train", "--resume", "other/run", f"output={tmp_path}"]
    assert train_command.restarted([sys.executable], line) == line
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    assert train_command.restarted([sys.executable], line) == [
        "train",
        "--resume",
        "auto",
        line[-1],
    ]
