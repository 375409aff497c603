"""The commands that measure: bench and plan."""

from pathlib import Path
from typing import Any

import click

from ddpbp.cli.options import SettingsOptions, json_option, settings_options
from ddpbp.cli.process import on_all_ranks
from ddpbp.comm.join import launched
from ddpbp.comm.world import World
from ddpbp.run.output import print_text


@click.command()
@settings_options
@json_option
@click.option("--ranks", metavar="1,2,4", help="Scaling: start these numbers of ranks in turn.")
def bench(settings: SettingsOptions, json_file: Path | None, ranks: str | None) -> int:
    """Measure training speed: alone, under mpirun, or over numbers of ranks.

    CONFIG and KEY=VALUE are as for train.
    """

    def main(world: World) -> int:
        config = settings.config(world)
        from ddpbp.tools import bench

        figures = bench.measure(config, world)
        if world.world_size > 1:
            figures["all_reduce"] = bench.all_reduce(world)
        if ranks:
            figures |= bench.scaling(config, settings.arguments(), ranks)
        _report(world, bench.text(figures), figures, json_file)
        return 0

    return on_all_ranks(main)


@click.command()
@settings_options
@click.option("--hosts", metavar="2,4,8", help="Numbers of hosts; by default powers of two.")
@click.option(
    "--ranks-per-host", type=click.IntRange(min=1), help="Of a host; by default as many as here."
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    help="Of the network between hosts, in Gbit/s, instead of the measured one.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0),
    default=50,
    show_default=True,
    help="With --bandwidth: of the network, in microseconds.",
)
@json_option
def plan(
    settings: SettingsOptions,
    hosts: str | None,
    ranks_per_host: int | None,
    bandwidth: float | None,
    latency: float,
    json_file: Path | None,
) -> int:
    """Predict steps on other numbers of ranks and hosts from measurements on these.

    CONFIG and KEY=VALUE are as for train. One process starts as many ranks as there are cores to
    measure with; over several hosts start it under mpirun or srun.
    """

    def main(world: World) -> int:
        config = settings.config(world)
        from ddpbp.tools.plan import report

        figures = None
        if world.world_size == 1 and launched() is None:
            options = {"hosts": hosts, "ranks-per-host": ranks_per_host, "bandwidth": bandwidth}
            words = [f"--{name}={value}" for name, value in options.items() if value is not None]
            words += [*settings.arguments(), f"--latency={latency}"]
            figures = report.plan_under_mpi(config, words)
        figures = figures or report.plan(
            config,
            world,
            hosts=hosts,
            ranks_per_host=ranks_per_host or 0,
            bytes_per_second=(bandwidth or 0.0) * 1e9 / 8,
            latency_seconds=latency * 1e-6,
        )
        _report(world, report.text(figures), figures, json_file)
        return 0

    return on_all_ranks(main)


def _report(world: World, text: str, figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures on rank 0, and write them if there is a file for them."""
    import msgspec

    with world.together():
        if world.rank == 0:
            print_text(text)
            if json_file:
                json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
