"""Start ddpbp on several processes: here, on hosts, in an allocation, or as a batch job.

    ddpbp launch -n 4 train configs/fashion-mnist.toml
    ddpbp launch --hosts h1:4,h2:4 train ...
    ddpbp launch --slurm --nodes 4 --ppn 32 --time 2:00:00 train ...

In a checkout, `python launch/launch.py` is the same. Behind the options stands any command of
ddpbp. Options that are not given are taken from launch.toml in this folder, if there is one.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import batch
import hosts
import mpi
import options
import training
from hosts import LaunchError, Machines
from node import YOUNG_SECONDS
from supervise import REQUEUE, Ended, Job, Output

RANK = Path(__file__).resolve().with_name("rank.py")
# Done, wrong use, diverged, to be continued: another start would end the same way.
FINAL = (0, 2, 3, REQUEUE)


def say(text: str) -> None:
    """Tell the user something, apart from what the ranks say."""
    sys.stdout.flush()
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    """Do what the words ask for; return the exit code."""
    try:
        given = options.parse(words, __doc__)
        for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
            if name in os.environ:
                raise LaunchError(f"{name} is set: launch starts the ranks, no mpirun before it")
        if given.batch:
            sys.stdout.write(batch.submit(given, program(given)))
            return 0
        return simulate(given) if given.simulate else start(given)
    except LaunchError as error:
        say(str(error))
        return 2


def program(given: argparse.Namespace) -> list[str]:
    """Return how the Python of a rank is called."""
    return ["apptainer", "exec", given.container, "python"] if given.container else [given.python]


def simulate(given: argparse.Namespace) -> int:
    """Become one process that holds all ranks."""
    line = [*program(given), "-m", "ddpbp", *given.arguments, "--simulate-ranks", str(given.n or 2)]
    if given.dry_run:
        sys.stdout.write(shlex.join(line) + "\n")
        return 0
    try:
        os.execvp(line[0], line)
    except OSError as error:
        raise LaunchError(f"{line[0]}: {error.strerror}") from None


def start(given: argparse.Namespace) -> int:
    """Start the ranks, again if need be; return the exit code of the last start."""
    library = mpi.find(program(given))
    machines = Machines(given.hosts, given.hostfile, given.ssh, given.python)
    if gone := machines.probe([Path.cwd(), RANK]):
        raise LaunchError("; ".join(f"host {name}: {why}" for name, why in gone.items()))
    for restarts in range(given.max_restarts + 1):
        ranks = machines.place(given.n, given.ppn)
        line, environment = command(given, library, machines, ranks)
        if given.dry_run:
            words = [shlex.join([f"{key}={value}"]) for key, value in environment.items()]
            sys.stdout.write(" ".join([*words, shlex.join(line)]) + "\n")
            return 0
        n = sum(ranks.values())
        say(f"{n} rank{'s' * (n > 1)} on {listed(ranks)} with {library}")
        for host, count in ranks.items():
            if count > (cores := machines.cores[host]):
                say(f"{count} ranks share {cores} cores of {host}: slower than {cores} ranks")
        ended = Job(line, environment, n, output(given)).ended
        explain(ended, program(given), given.arguments)
        if ended.code == REQUEUE and given.requeue:
            requeue(machines.system)
        if ended.agreed and ended.code in FINAL:
            break
        time.sleep(YOUNG_SECONDS)
        gone = machines.probe([Path.cwd(), RANK])  # and sweep
        for name, why in gone.items():
            say(f"host {name} is gone: {why}")
        machines.hosts = [host for host in machines.hosts if host.name not in gone]
        left = sum(count for name, count in ranks.items() if name not in gone)
        if ended.code in FINAL or ended.asked or not left or restarts == given.max_restarts:
            break
        if gone and not given.elastic:
            say("not started again; --elastic goes on without hosts that are gone")
            break
        given.n, given.arguments = left, training.restarted(program(given), given.arguments)
        say(f"restart {restarts + 1} of {given.max_restarts}")
    return ended.code


def listed(ranks: Mapping[str, int]) -> str:
    """Write "h1:4,h2:2"."""
    return ",".join(f"{host}:{count}" for host, count in ranks.items())


def command(
    given: argparse.Namespace, library: mpi.Mpi, machines: Machines, ranks: Mapping[str, int]
) -> tuple[list[str], dict[str, str]]:
    """Return the whole command line, and what is added to the environment."""
    extra = shlex.split(given.mpi_args or "")
    line, environment = mpi.command(library, ranks, machines.ssh, extra, machines.system)
    line += [given.python, "-IS", str(RANK), "--hosts", listed(ranks)]
    line += ["--bind"] * (not given.no_bind)
    return [*line, "--", *program(given), "-m", "ddpbp", *given.arguments], environment


def requeue(system: str) -> None:
    """Put the job that this runs in back into the queue."""
    if system != "slurm":
        raise LaunchError("--requeue is for a Slurm job; the templates of PBS and LSF do it there")
    hosts.ask(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])


def output(given: argparse.Namespace) -> Output:
    """Return where the ranks' lines go."""
    try:
        if given.log_dir:
            given.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--log-dir {given.log_dir}: {error.strerror}") from None
    colour = given.color == "always" or (
        given.color != "never" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    return Output(given.show or "all", given.log_dir, colour=colour)


def explain(ended: Ended, python: Sequence[str], arguments: Sequence[str]) -> None:
    """Say what went wrong and where, unless the ranks agreed and have said it themselves."""
    if ended.asked and ended.code == 128 + ended.asked:
        again = " for the second time" * ended.forced
        say(f"ended by {signal.Signals(ended.asked).name}{again}")
        if training.is_training(arguments) and not ended.forced:
            say("the training had not begun; nothing is lost")
            ended.code = REQUEUE
        return
    if ended.agreed and not ended.held:
        return
    fault = training.fault(python, arguments)
    if not any(ended.codes.values()):  # they were ended before they could tell
        ended.code = fault.get("exit_code", ended.code)
    rank = fault.get("rank", ended.first_failed)
    if rank is None:
        for line in ended.said:
            say(line)
        silent = sorted(set(ended.hosts) - set(ended.codes))
        ranks = ", ".join(f"{rank} on {ended.hosts[rank]}" for rank in silent)
        heard = f"nothing was heard of the end of rank {ranks}" if ranks else "no rank started"
        say(f"{heard}; exit code {ended.code}")
        return
    host = ended.hosts.get(rank, fault.get("host", "?"))
    code = ended.codes.get(rank, ended.code)
    where = f"rank {rank} on {host}"
    if "step" in fault:
        seen = f"step {fault['step']}, {fault['phase']}" if "phase" in fault else ""
        where += f", {seen or 'after step ' + str(fault['step'])}"
    what = f"{where}: {fault.get('cause', 'failed')}"
    if code > 128:
        what = f"{where}: killed by signal {code - 128} ({signal.Signals(code - 128).name})"
    elif "last seen" in fault.get("cause", ""):  # by the others: they have named all
        what = fault["cause"]
    say(f"{what}; exit code {code}")
    for line in ended.held.get(rank, []):
        sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
