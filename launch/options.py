"""The launcher's options, and launch.toml, which gives those that the command line does not."""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hosts import LaunchError

SETTINGS = "launch.toml"


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
    known = {a.dest: a for a in p._actions if a.dest not in ("help", "arguments")}
    file = Path(SETTINGS)
    if file.is_file():
        try:
            settings = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LaunchError(f"{file} is not TOML: {error}") from None
        for key, value in settings.items():
            action = known.get(key.replace("-", "_"))
            if action is None:
                raise LaunchError(f"{file}: {key} is no option; allowed: {', '.join(known)}")
            kind = bool if action.nargs == 0 else int if action.type is int else str
            if not isinstance(value, kind) or (action.choices and value not in action.choices):
                allowed = action.choices or {bool: "true or false", int: "a number"}.get(
                    kind, "text"
                )
                raise LaunchError(f"{file}: {key} = {value!r}: allowed: {allowed}")
            value = Path(value) if action.type is Path else value
            p.set_defaults(**{action.dest: value})
    given = p.parse_args(words)
    for name in ("n", "ppn"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise LaunchError(
                f"-{'-' * (len(name) > 1)}{name} {getattr(given, name)}: expected 1 or more"
            )
    if given.hosts and given.hostfile:
        raise LaunchError("--hosts and --hostfile exclude each other")
    given.arguments = given.arguments or ["train"]
    given.python = given.python or sys.executable
    return given
