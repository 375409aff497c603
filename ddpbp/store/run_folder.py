"""The run folder: which files it holds, and how a run begins in it and leaves it."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ddpbp.errors import ConfigError, DataError
from ddpbp.store.files import NewerFormat, json_text, read_sealed, sealed_json, write_whole

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
RESULT = "result.json"  # its presence is the mark of a complete run
FAULT = "fault.json"
CHECKPOINTS = "checkpoints"
OURS = (RESULT, MODEL, METRICS, CONFIG, CHECKPOINTS, FAULT)
REPLACED = ".replaced"  # holds the run that --overwrite replaces, until the new one saved something
STEPS = "step-*"  # the names of checkpoints

RESULT_FORMAT = 2  # since 2 with its own hash
_SEAL = ("format", "sha256")


def require_free(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless `overwrite`, and one that cannot be written.

    Raises
    ------
    ConfigError
        If it holds a run or cannot be written.
    """
    folder = Path(folder)
    try:
        present = [name for name in OURS if name != FAULT and (folder / name).exists()]
        if present and not overwrite:
            unfinished = RESULT not in present
            kind = "a run that did not finish" if unfinished else "a run"
            resume = "--resume auto to continue it, or " * unfinished
            raise ConfigError(
                f"output {folder} already holds {kind} ({present[0]}); add {resume}--overwrite to "
                "replace it (in Python: overwrite=True), or choose another folder with output=..."
            )
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output {folder} cannot be written ({error.strerror}); choose another folder with "
            "output=..."
        ) from None


def begin_run(
    folder: str | Path, config: str, metrics: bytes | None = None, *, replace: bool
) -> None:
    """Write the configuration of a run that begins, or that is resumed after `metrics`.

    A new run replaces an earlier one, see `set_aside`. A resumed run keeps its checkpoints, and the
    model of its last end until there is a new one; it no longer counts as complete or failed.
    """
    folder = Path(folder)
    if replace:
        set_aside(folder)
    for name in (RESULT, FAULT):
        (folder / name).unlink(missing_ok=True)
    remove_unfinished(folder)
    write_whole(folder / CONFIG, [config.encode()])
    write_whole(folder / METRICS, [metrics or b""])


def set_aside(folder: Path) -> None:
    """Move an earlier run to `.replaced`, where it stays until the new one has saved something.

    What a run left that ended before it saved anything is removed; what that run replaced stays.
    """
    replaced = folder / REPLACED
    if (
        (folder / RESULT).exists()
        or (folder / MODEL).exists()
        or any((folder / CHECKPOINTS).glob(STEPS))
    ):
        held = [name for name in OURS if (folder / name).exists()]
        if any((replaced / name).exists() for name in held):  # else a move that was interrupted
            remove_replaced(folder)
        replaced.mkdir(exist_ok=True)
        for name in held:
            (folder / name).rename(replaced / name)
    else:
        for name in (METRICS, CONFIG, FAULT):
            (folder / name).unlink(missing_ok=True)


def remove_replaced(folder: str | Path) -> None:
    """Remove the run that this one replaced: call once this one has saved something."""
    shutil.rmtree(Path(folder) / REPLACED, ignore_errors=True)


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Write result.json, the mark of a complete run, with its own hash."""
    sealed = sealed_json({"format": RESULT_FORMAT, **result})
    write_whole(Path(folder) / RESULT, [sealed])


def read_result(folder: str | Path) -> dict[str, Any]:
    """Read result.json: numbers, and two hashes as text.

    Raises
    ------
    DataError
        If it is damaged.
    """
    file = Path(folder) / RESULT
    try:
        result = read_sealed(file, RESULT_FORMAT, sealed_since=2)
    except NewerFormat:
        raise
    except DataError as error:
        raise DataError(f"{error}; remove it and resume to write it again") from None
    result = {key: value for key, value in result.items() if key not in _SEAL}
    texts = {key for key, value in result.items() if isinstance(value, str)}
    numbers = all(v is None or isinstance(v, str | int | float) for v in result.values())
    if texts != {"theta_sha256", "canary_sha256"} or not numbers:
        raise DataError(f"{file} is damaged; remove it and resume to write it again")
    return result


def remove_unfinished(folder: str | Path) -> None:
    """Remove the files and checkpoints that a killed process was writing."""
    for place in (Path(folder), Path(folder) / CHECKPOINTS):
        for path in place.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class _Record(msgspec.Struct):
    """The place of a line of metrics.jsonl."""

    kind: str
    epoch: int
    step: int


class MetricsMark(NamedTuple):
    """The metrics as they stood at a checkpoint: their length and their hash."""

    length_bytes: int
    sha256: str


def metrics_until(
    folder: str | Path, epoch: int, step: int, mark: MetricsMark | None = None
) -> tuple[bytes, list[str]]:
    """Return the lines of metrics.jsonl as they stood after `epoch` epochs and `step` steps.

    Parameters
    ----------
    folder : str or Path
    epoch, step : int
    mark : MetricsMark, optional
        Where the checkpoint has one: then the lines are verified.

    Returns
    -------
    lines : bytes
        All that can be read, where the file is damaged.
    notes : list of str
        What is damaged. A last line that was cut off by a kill is not.

    Raises
    ------
    DataError
        If the file cannot be read; a missing one has no lines.
    """
    file = Path(folder) / METRICS
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    if mark:
        verified = content[: mark.length_bytes]
        if (len(verified), hashlib.sha256(verified).hexdigest()) == mark:
            return verified, []
    kept, unreadable = [], []
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = msgspec.convert(msgspec.json.decode(line), _Record)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            unreadable.append(number)
            continue
        if record.epoch <= epoch if record.kind == "epoch" else record.step <= step:
            kept.append(line if line.endswith(b"\n") else line + b"\n")
    if not mark and unreadable == [len(lines)]:  # cut off by a kill
        unreadable.clear()
    return b"".join(kept), _damage(file, unreadable, len(content), mark)


def _damage(
    file: Path, unreadable: list[int], length_bytes: int, mark: MetricsMark | None
) -> list[str]:
    """Return the note on a damaged metrics.jsonl, if it is damaged."""
    if unreadable:
        others = f" and {len(unreadable) - 1} others" if len(unreadable) > 1 else ""
        what = f"line {unreadable[0]}{others} cannot be read"
    elif mark and length_bytes < mark.length_bytes:
        what = f"it has {length_bytes:,} of {mark.length_bytes:,} bytes"
    elif mark:
        what = "its records do not match the hash in the checkpoint"
    else:
        return []
    return [f"{file} is damaged: {what}; the records that can be read are kept"]


def add_missing_records(metrics: bytes, records: Iterable[dict[str, Any]]) -> bytes:
    """Append to the lines of metrics.jsonl those of the records that they lack, in order."""

    def place(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["step"], record["kind"] == "epoch"

    written = {place(msgspec.json.decode(line)) for line in metrics.splitlines()}
    missing = sorted((record for record in records if place(record) not in written), key=place)
    return metrics + b"".join(msgspec.json.encode(record) + b"\n" for record in missing)


def write_fault(folder: str | Path, fault: dict[str, Any]) -> bool:
    """Write fault.json unless another rank was first; return whether this rank reports the fault.

    Parameters
    ----------
    folder : str or Path
    fault : dict
        rank, host, step, phase, cause, exit_code; the time is added.
    """
    text = json_text({**fault, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    try:  # in two calls: a launcher may be about to kill this process too
        file = os.open(Path(folder) / FAULT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(file, text)
        os.close(file)
    except FileExistsError:
        return False
    except OSError:  # the folder is gone or full: the fault must be reported all the same
        return True
    return True
