"""The command line of the launcher, and launch.toml, which holds defaults of its options."""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import LaunchError, print_text
from .mpi import FAMILIES
from .train_command import check_command
from .values import check_all, number, one_line, read, seconds, shown

SETTINGS = "launch.toml"
DESCRIPTION = """\
Start ddpbp on several processes: here, on hosts, in an allocation, or as a batch job.

    ddpbp launch -n 4 train
    ddpbp launch --hosts h1:4,h2:4 train
    ddpbp launch --slurm --nodes 2 --ppn 4 --time 2:00:00 train

After the options comes any command of ddpbp (default: train). In a checkout,
`python launch/launch.py` is the same. Defaults of the options are read from launch.toml in the
working folder, by their long names. A training runs on at most as many ranks as a batch has
leaves (`ddpbp train --dry-run` shows them); a lower micro_batch_size gives more.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help is not lost unseen."""

    def print_help(self, file: object = None) -> None:
        """Print the help."""
        print_text(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Raise a LaunchError, as for any other wrong use."""
        raise LaunchError(one_line(f"{message} (see: ddpbp launch --help)"))


def parser() -> Parser:
    """Return the parser of all options."""
    p = Parser(
        "ddpbp launch",
        description=DESCRIPTION,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    _add_places(p)
    _add_display(p)
    _add_restarts(p)
    _add_batch(p)
    p.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="any command of ddpbp: train ..., eval ..., bench ...",
    )
    return p


def _add_places(p: Parser) -> None:
    add = p.add_argument_group("where the ranks run").add_argument
    add("-n", type=number, metavar="N", help="ranks (default: all slots; here, all cores)")
    add("--hosts", metavar="H:N,...", help="hosts and their slots: h1:4,h2:4")
    add("--hostfile", type=Path, metavar="FILE", help="lines 'H slots=N' or 'H:N'")
    add("--ppn", type=number, metavar="N", help="ranks of a host at most")
    add("--simulate", action="store_true", help="all ranks in one process, for debuggers")
    add("--no-bind", action="store_true", help="do not bind ranks to their cores")
    add("--ssh", metavar="WORDS", help='the remote shell (default: "ssh")')
    add("--python", metavar="PATH", help="the Python of all hosts (default: this one)")
    add("--container", metavar="IMAGE", help="run the ranks in an Apptainer image")
    add("--mpi-args", metavar="WORDS", help="more words for mpiexec or srun")
    add(
        "--which",
        action="store_true",
        help="print the MPI library and the mpiexec that fits it; run nothing",
    )


def _add_display(p: Parser) -> None:
    add = p.add_argument_group("output").add_argument
    add(
        "--show",
        choices=("all", "labelled", "first"),
        help=(
            "the ranks' lines as they are (default), with rank\nand host, or those of rank 0 alone"
        ),
    )
    add("--quiet", action="store_true", help="do not print how many ranks start, and where")
    add("--color", choices=("auto", "always", "never"), help="of the labels")
    add("--log-dir", type=Path, metavar="DIR", help="write a file for each rank there")
    add("--dry-run", action="store_true", help="print what would run; run nothing")


def _add_restarts(p: Parser) -> None:
    add = p.add_argument_group("if it fails").add_argument
    add(
        "--max-restarts",
        type=number,
        default=0,
        metavar="K",
        help="start again from the newest checkpoint, K times at most",
    )
    add("--elastic", action="store_true", help="restart without hosts that are gone")
    add(
        "--meet-seconds",
        type=number,
        default=600,
        metavar="S",
        help="end a training whose ranks have not met by then (600; 0: never)",
    )


def _add_batch(p: Parser) -> None:
    group = p.add_argument_group("as a batch job: --dry-run shows it, else it is submitted")
    add = group.add_argument
    kinds = group.add_mutually_exclusive_group()
    for system in ("slurm", "pbs", "lsf", "kubernetes"):
        kinds.add_argument(f"--{system}", action="store_const", dest="batch", const=system)
    add(
        "--nodes",
        type=number,
        default=1,
        metavar="N",
        help="hosts, of --ppn ranks each (default 1)",
    )
    add(
        "--time",
        type=seconds,
        default="1:00:00",
        metavar="T",
        help="limit, [D-]H:MM:SS (default 1:00:00)",
    )
    add(
        "--grace",
        type=number,
        default=120,
        metavar="S",
        help="ask for a checkpoint this many seconds before the limit (120)",
    )
    add(
        "--requeue",
        action=argparse.BooleanOptionalAction,
        help="after a checkpoint (code 75) back into the queue\n(default for a batch job)",
    )
    add("--job-name", default="ddpbp", metavar="NAME", help="(default ddpbp)")
    add("--queue", metavar="NAME", help="queue or partition")
    add("--account", metavar="NAME", help="account or project")
    add("--module", action="append", metavar="NAME", help="module to load; may be repeated")
    add("--setup", action="append", metavar="LINE", help="shell line before the start; repeatable")
    add("--directive", action="append", metavar="WORDS", help="more of #SBATCH, #PBS or #BSUB")
    add("--template", type=Path, metavar="FILE", help="your own, instead of launch/templates")
    add("--image", metavar="NAME", help="Kubernetes: the container image")
    add("--mpi", choices=tuple(FAMILIES), default="mpich", help="its MPI (mpich)")
    add("--memory", default="4Gi", metavar="SIZE", help="Kubernetes: of a worker (4Gi)")
    add("--shm-size", default="1Gi", metavar="SIZE", help="Kubernetes: its /dev/shm (1Gi)")
    add("--volume", metavar="CLAIM:/PATH", help="Kubernetes: where the run folder is kept")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the options; `launch.toml` in the working folder holds defaults.

    Raises
    ------
    LaunchError
        Names the option, the key or the command that is not allowed.
    """
    p = parser()
    defaults = _defaults(p, Path(SETTINGS))
    p.set_defaults(**defaults)
    options = p.parse_args(words)
    for name, value in vars(options).items():  # what argparse makes of "--ssh=--"
        if name != "arguments" and isinstance(value, list) and (not value or [] in value):
            raise LaunchError(f"--{name.replace('_', '-')}: -- is no value")
    for name in ("n", "ppn", "nodes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            dashes = "-" if len(name) == 1 else "--"
            raise LaunchError(f"{dashes}{name} {value}: allowed: 1 or more")
    for name, other in (("hosts", "hostfile"), ("hostfile", "hosts")):
        if name in defaults and getattr(options, other) != defaults.get(other):
            setattr(options, name, None)  # the other one stands on the command line, which wins
    if options.hosts and options.hostfile:
        raise LaunchError("--hosts and --hostfile exclude each other")
    options.arguments = options.arguments or ["train"]
    options.python = sys.executable if options.python is None else options.python
    check_all(vars(options), options.arguments)
    check_command(options.arguments, options.n)
    return options


def _defaults(p: Parser, file: Path) -> dict[str, Any]:
    """Read defaults from a file: keys are long names, values as on the command line."""
    if not file.is_file():
        return {}
    try:
        settings = tomllib.loads(read(file, str(file)))
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{file} cannot be read: {one_line(str(error))}") from None
    apart = ("help", "batch", "arguments", "which")
    known = {action.dest: action for action in p._actions if action.dest not in apart}
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        action = known.get(key.replace("-", "_"))
        if action is None:
            raise LaunchError(f"{file}: {shown(key)} is not an option; allowed: {', '.join(known)}")
        repeatable = isinstance(action, argparse._AppendAction)
        values = value if repeatable and isinstance(value, list) else [value]
        try:
            values = [_as_on_the_command_line(action, one) for one in values]
        except (ValueError, argparse.ArgumentTypeError):
            allowed = ", ".join(action.choices or [WORD_FOR[_kind(action)]])
            raise LaunchError(f"{file}: {key} = {shown(value)}: allowed: {allowed}") from None
        defaults[action.dest] = values if repeatable else values[0]
    return defaults


WORD_FOR = {bool: "true or false", int: "a number, of 7 digits at most", str: "a text"}


def _kind(action: argparse.Action) -> type:
    return bool if action.nargs == 0 else int if action.type is number else str


def _as_on_the_command_line(action: argparse.Action, value: Any) -> Any:
    """Convert a value of launch.toml as argparse converts that of its option."""
    if type(value) is not _kind(action) or value not in (action.choices or [value]):
        raise ValueError
    return action.type(str(value)) if callable(action.type) else value


def inner_words(options: argparse.Namespace) -> list[str]:
    """Return the options that the launcher inside a batch job gets: those of its ranks."""
    words = []
    for name in ("n", "ssh", "container", "mpi_args", "show", "log_dir"):
        if (value := getattr(options, name)) is not None:
            words += ["-n", str(value)] if name == "n" else [f"--{name.replace('_', '-')}={value}"]
    words += ["--no-bind"] * options.no_bind + ["--elastic"] * options.elastic
    for name, default in (("max_restarts", 0), ("meet_seconds", 600)):
        if (value := getattr(options, name)) != default:
            words.append(f"--{name.replace('_', '-')}={value}")
    return words + ["--requeue"] * (options.requeue and options.batch == "slurm")
