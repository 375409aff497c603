"""All that the launcher knows of `ddpbp train`: how to ask it, and how to resume."""

import json
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts import LaunchError


def _ask(python: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    line = [*python, "-m", "ddpbp", *words, "--no-mpi"]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def is_training(arguments: Sequence[str]) -> bool:
    """Tell whether this is a training: what can be planned, and resumed after a stop."""
    return arguments[0] == "train"


def check(python: Sequence[str], arguments: Sequence[str], ranks: int) -> None:
    """See that so many ranks can run this training, before it waits in a queue.

    Raises
    ------
    LaunchError
        With ddpbp's own words.
    """
    if is_training(arguments):
        asked = _ask(python, *arguments, "--dry-run", "--ranks", str(ranks))
        if asked.returncode:
            raise LaunchError(asked.stderr.strip().removeprefix("ddpbp: "))


def resumed(arguments: Sequence[str]) -> list[str]:
    """Return the command that goes on where this one was interrupted."""
    if not is_training(arguments) or "--resume" in arguments:
        return list(arguments)
    return [*(word for word in arguments if word != "--overwrite"), "--resume", "auto"]


def restarted(python: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return `resumed`; what went on from a checkpoint by name goes on from its own newest."""
    words = resumed(arguments)
    if is_training(words) and words[-1] != "--resume":
        place, folder = words.index("--resume") + 1, _run_folder(python, arguments)
        if folder and (folder / "checkpoints" / "latest").exists():
            words[place] = "auto"
    return words


def fault(python: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what the run folder tells of a failed training: its fault, or its last step."""
    folder = _run_folder(python, arguments)
    if folder is None:
        return {}
    try:
        if (folder / "fault.json").exists():
            return dict(json.loads((folder / "fault.json").read_text()))
        last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
        return {"step": json.loads(last)["step"]}
    except (KeyError, IndexError, OSError, ValueError):
        return {}


def _run_folder(python: Sequence[str], arguments: Sequence[str]) -> Path | None:
    if not is_training(arguments):
        return None
    asked = _ask(python, *arguments, "--print-config")
    try:
        return Path(tomllib.loads(asked.stdout)["output"])
    except (KeyError, ValueError):
        return None
