"""All that the launcher knows of ddpbp: its commands, how to resume, where a fault is kept."""

import json
import shlex
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import LaunchError
from .values import one_line, shown

# Every command of ddpbp but `launch`.
COMMANDS = ("bench", "config", "data", "doctor", "eval", "gradcheck", "plan", "predict", "train")


def _ask(python: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    line = [*python, "-m", "ddpbp", *words, "--no-mpi"]
    try:
        asked = subprocess.run(
            line, capture_output=True, check=False, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise LaunchError(f"{shown(python[0])}: {error.strerror}") from None
    last = asked.stderr.strip().rpartition("\n")[2]
    if "No module named" in last and not last.startswith("ddpbp:"):
        raise cannot_run(python, last)
    return asked


def cannot_run(python: Sequence[str], reason: str) -> LaunchError:
    """Return what to do where a Python lacks ddpbp."""
    line = one_line(shlex.join(python))
    return LaunchError(
        f"{line} cannot run ddpbp ({one_line(reason)}); name a Python that has it: "
        f"--python PATH, or install it: {line} -m pip install 'ddpbp[mpich]'"
    )


def check_command(arguments: Sequence[str], ranks: int | None) -> None:
    """Refuse a word that is not a command of ddpbp; `ranks` is for the advice.

    Raises
    ------
    LaunchError
        Lists the commands, and shows how to start another script.
    """
    if arguments[0] not in COMMANDS:
        script = " ".join(arguments)
        if arguments[0].endswith(".py"):
            script = f"python {script}"
        raise LaunchError(
            f"{arguments[0]} is not a command of ddpbp; allowed: {', '.join(COMMANDS)}; to start a "
            f"script of your own: mpirun -n {ranks or 4} {script}"
        )


def is_training(arguments: Sequence[str]) -> bool:
    """Return whether this is a training, which can be checked beforehand and resumed."""
    return arguments[0] == "train"


def check(python: Sequence[str], arguments: Sequence[str], ranks: int) -> None:
    """Check that this number of ranks can run this training, before it waits in a queue.

    Raises
    ------
    LaunchError
        With the message of ddpbp.
    """
    if is_training(arguments):
        asked = _ask(python, *arguments, "--dry-run", "--ranks", str(ranks))
        if asked.returncode:
            raise LaunchError(asked.stderr.strip().removeprefix("ddpbp: "))


def resumed(arguments: Sequence[str]) -> list[str]:
    """Return the command that continues where this one was interrupted."""
    if not is_training(arguments) or "--resume" in arguments:
        return list(arguments)
    return [*(word for word in arguments if word != "--overwrite"), "--resume", "auto"]


def restarted(python: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return `resumed`; a run that began from a named checkpoint continues from its own newest."""
    words = resumed(arguments)
    if is_training(words) and words[-1] != "--resume":
        place, folder = words.index("--resume") + 1, _run_folder(python, arguments)
        if folder and any((folder / "checkpoints").glob("step-*")):
            words[place] = "auto"
    return words


def fault(python: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fault that is kept in the run folder of a failed training, or its last step."""
    folder = _run_folder(python, arguments)
    if folder is None:
        return {}
    try:
        if (folder / "fault.json").exists():
            return dict(json.loads((folder / "fault.json").read_text()))
        last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
        return {"step": json.loads(last)["step"]}
    except (KeyError, IndexError, TypeError, OSError, ValueError, RecursionError):
        return {}


def _run_folder(python: Sequence[str], arguments: Sequence[str]) -> Path | None:
    if not is_training(arguments):
        return None
    try:
        asked = _ask(python, *arguments, "--print-config")
        return Path(tomllib.loads(asked.stdout)["output"])
    except (KeyError, ValueError, LaunchError):
        return None
