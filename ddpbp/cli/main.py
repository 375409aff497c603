"""The command line: the group of commands, and `run`, which turns faults into exit codes."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from ddpbp.base.spelling import shortened
from ddpbp.base.version import __version__
from ddpbp.cli.process import begin_output, complain, end_output, is_first, leave_together
from ddpbp.errors import ConfigError, DdpbpError

FAMILIES = {
    "train": "train.train",
    "eval": "apply.evaluate",
    "predict": "apply.predict",
    "gradcheck": "check.gradcheck",
    "doctor": "check.doctor",
    "bench": "measure.bench",
    "plan": "measure.plan",
    "config": "config.config",
    "data": "data.data",
}
"""Where each command stands below ddpbp.cli; its module is loaded when the command is needed."""


class Commands(click.Group):
    """The commands of `FAMILIES`, and those that are added to the group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in alphabetical order."""
        return sorted([*self.commands, *FAMILIES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, or None."""
        if cmd_name not in FAMILIES:
            return super().get_command(ctx, cmd_name)
        module, name = FAMILIES[cmd_name].split(".")
        command: click.Command = getattr(import_module(f"ddpbp.cli.{module}"), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ddpbp %(version)s")
def cli() -> None:
    """Train feed-forward networks by backpropagation: the same bits on one process and on many."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code, the same on every rank."""
    try:
        begin_output()
        code = cli.main(list(arguments), prog_name="ddpbp", standalone_mode=False)
        return end_output(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        return end_output(130)
    except click.exceptions.NoArgsIsHelpError as error:
        if is_first():
            error.show()
        return end_output(2)
    except click.ClickException as error:
        if is_first():
            context = error.ctx if isinstance(error, click.UsageError) else None
            help_at = f" (see {context.command_path} --help)" if context else ""
            complain(f"{shortened(error.format_message())}{help_at}")
        return end_output(2)
    except DdpbpError as error:  # before there was a world: every process has it
        if is_first():
            complain(error)
        leave_together()
        return end_output(error.code)
    except OSError as error:  # click could not print its help
        complain(f"standard output cannot be written: {error.strerror}")
        return end_output(1)
    except SystemExit as error:  # the only rank has aborted
        return end_output(error.code if isinstance(error.code, int) else 1)


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def launch(words: tuple[str, ...]) -> None:
    """Start several ranks: here, on hosts, in an allocation, as a batch job (launch --help)."""
    package = Path(__file__).parent.parent
    for folder in (package / "launch", package.parent / "launch"):  # installed, or a checkout
        if (folder / "launch.py").is_file():
            sys.stdout.flush()
            try:
                os.execv(sys.executable, [sys.executable, str(folder / "launch.py"), *words])
            except OSError as error:
                raise ConfigError(f"{sys.executable} cannot be started: {error.strerror}") from None
    raise ConfigError("the launcher is not part of this installation; reinstall ddpbp")
