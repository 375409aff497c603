"""Options that several commands share; each group reaches the command as one argument."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ddpbp.base import blas
from ddpbp.cli.process import on_all_ranks, print_notes
from ddpbp.comm.world import World
from ddpbp.config.check import check
from ddpbp.config.find import Unchecked, find
from ddpbp.config.settings import Config

Command = Callable[..., Any]


@dataclass(frozen=True)
class SettingsOptions:
    """[CONFIG] [KEY=VALUE]... and the flags that stand for settings.

    Attributes
    ----------
    words : tuple of str
    flags : dict
        None for an absent flag.
    """

    words: tuple[str, ...]
    flags: dict[str, Any]

    def arguments(self) -> list[str]:
        """Return the same settings as arguments for another process."""
        flags = [f"{key}={value}" for key, value in self.flags.items() if value is not None]
        return [*self.words, *flags]

    def resolve(self, world: World) -> tuple[Config, list[str]]:
        """Find the settings on rank 0, share them, choose the BLAS kernel, check them.

        Returns
        -------
        config : Config
        notes : list of str
            One for each setting of the environment that was changed or ignored.

        Raises
        ------
        ConfigError
            On every rank alike.
        """
        settings: Unchecked | None = None
        with world.together():
            if world.rank == 0:
                words = list(self.words)
                file = words.pop(0) if words and "=" not in words[0] else None
                settings = find(file, words, flags=self.flags)
        config, origins = world.broadcast(settings)
        notes = [*blas.overridden(), *blas.use_kernel(config.kernel)]
        check(config, origins)
        return config, notes

    def config(self, world: World) -> Config:
        """Resolve the settings; rank 0 prints the notes on standard error."""
        config, notes = self.resolve(world)
        print_notes(world, notes)
        return config


def settings_options(command: Command) -> Command:
    """Add [CONFIG] [KEY=VALUE]... and its flags as the argument `settings`."""

    @wraps(command)
    def with_settings(
        *,
        words: tuple[str, ...],
        seed: int | None,
        epochs: int | None,
        output: str | None,
        **rest: Any,
    ) -> Any:
        flags = {"seed": seed, "epochs": epochs, "output": output}
        return command(settings=SettingsOptions(words, flags), **rest)

    return _decorated(
        with_settings,
        click.option("--seed", type=int, help="Stands for seed=N."),
        click.option("--epochs", type=int, help="Stands for epochs=N."),
        click.option("--output", help="The run folder; stands for output=PATH."),
        click.argument("words", nargs=-1, metavar="[CONFIG] [KEY=VALUE]..."),
    )


@dataclass(frozen=True)
class WorldOptions:
    """Where the ranks of a command are."""

    mpi: bool | None
    simulate_ranks: int | None

    def run(self, main: Callable[[World], int]) -> int:
        """Run `main` on all ranks; return the exit code."""
        return on_all_ranks(main, simulate_ranks=self.simulate_ranks, mpi=self.mpi)


def world_options(command: Command) -> Command:
    """Add the options for where the ranks are, as the argument `where`."""

    @wraps(command)
    def with_world(*, mpi: bool | None, simulate_ranks: int | None, **rest: Any) -> Any:
        return command(where=WorldOptions(mpi, simulate_ranks), **rest)

    return _decorated(
        with_world,
        click.option(
            "--mpi/--no-mpi",
            default=None,
            help="Use MPI, or run as one process; by default the launcher decides.",
        ),
        click.option(
            "--simulate-ranks",
            type=click.IntRange(min=1),
            default=None,
            metavar="N",
            help="Run N ranks in this one process, in turn, with the same bits: for debuggers.",
        ),
    )


def json_option(command: Command) -> Command:
    """Add --json FILE as the argument `json_file`."""
    return _decorated(
        command,
        click.option(
            "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures."
        ),
    )


def _decorated(command: Command, *decorators: Callable[[Command], Command]) -> Command:
    for decorate in decorators:
        command = decorate(command)
    return command
