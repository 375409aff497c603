"""The commands about data."""

from pathlib import Path

import click

from ddpbp.cli.options import SettingsOptions, json_option
from ddpbp.cli.process import on_all_ranks
from ddpbp.comm.world import World


@click.group()
def data() -> None:
    """Look at data."""


@data.command()
@click.argument("source")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def info(source: str, words: tuple[str, ...], json_file: Path | None) -> int:
    """Show what SOURCE holds: rows, columns, ranges, gaps, classes, and what train would refuse.

    SOURCE and KEY=VALUE are as for train: a name, a file, a folder, a pattern.
    """

    def main(world: World) -> int:
        settings = SettingsOptions((*words, f"data.source={source}"), {}).config(world)
        from ddpbp.run.output import print_text
        from ddpbp.tools import data_info

        found = data_info.inspect(settings)
        print_text(data_info.as_text(found))
        if json_file is not None:
            data_info.write(found, json_file)
        return 0

    return on_all_ranks(main, mpi=False)
