"""The commands that show the settings."""

import click

from ddpbp.cli.options import SettingsOptions, settings_options
from ddpbp.cli.process import on_all_ranks
from ddpbp.comm.world import World
from ddpbp.run.output import print_text


@click.group()
def config() -> None:
    """Show the settings."""


@config.command()
@settings_options
def show(settings: SettingsOptions) -> int:
    """Print the resolved settings with their meaning, as TOML.

    CONFIG and KEY=VALUE are as for train.
    """

    def main(world: World) -> int:
        from ddpbp.config.write import to_toml

        print_text(to_toml(settings.config(world), explain=True), end="")
        return 0

    return on_all_ranks(main, mpi=False)


@config.command()
def schema() -> int:
    """Print the JSON schema of a configuration file."""

    def main(world: World) -> int:
        import msgspec

        from ddpbp.config.write import schema

        print_text(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())
        return 0

    return on_all_ranks(main, mpi=False)
