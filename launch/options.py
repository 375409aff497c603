"""The launcher's options, and launch.toml, which gives those that the command line does not."""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hosts import LaunchError

SETTINGS = "launch.toml"


def seconds(time: str) -> int:
    """Read a time limit: [D-]H:MM:SS.

    Raises
    ------
    LaunchError
        If it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", time)
    if not found:
        raise LaunchError(f"--time {time}: allowed: [D-]H:MM:SS, as in 2:00:00")
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


class Parser(argparse.ArgumentParser):
    """An argument parser whose faults are one line."""

    def error(self, message: str) -> NoReturn:
        """Tell it as any other wrong use."""
        raise LaunchError(f"{message} (see: ddpbp launch --help)")


def parser(description: str | None) -> Parser:
    """Return the options."""
    p = Parser(
        "ddpbp launch", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    where = p.add_argument_group("where the ranks run")
    where.add_argument(
        "-n", type=int, metavar="N", help="ranks (default: all slots; here, all cores)"
    )
    where.add_argument("--hosts", metavar="H:N,...", help="hosts and their slots: h1:4,h2:4")
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="lines 'H slots=N' or 'H:N'")
    where.add_argument("--ppn", type=int, metavar="N", help="ranks of a host at most")
    where.add_argument("--simulate", action="store_true", help="all in one process, for debuggers")
    where.add_argument("--no-bind", action="store_true", help="do not keep ranks to their cores")
    where.add_argument("--ssh", metavar="WORDS", help='the remote shell (default: "ssh")')
    where.add_argument("--python", metavar="PATH", help="the Python of all hosts (default: this)")
    where.add_argument("--container", metavar="IMAGE", help="run the ranks in an Apptainer image")
    where.add_argument("--mpi-args", metavar="WORDS", help="more words for mpiexec or srun")
    shown = p.add_argument_group("what is shown")
    shown.add_argument(
        "--show",
        choices=("all", "labelled", "first"),
        help=(
            "the ranks' lines as they are (default), with rank\nand host, or those of rank 0 alone"
        ),
    )
    shown.add_argument("--color", choices=("auto", "always", "never"), help="of the labels")
    shown.add_argument("--log-dir", type=Path, metavar="DIR", help="a file for each rank there")
    shown.add_argument("--dry-run", action="store_true", help="print what would run; run nothing")
    fails = p.add_argument_group("if it fails")
    fails.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="K",
        help=("start again from the newest checkpoint"),
    )
    fails.add_argument("--elastic", action="store_true", help="go on without hosts that are gone")
    jobs = p.add_argument_group("as a batch job: --dry-run shows it, else it is submitted")
    kinds = jobs.add_mutually_exclusive_group()
    for system in ("slurm", "pbs", "lsf", "kubernetes"):
        kinds.add_argument(f"--{system}", action="store_const", dest="batch", const=system)
    job = jobs.add_argument
    job("--nodes", type=int, default=1, metavar="N", help="hosts, of --ppn ranks each (default 1)")
    job(
        "--time",
        type=seconds,
        default="1:00:00",
        metavar="T",
        help="limit, [D-]H:MM:SS (default 1:00:00)",
    )
    job(
        "--grace",
        type=int,
        default=120,
        metavar="S",
        help="seconds before it to ask for a checkpoint (120)",
    )
    job(
        "--requeue",
        action=argparse.BooleanOptionalAction,
        help="after a checkpoint (code 75) back into the queue\n(default for a batch job)",
    )
    job("--job-name", default="ddpbp", metavar="NAME", help="(default ddpbp)")
    job("--queue", metavar="NAME", help="queue or partition")
    job("--account", metavar="NAME", help="account or project")
    job("--module", action="append", metavar="NAME", help="module to load; may be repeated")
    job("--setup", action="append", metavar="LINE", help="shell line before the start; repeatable")
    job("--directive", action="append", metavar="WORDS", help="more of #SBATCH, #PBS or #BSUB")
    job("--template", type=Path, metavar="FILE", help="your own, instead of launch/templates")
    job("--image", metavar="NAME", help="Kubernetes: the container image")
    job("--mpi", choices=("mpich", "openmpi", "intel"), default="mpich", help="its MPI (mpich)")
    job("--memory", default="4Gi", metavar="SIZE", help="Kubernetes: of a worker (4Gi)")
    job("--shm-size", default="1Gi", metavar="SIZE", help="Kubernetes: its /dev/shm (1Gi)")
    job("--volume", metavar="CLAIM:/PATH", help="Kubernetes: where the run folder is kept")
    p.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help=("any command of ddpbp: train ..., eval ..., bench ..."),
    )
    return p


def parse(words: Sequence[str], description: str | None) -> argparse.Namespace:
    """Read the options; `launch.toml` in this folder stands for those that are not given.

    Raises
    ------
    LaunchError
        Names the option or the key.
    """
    p = parser(description)
    p.set_defaults(**_defaults(p, Path(SETTINGS)))
    given = p.parse_args(words)
    for name in ("n", "ppn", "nodes"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            dashes = "-" if len(name) == 1 else "--"
            raise LaunchError(f"{dashes}{name} {getattr(given, name)}: allowed: 1 or more")
    if given.hosts and given.hostfile:
        raise LaunchError("--hosts and --hostfile exclude each other")
    given.arguments = given.arguments or ["train"]
    given.python = given.python or sys.executable
    return given


def _defaults(p: Parser, file: Path) -> dict[str, Any]:
    """Read the options that a file gives: their long names, and values as on the command line."""
    if not file.is_file():
        return {}
    try:
        settings = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LaunchError(f"{file} cannot be read: {error}") from None
    known = {a.dest: a for a in p._actions if a.dest not in ("help", "batch", "arguments")}
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        action = known.get(key.replace("-", "_"))
        if action is None:
            raise LaunchError(f"{file}: {key} is no option; allowed: {', '.join(known)}")
        several = isinstance(action, argparse._AppendAction)
        values = value if several and isinstance(value, list) else [value]
        kind: type = bool if action.nargs == 0 else int if action.type is int else str
        word = {bool: "true or false", int: "a number", str: "a text"}[kind]
        if not all(isinstance(v, kind) and v in (action.choices or [v]) for v in values):
            allowed = ", ".join(action.choices or [word])
            raise LaunchError(f"{file}: {key} = {value!r}: allowed: {allowed}")
        convert = action.type if callable(action.type) else lambda v: v
        values = [convert(v) for v in values]
        defaults[action.dest] = values if several else values[0]
    return defaults


def inner(given: argparse.Namespace) -> list[str]:
    """Return the options that a batch job's own launcher gets: those of its ranks."""
    words = []
    for name in ("n", "ssh", "container", "mpi_args", "show", "log_dir"):
        if (value := getattr(given, name)) is not None:
            words += ["-n", str(value)] if name == "n" else [f"--{name.replace('_', '-')}={value}"]
    words += ["--no-bind"] * given.no_bind + ["--elastic"] * given.elastic
    words += [f"--max-restarts={given.max_restarts}"] * bool(given.max_restarts)
    return words + ["--requeue"] * (given.requeue and given.batch == "slurm")
