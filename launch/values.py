"""What a value may be before it enters a command line, a job script or a YAML: one table.

Every text of the launcher is one line of printable characters. A value that another program reads
as a word (a host, an account, a job name) has a form which no shell, no option parser and no batch
system can take for anything else. All others are quoted where they are used, by the library that
knows the format; what is shell by purpose (`--setup`, `--directive`, `--ssh`, `--mpi-args`) is the
user's own.
"""

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import LaunchError

TEXT_CHARACTERS = 65_536  # of one value: the kernel takes 131,072 bytes as one argument
FILE_BYTES = 16 << 20  # of a hostfile, a template, launch.toml
SHOWN_CHARACTERS = 80  # of a value in a message


class Form(NamedTuple):
    """What a value may be: a pattern, and the same in words."""

    pattern: str
    allowed: str


# In DNS, /etc/hosts or ~/.ssh/config.
HOST = Form(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", "letters, digits and . _ -, first no . or -")
NODE_LIST = Form(r"[A-Za-z0-9_][][A-Za-z0-9_.,-]*", "hosts as Slurm lists them: h[1-3],k7")
TASKS = Form(
    r"[0-9]{1,7}(\(x[0-9]{1,6}\))?(,[0-9]{1,7}(\(x[0-9]{1,6}\))?)*", "as Slurm writes it: 2(x3),1"
)
FILE_NAME = Form(
    r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}",
    "letters, digits and . _ + -, first a letter, digit or _, 200 at most",
)
WORD = Form(
    r"[A-Za-z0-9_][A-Za-z0-9_.,:@/+=-]{0,499}",
    "letters, digits and . _ , : @ / + = -, first a letter, digit or _, 500 at most",
)
KUBERNETES_NAME = Form(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", "lower case, digits and -")
QUANTITY = Form(r"[0-9]{1,9}(\.[0-9]{1,9})?(m|[kMGT]i?)?", "as in 512Mi or 4Gi")
VOLUME = Form(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?:/[^:]*", "CLAIM:/PATH")
LINE = Form(r".+", "one line of printable characters")
PATH = Form(r"[^-].*", "one line of printable characters, the first not -")
MODULE = Form(r"[^-\s]\S*", "one word of printable characters, the first not -; repeat --module")
ARGUMENT = Form(r"(?!:$).*", 'printable characters on one line, and not ":" alone')

FORMS = {
    "hosts": PATH,  # each host has its own form, see `hosts`
    "hostfile": PATH,
    "ssh": PATH,
    "python": PATH,
    "container": PATH,
    "mpi_args": LINE,
    "log_dir": PATH,
    "job_name": FILE_NAME,
    "queue": WORD,
    "account": WORD,
    "module": MODULE,
    "setup": LINE,
    "directive": LINE,
    "template": PATH,
    "image": WORD,
    "memory": QUANTITY,
    "shm_size": QUANTITY,
    "volume": VOLUME,
}


def one_line(text: str, characters: int = 1000) -> str:
    """Return a text for a message: what does not print as an escape, and cut if it is long."""
    cut = text if len(text) <= characters else text[:characters] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def shown(value: object) -> str:
    """Return a value for a message."""
    try:
        text = str(value)
    except ValueError:  # Python writes no more than 4,300 digits
        text = "a number of thousands of digits"
    return one_line(text, SHOWN_CHARACTERS)


def check(name: str, value: str, form: Form) -> str:
    """Return a value that has its form; `name` stands for it in messages.

    Raises
    ------
    LaunchError
        If it has not: with what is allowed.
    """
    fits = value.isprintable() and re.fullmatch(form.pattern, value, re.ASCII)
    if not fits or len(value) > TEXT_CHARACTERS:
        raise LaunchError(f"{name} {shown(value)}: allowed: {form.allowed}")
    return value


def check_all(options: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Check every text of the options by `FORMS`, and the words of the command.

    Raises
    ------
    LaunchError
        Names the first option that is not of its form.
    """
    for word in arguments:
        check("COMMAND, its word", word, ARGUMENT)
    for name, form in FORMS.items():
        value = options[name]
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | Path):
                check(f"--{name.replace('_', '-')}", str(one), form)
    for line in options["setup"] or ():
        _check_shell(line)


def _check_shell(line: str) -> None:
    """Refuse a line that would reach into the next one: an open quote, a here-document."""
    if (len(line) - len(line.rstrip("\\"))) % 2:
        raise LaunchError(f"--setup {shown(line)}: allowed: a whole line; it ends with a backslash")
    if bash := shutil.which("bash"):
        asked = subprocess.run([bash, "-n"], input=line.encode(), capture_output=True, check=False)
        if asked.returncode or asked.stderr:
            reason = asked.stderr.decode(errors="replace").strip().partition("line 1: ")[2]
            raise LaunchError(
                f"--setup {shown(line)}: allowed: a whole line of bash ({one_line(reason)})"
            )


def words(name: str, text: str | None) -> list[str]:
    """Split a text into words as a shell does.

    Raises
    ------
    LaunchError
        If a quote is open.
    """
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise LaunchError(f"{name} {shown(text)}: allowed: words as in a shell ({error})") from None


def number(text: str) -> int:
    """Read a whole number of at most seven digits, for argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is not one.
    """
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise argparse.ArgumentTypeError(
            f"{shown(text)}: allowed: a whole number, of 7 digits at most"
        )
    return int(text)


def seconds(time: str) -> int:
    """Read a time limit: [D-]H:MM:SS.

    Raises
    ------
    LaunchError
        If `time` is not of this form.
    """
    match = re.fullmatch(
        r"(?:([0-9]{1,4})-)?([0-9]{1,5}):([0-5][0-9]):([0-5][0-9])", time, re.ASCII
    )
    if not match:
        raise LaunchError(f"--time {shown(time)}: allowed: [D-]H:MM:SS, as in 2:00:00")
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def read(file: Path, where: str) -> str:
    """Return the text of a file that a user or a batch system names; `where` is for messages.

    Raises
    ------
    LaunchError
        If it cannot be read, is longer than FILE_BYTES, or is not UTF-8.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES + 1)
        if len(raw) > FILE_BYTES:
            raise LaunchError(f"{where}: it is longer than {FILE_BYTES >> 20} MiB")
        return raw.decode()
    except UnicodeDecodeError:
        raise LaunchError(f"{where}: it is not text in UTF-8") from None
    except OSError as error:
        raise LaunchError(f"{where}: {error.strerror}") from None
