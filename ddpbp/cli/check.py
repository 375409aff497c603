"""The commands that check: gradcheck and doctor."""

import click

from ddpbp.cli.options import SettingsOptions, settings_options
from ddpbp.cli.process import is_first, leave_together, on_all_ranks
from ddpbp.comm.world import World
from ddpbp.errors import ConfigError
from ddpbp.run.output import print_text


@click.command()
@settings_options
@click.option(
    "--directions",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Random directions for each tensor.",
)
def gradcheck(settings: SettingsOptions, directions: int) -> int:
    """Check the gradient by finite differences, in float64, layer by layer.

    CONFIG and KEY=VALUE are as for train. Exit code 1 if the gradient is wrong, or if all of it is
    zero and there is nothing to check.
    """

    def main(world: World) -> int:
        config = settings.config(world)
        from ddpbp.tools.gradient_check import check_config

        text, good = check_config(config, directions=directions)
        print_text(text)
        return 0 if good else 1

    return on_all_ranks(main, mpi=False)


@click.command()
@settings_options
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    help="Seconds after which a check has failed.",
)
def doctor(settings: SettingsOptions, timeout_seconds: float) -> int:
    """Check whether these ranks can train: alone, under mpirun or srun.

    CONFIG and KEY=VALUE are as for train. Exit code 1 if a check has failed.
    """
    from ddpbp.tools.doctor.limits import limit_joining

    def main(world: World) -> int:
        cancel_limit()
        config = settings.config(world)
        from ddpbp.tools.doctor.examine import examine

        show = print_text if world.rank == 0 else lambda _: None
        return examine(config, world, show, timeout_seconds)

    cancel_limit = limit_joining(timeout_seconds, first=is_first())
    try:
        return on_all_ranks(main)
    except ConfigError as error:  # launcher and library do not fit: there is no world
        from ddpbp.tools.doctor.installation import launcher_fault

        if is_first():
            print_text(str(launcher_fault(error)))
        leave_together()
        return 1
    finally:
        cancel_limit()
