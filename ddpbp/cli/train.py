"""The command that trains."""

import click

from ddpbp.cli.options import SettingsOptions, WorldOptions, settings_options, world_options
from ddpbp.comm.world import World
from ddpbp.errors import ConfigError


@click.command(epilog="Start several ranks with: mpirun -n 4 python -m ddpbp train ...")
@settings_options
@world_options
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the run folder.")
@click.option(
    "--resume",
    metavar="auto|PATH",
    help="Continue from a checkpoint: auto takes the newest in the run folder, or starts anew.",
)
@click.option(
    "--force", is_flag=True, help="With --resume: continue although the numbers will differ."
)
@click.option(
    "--bar/--no-bar",
    default=None,
    help="Show a live bar; by default where one process writes to a terminal.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print parameters, memory, leaves per rank and steps; train nothing.",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1, max=65_536),
    metavar="N",
    help="With --dry-run: plan for N ranks, and print whether they can run.",
)
@click.option(
    "--print-config", is_flag=True, help="Print the resolved settings as TOML; train nothing."
)
@click.option("--fast-dev-run", is_flag=True, help="One batch of everything; nothing is written.")
def train(
    settings: SettingsOptions,
    where: WorldOptions,
    overwrite: bool,
    resume: str | None,
    force: bool,
    bar: bool | None,
    dry_run: bool,
    ranks: int | None,
    print_config: bool,
    fast_dev_run: bool,
) -> int:
    """Train a network; rank 0 reports and writes the run folder.

    CONFIG is a TOML file, or the name of a configuration that ddpbp ships: digits (also without
    CONFIG), fashion-mnist, large-batch, regression, xor.

    KEY=VALUE changes a single setting, as in optimizer.learning_rate=0.05. ddpbp config show prints
    all settings with their meaning.

    \b
    Your own table, its last column a class or a number:
        ddpbp train data.source=flowers.csv
        ddpbp train data.source=prices.csv loss.name=squared_error
    """  # noqa: D301 - \b is click's mark of a paragraph that keeps its lines
    if ranks and not dry_run:
        raise ConfigError(
            "--ranks goes with --dry-run; to train on several ranks start them: "
            f"mpirun -n {ranks} python -m ddpbp train ..."
        )
    if resume and (overwrite or fast_dev_run):
        raise ConfigError("--resume goes neither with --overwrite nor with --fast-dev-run")
    if force and not resume:
        raise ConfigError("--force goes with --resume; to replace a run use --overwrite")

    def main(world: World) -> int:
        if print_config or dry_run:
            return _describe(settings, world, ranks, print_config=print_config, dry_run=dry_run)
        config, notes = settings.resolve(world)
        from ddpbp.run.training import train

        train(
            config,
            world,
            overwrite=overwrite,
            resume=resume,
            force=force,
            fast_dev_run=fast_dev_run,
            bar=bar,
            notes=notes,
        )
        return 0

    return where.run(main)


def _describe(
    settings: SettingsOptions,
    world: World,
    ranks: int | None,
    *,
    print_config: bool,
    dry_run: bool,
) -> int:
    """Print the settings or the size of a run; train nothing."""
    config = settings.config(world)
    from ddpbp.config.write import to_toml
    from ddpbp.run.output import print_text

    with world.together():
        if world.rank == 0:
            if print_config:
                print_text(to_toml(config), end="")
            if dry_run:
                from ddpbp.tools.dry_run import describe

                print_text(describe(config, ranks or world.world_size))
    return 0
