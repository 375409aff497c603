"""The command line: parse, call, exit code. Heavy modules load inside the commands."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ddpbp import __version__
from ddpbp.comm.join import join, launched
from ddpbp.comm.simulated import simulate
from ddpbp.comm.world import World
from ddpbp.config.read import parse, resolve
from ddpbp.config.settings import Config
from ddpbp.config.write import dump, schema, to_toml
from ddpbp.errors import ConfigError, DdpbpError
from ddpbp.run.report import say


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ddpbp %(version)s")
def cli() -> None:
    """Train feed-forward networks by backpropagation: the same bits on one process and on many."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code, the same on every rank."""
    found = launched()
    first = found is None or found[0] == 0
    try:
        code = cli.main(list(arguments), prog_name="ddpbp", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        if first:
            error.show()
        return 2
    except DdpbpError as error:  # before there was a world: every process has it
        if first:
            _complain(error)
        _leave_together(found)
        return error.code


def _leave_together(found: tuple[int, int] | None) -> None:
    """Let rank 0 speak, and all end with their own code, though the launcher ends all with one."""
    if found is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(0.5)


def _complain(error: DdpbpError) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"ddpbp: {error}\n")


def on_all_ranks(
    main: Callable[[World], int], *, simulate_ranks: int = 0, mpi: bool | None = None
) -> int:
    """Run `main` in the world of this process and turn its faults into exit codes.

    A `DdpbpError` has reached every rank: rank 0 says it. Anything else is this rank's alone: it
    tells its story and ends all.
    """

    def guarded(world: World) -> int:
        try:
            return main(world)
        except DdpbpError as error:
            if world.rank == 0:
                _complain(error)
            return error.code
        except BaseException as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            sys.stdout.flush()
            if isinstance(error, MemoryError):
                sys.stderr.write(
                    f"ddpbp: rank {world.rank} on {world.host} is out of memory: {error}; lower "
                    "batch_size or model.hidden (ddpbp train --dry-run tells the memory)\n"
                )
            elif code == 130:
                sys.stderr.write("ddpbp: interrupted\n" * (world.rank == 0))
            elif not isinstance(error, SystemExit):  # a simulated rank that follows
                sys.stderr.write(f"ddpbp: rank {world.rank} on {world.host} failed:\n")
                traceback.print_exc()
            sys.stderr.flush()
            world.abort(code)
            return code

    if simulate_ranks:
        return simulate(simulate_ranks, guarded)
    return guarded(join(mpi=mpi))


def settings_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add [CONFIG] [KEY=VALUE]... and the flags that stand for settings."""
    for decorate in (
        click.option("--seed", type=int, help="Stands for seed=N."),
        click.option("--epochs", type=int, help="Stands for epochs=N."),
        click.option("--output", help="The run folder; stands for output=PATH."),
        click.argument("settings", nargs=-1, metavar="[CONFIG] [KEY=VALUE]..."),
    ):
        command = decorate(command)
    return command


def world_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the ranks are."""
    for decorate in (
        click.option(
            "--mpi/--no-mpi",
            default=None,
            help="Use MPI, or run as one process; by default it is seen from the launcher.",
        ),
        click.option(
            "--simulate-ranks",
            type=click.IntRange(min=1),
            default=None,
            metavar="N",
            help="Run N ranks in this one process, in turn, with the same bits: for debuggers.",
        ),
    ):
        command = decorate(command)
    return command


def _settings(world: World, settings: Sequence[str], flags: dict[str, Any]) -> Config:
    """Resolve the configuration on rank 0 and share it."""
    with world.together():
        mine = None
        if world.rank == 0:
            words = list(settings)
            file = Path(words.pop(0)) if words and "=" not in words[0] else None
            given = {key: value for key, value in flags.items() if value is not None}
            mine = dump(resolve(file, words, flags=given))
    return parse(world.broadcast(mine))


@cli.command(epilog="Start several ranks with: mpirun -n 4 python -m ddpbp train ...")
@settings_arguments
@world_options
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the run folder.")
@click.option(
    "--resume",
    metavar="auto|PATH",
    help="Go on from a checkpoint: auto takes the newest in the run folder, or starts anew.",
)
@click.option(
    "--force", is_flag=True, help="With --resume: go on though the numbers will be other ones."
)
@click.option(
    "--bar/--no-bar",
    default=None,
    help="Show a live bar; by default where one process writes to a terminal.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print settings, parameters, memory, leaves per rank and steps; train nothing.",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --dry-run: plan for N ranks, and say whether they can run.",
)
@click.option("--print-config", is_flag=True, help="Print the resolved settings as TOML only.")
@click.option("--fast-dev-run", is_flag=True, help="One batch of everything; nothing is written.")
def train(
    settings: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    output: str | None,
    simulate_ranks: int | None,
    mpi: bool | None,
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

    CONFIG is a TOML file; without one, ddpbp trains on the handwritten digits it ships with.
    KEY=VALUE changes single settings, as in optimizer.learning_rate=0.05 (ddpbp config show lists
    them all).
    """
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
        config = _settings(world, settings, {"seed": seed, "epochs": epochs, "output": output})
        if print_config:
            say(to_toml(config), end="")
            return 0
        if dry_run:
            from ddpbp.tools.dry_run import describe

            with world.together():
                text = describe(config, ranks or world.world_size) if world.rank == 0 else ""
            if world.rank == 0:
                say(text)
            return 0
        from ddpbp.run.training import train

        train(
            config,
            world,
            overwrite=overwrite,
            resume=resume,
            force=force,
            fast_dev_run=fast_dev_run,
            bar=bar,
        )
        return 0

    return on_all_ranks(main, simulate_ranks=simulate_ranks or 0, mpi=mpi)


@cli.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@world_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: Path, data: str | None, simulate_ranks: int | None, mpi: bool | None, as_json: bool
) -> int:
    """Score MODEL (a run folder or a model file) on its own test data, or on DATA (a path)."""

    def main(world: World) -> int:
        import msgspec

        from ddpbp.tools.apply import score_file

        scores = score_file(model, data, world)
        if world.rank == 0:
            say(
                msgspec.json.encode(scores).decode()
                if as_json
                else "\n".join(f"{key:<12} {value:.6g}" for key, value in scores.items())
            )
        return 0

    return on_all_ranks(main, simulate_ranks=simulate_ranks or 0, mpi=mpi)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@world_options
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="A .csv or .npy file; else standard output.",
)
def predict(
    model: Path, data: Path, output: Path | None, simulate_ranks: int | None, mpi: bool | None
) -> int:
    """Apply MODEL (a run folder or a model file) to the rows of DATA."""

    def main(world: World) -> int:
        from ddpbp.tools.apply import predict_file

        predict_file(model, data, output, world)
        return 0

    return on_all_ranks(main, simulate_ranks=simulate_ranks or 0, mpi=mpi)


@cli.command()
@settings_arguments
@click.option("--directions", type=click.IntRange(min=1), default=3, show_default=True)
def gradcheck(
    settings: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    output: str | None,
    directions: int,
) -> int:
    """Check the gradient by finite differences, in float64, layer by layer.

    CONFIG and KEY=VALUE are as for train.
    """

    def main(world: World) -> int:
        config = _settings(world, settings, {"seed": seed, "epochs": epochs, "output": output})
        from ddpbp.tools.gradient_check import check_config

        text, good = check_config(config, directions=directions)
        say(text)
        return 0 if good else 1

    return on_all_ranks(main, mpi=False)


@cli.command()
@settings_arguments
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--ranks", metavar="1,2,4", help="Scaling: start these numbers of ranks in turn.")
def bench(
    settings: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    output: str | None,
    json_file: Path | None,
    ranks: str | None,
) -> int:
    """Measure training speed: alone, under mpirun, or over numbers of ranks.

    CONFIG and KEY=VALUE are as for train.
    """

    def main(world: World) -> int:
        config = _settings(world, settings, {"seed": seed, "epochs": epochs, "output": output})
        import msgspec

        from ddpbp.tools import bench

        found = bench.measure(config, world)
        if world.world_size > 1:
            found["all_reduce"] = bench.all_reduce(world)
        if ranks:
            found |= bench.scaling(config, settings, ranks)
        with world.together():
            if world.rank == 0:
                say(bench.text(found))
                if json_file:
                    json_file.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        return 0

    return on_all_ranks(main)


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
            os.execv(sys.executable, [sys.executable, str(folder / "launch.py"), *words])
    raise ConfigError("the launcher is not part of this installation; reinstall ddpbp")


@cli.command()
@settings_arguments
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    help="Seconds after which a check has failed.",
)
def doctor(
    settings: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    output: str | None,
    timeout_seconds: float,
) -> int:
    """Check whether these ranks can train: alone, under mpirun or srun.

    CONFIG and KEY=VALUE are as for train. Exit code 1 if a check has failed.
    """
    from ddpbp.tools import doctor

    found = launched()
    first = found is None or found[0] == 0

    def main(world: World) -> int:
        joined()
        config = _settings(world, settings, {"seed": seed, "epochs": epochs, "output": output})
        tell = say if world.rank == 0 else lambda _: None
        return doctor.examine(config, world, tell, timeout_seconds)

    joined = doctor.limit_joining(timeout_seconds, first=first)
    try:
        return on_all_ranks(main)
    except ConfigError as error:  # launcher and library do not fit: there is no world
        if first:
            say(str(doctor.launcher_fault(error)))
        _leave_together(found)
        return 1
    finally:
        joined()


@cli.command()
@settings_arguments
@click.option("--nodes", metavar="2,4,8", help="Numbers of hosts; by default powers of two.")
@click.option(
    "--ranks-per-node", type=click.IntRange(min=1), help="Of a host; by default as many as here."
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    help="Of the network between hosts, in Gbit/s, instead of what is measured.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0),
    default=50,
    show_default=True,
    help="With --bandwidth: of the network, in microseconds.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def plan(
    settings: tuple[str, ...],
    seed: int | None,
    epochs: int | None,
    output: str | None,
    nodes: str | None,
    ranks_per_node: int | None,
    bandwidth: float | None,
    latency: float,
    json_file: Path | None,
) -> int:
    """Predict steps on other numbers of ranks and hosts from what is measured on these.

    CONFIG and KEY=VALUE are as for train. One process starts as many ranks as there are cores to
    measure with; over several hosts start it under mpirun or srun.
    """

    def main(world: World) -> int:
        config = _settings(world, settings, {"seed": seed, "epochs": epochs, "output": output})
        import msgspec

        from ddpbp.tools import plan

        found = None
        if world.world_size == 1 and launched() is None:
            given = {"--nodes": nodes, "--ranks-per-node": ranks_per_node, "--bandwidth": bandwidth}
            words = [f"{k}={v}" for k, v in given.items() if v is not None]
            found = plan.plan_under_mpi(config, [*settings, *words, f"--latency={latency}"])
        found = found or plan.plan(
            config,
            world,
            nodes=nodes,
            ranks_per_node=ranks_per_node or 0,
            bytes_per_second=(bandwidth or 0.0) * 1e9 / 8,
            latency_seconds=latency * 1e-6,
        )
        with world.together():
            if world.rank == 0:
                say(plan.text(found))
                if json_file:
                    json_file.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        return 0

    return on_all_ranks(main)


@cli.group()
def config() -> None:
    """Show the settings."""


@config.command("show")
@settings_arguments
def show(
    settings: tuple[str, ...], seed: int | None, epochs: int | None, output: str | None
) -> int:
    """Print the resolved settings as TOML."""

    def main(world: World) -> int:
        flags = {"seed": seed, "epochs": epochs, "output": output}
        say(to_toml(_settings(world, settings, flags)), end="")
        return 0

    return on_all_ranks(main, mpi=False)


@config.command("schema")
def show_schema() -> int:
    """Print the JSON schema of a configuration file."""
    import msgspec

    say(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())
    return 0
