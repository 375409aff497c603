"""The run folder: which files it holds, and how each is written, whole or not at all."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from ddpbp.errors import ConfigError, DdpbpError

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
RESULT = "result.json"  # its presence is the mark of a complete run
FAULT = "fault.json"
CHECKPOINTS = "checkpoints"
OURS = (RESULT, MODEL, METRICS, CONFIG, CHECKPOINTS, FAULT)

Buffer = Any  # bytes, or what has the buffer interface


def write_synced(path: Path, pieces: Iterable[Buffer]) -> str:
    """Write a file to the disk; return the SHA-256 of what was written."""
    hash_ = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            hash_.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return hash_.hexdigest()


def write_whole(path: Path, pieces: Iterable[Buffer]) -> str:
    """Write a file so that a reader sees all of it or the one that was there before.

    Returns
    -------
    str
        The SHA-256 of what was written.

    Raises
    ------
    DdpbpError
        If it cannot be written; what was there before is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        sha256 = write_synced(temporary, pieces)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DdpbpError(f"{path} cannot be written: {error.strerror}") from None
    return sha256


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder survive a loss of power."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole; numbers that are not finite become null."""
    write_whole(path, [msgspec.json.format(msgspec.json.encode(value), indent=2), b"\n"])


def make_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the run folder; a run that is there is refused unless `overwrite`.

    Raises
    ------
    ConfigError
        If it holds a run or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in OURS if name != FAULT and (folder / name).exists()]
        if present and not overwrite:
            unfinished = RESULT not in present
            kind = "a run that did not finish" if unfinished else "a run"
            go_on = "--resume auto to go on with it, or " * unfinished
            raise ConfigError(
                f"output {folder} already holds {kind} ({present[0]}); add {go_on}--overwrite to "
                "replace it, or choose another folder with output=..."
            )
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output {folder} cannot be written ({error.strerror}); choose another folder with "
            "output=..."
        ) from None


def begin_run(folder: Path, config: str, metrics: bytes | None = None) -> None:
    """Write the configuration of the run that begins, or goes on after `metrics`.

    A new run removes all that an earlier one left. A run that goes on keeps its checkpoints and
    the model of its last end, until there is a new one; but no longer is it complete, nor at fault.
    """
    gone = OURS if metrics is None else (RESULT, FAULT)
    for name in gone:
        if name == CHECKPOINTS:
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)
    sweep(folder)
    write_whole(folder / CONFIG, [config.encode()])
    if metrics is not None:
        write_whole(folder / METRICS, [metrics])


def sweep(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for place in (folder, folder / CHECKPOINTS):
        for path in place.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def metrics_until(folder: Path, epoch: int, step: int) -> bytes:
    """Return the lines of metrics.jsonl as they stood after `epoch` epochs and `step` steps."""
    kept = []
    try:
        lines = (folder / METRICS).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            record = msgspec.json.decode(line)
        except msgspec.DecodeError:  # cut off by a kill
            break
        if record["epoch"] <= epoch if record["kind"] == "epoch" else record["step"] <= step:
            kept.append(line)
    return b"".join(kept)


def complete(metrics: bytes, records: Iterable[dict[str, Any]]) -> bytes:
    """Return metrics with those records at their end that are not among them."""

    def place(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["step"], record["kind"] == "epoch"

    there = {place(msgspec.json.decode(line)) for line in metrics.splitlines()}
    lacking = sorted((r for r in records if place(r) not in there), key=place)
    return metrics + b"".join(msgspec.json.encode(record) + b"\n" for record in lacking)


def write_fault(folder: Path, fault: dict[str, Any]) -> bool:
    """Leave fault.json, unless another rank was first; tell whether this one was.

    Parameters
    ----------
    folder : Path
    fault : dict
        rank, host, step, phase, cause, exit_code; the time is added.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    text = msgspec.json.format(msgspec.json.encode({**fault, "time": now}), indent=2) + b"\n"
    try:  # in two calls: a launcher may be about to kill this process too
        file = os.open(folder / FAULT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(file, text)
        os.close(file)
    except FileExistsError:
        return False
    except OSError:  # no folder here, or nothing can be written any more: still a fault to tell
        return True
    return True
