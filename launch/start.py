"""From the command line to an exit code: start the ranks, and start them again if need be."""

import argparse
import io
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import batch, hosts, mpi, train_command, values
from .errors import LaunchError, OutputLostError, print_message, print_text
from .explain import explain
from .hosts import Machines
from .options import parse
from .probe import YOUNG_SECONDS
from .supervise import REQUEUE, Ended, Job, Output

RANK = Path(__file__).resolve().with_name("rank.py")
# Done, wrong use, diverged, checkpointed on request: another start would end the same way.
FINAL = (0, 2, 3, REQUEUE)


def main(words: Sequence[str]) -> int:
    """Run the launcher with the words of its command line; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(words)
    except LaunchError as error:
        print_message(str(error))
        return 2
    except OutputLostError as error:
        print_message(str(error))
        return 1


def _run(words: Sequence[str]) -> int:
    if sys.stdout is None:
        raise LaunchError("standard output is closed; redirect it to a file or to /dev/null")
    options = parse(words)
    if options.which:
        print_text(which(options))
        return 0
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            raise LaunchError(f"{name} is set: launch starts the ranks itself, without mpirun")
    if options.batch:
        print_text(batch.submit(options, program(options)))
        return 0
    return simulate(options) if options.simulate else start(options)


def which(options: argparse.Namespace) -> str:
    """Return the MPI library and its mpiexec, in two lines."""
    library = mpi.find(program(options))
    return f"{library}\n{library.mpiexec}\n"


def program(options: argparse.Namespace) -> list[str]:
    """Return the words that run the Python of a rank."""
    if options.container:
        return ["apptainer", "exec", options.container, "python"]
    return [options.python]


def simulate(options: argparse.Namespace) -> int:
    """Replace this process by one that holds all ranks."""
    ranks = str(options.n or 2)
    line = [*program(options), "-m", "ddpbp", *options.arguments, "--simulate-ranks", ranks]
    if options.dry_run:
        print_text(shlex.join(line) + "\n")
        return 0
    try:
        os.execvp(line[0], line)
    except OSError as error:
        raise LaunchError(f"{values.shown(line[0])}: {error.strerror}") from None


def start(options: argparse.Namespace) -> int:
    """Start the ranks, restart them as often as allowed; return the exit code of the last start."""
    library = mpi.find(program(options))
    machines = Machines(options.hosts, options.hostfile, options.ssh, options.python)
    if options.dry_run:  # contacts no host
        ranks = machines.place(options.n, options.ppn)
        line, environment = command(options, library, machines, ranks)
        words = [shlex.join([f"{key}={value}"]) for key, value in environment.items()]
        print_text(" ".join([*words, shlex.join(line)]) + "\n")
        return 0
    if gone := machines.probe([Path.cwd(), RANK]):
        raise LaunchError("; ".join(f"host {name}: {why}" for name, why in gone.items()))
    shown = output(options)
    code = until_done(options, library, machines, shown)
    return code or int(shown.lost)


def until_done(
    options: argparse.Namespace, library: mpi.Mpi, machines: Machines, shown: Output
) -> int:
    """Start the ranks until they are done, as often as allowed; return the last exit code."""
    restarts = 0
    while True:
        ranks = machines.place(options.n, options.ppn)
        ended = run_once(options, library, machines, ranks, shown)
        if ended.code == REQUEUE and options.requeue:
            requeue(machines.system)
        if ended.agreed and ended.code in FINAL:
            return ended.code
        left, lost = remaining(machines, ranks)
        last = ended.code in FINAL or ended.asked or restarts == options.max_restarts
        if last or not left:
            return ended.code
        if lost and not options.elastic:
            print_message("not restarted; --elastic restarts without the hosts that are gone")
            return ended.code
        restarts += 1
        options.n = left
        options.arguments = train_command.restarted(program(options), options.arguments)
        print_message(f"restart {restarts} of {options.max_restarts}")


def run_once(
    options: argparse.Namespace,
    library: mpi.Mpi,
    machines: Machines,
    ranks: Mapping[str, int],
    shown: Output,
) -> Ended:
    """Start the ranks once, wait for their end and explain it."""
    line, environment = command(options, library, machines, ranks)
    n = sum(ranks.values())
    if not options.quiet:
        print_message(f"{n} rank{'s' * (n > 1)} on {listed(ranks)} with {library}")
        for host, count in ranks.items():
            if count > (cores := machines.cores[host]):
                print_message(
                    f"{count} ranks share {cores} cores of {host}: slower than {cores} ranks"
                )
    # One rank has nobody to meet.
    meet_seconds = options.meet_seconds * (train_command.is_training(options.arguments) and n > 1)
    job = Job(line, environment, n, shown, name=machines.job, meet_seconds=meet_seconds)
    ended = job.run()
    ended.code = explain(ended, program(options), options.arguments)
    return ended


def remaining(machines: Machines, ranks: Mapping[str, int]) -> tuple[int, bool]:
    """Sweep the hosts after a failure and drop those that are gone.

    Returns
    -------
    left : int
        The number of ranks whose hosts are left.
    lost : bool
        Whether a host is gone.
    """
    time.sleep(YOUNG_SECONDS)
    gone = machines.probe([Path.cwd(), RANK])
    for name, why in gone.items():
        print_message(f"host {name} is gone: {why}")
    machines.hosts = [host for host in machines.hosts if host.name not in gone]
    return sum(count for name, count in ranks.items() if name not in gone), bool(gone)


def listed(ranks: Mapping[str, int]) -> str:
    """Write "h1:4,h2:2"."""
    return ",".join(f"{host}:{count}" for host, count in ranks.items())


def command(
    options: argparse.Namespace, library: mpi.Mpi, machines: Machines, ranks: Mapping[str, int]
) -> tuple[list[str], dict[str, str]]:
    """Return the whole command line, and the environment that it needs."""
    extra = values.words("--mpi-args", options.mpi_args)
    line, environment = mpi.command(library, ranks, machines.ssh, extra, machines.system)
    line += [options.python, "-IS", str(RANK), "--hosts", listed(ranks)]
    line += ["--bind"] * (not options.no_bind)
    line += ["--job", machines.job] * (not options.dry_run)
    return [*line, "--", *program(options), "-m", "ddpbp", *options.arguments], environment


def requeue(system: str) -> None:
    """Put the batch job that this process runs in back into the queue."""
    if system != "slurm":
        raise LaunchError("--requeue is for a Slurm job; the templates of PBS and LSF do it there")
    job = values.check("$SLURM_JOB_ID", os.environ["SLURM_JOB_ID"], values.WORD)
    hosts.output_of(["scontrol", "requeue", job])


def output(options: argparse.Namespace) -> Output:
    """Return where the lines of the ranks go."""
    try:
        if options.log_dir:
            options.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--log-dir {values.shown(options.log_dir)}: {error.strerror}") from None
    colour = options.color == "always" or (
        options.color != "never" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    return Output(options.show or "all", options.log_dir, colour=colour)
