"""The run folder: which files it holds, and how a run begins in it and leaves it."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from ddpbp.errors import ConfigError, DataError
from ddpbp.store.files import json_text, write_whole

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
RESULT = "result.json"  # its presence is the mark of a complete run
FAULT = "fault.json"
CHECKPOINTS = "checkpoints"
OURS = (RESULT, MODEL, METRICS, CONFIG, CHECKPOINTS, FAULT)


def make_run_folder(folder: str | Path, *, overwrite: bool) -> None:
    """Make the run folder; a run that is there is refused unless `overwrite`.

    Raises
    ------
    ConfigError
        If it holds a run or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in OURS if name != FAULT and (folder / name).exists()]
        if present and not overwrite:
            unfinished = RESULT not in present
            kind = "a run that did not finish" if unfinished else "a run"
            resume = "--resume auto to continue it, or " * unfinished
            raise ConfigError(
                f"output {folder} already holds {kind} ({present[0]}); add {resume}--overwrite to "
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


def begin_run(folder: str | Path, config: str, metrics: bytes | None = None) -> None:
    """Write the configuration of a run that begins, or that is resumed after `metrics`.

    A new run removes all that an earlier one left. A resumed run keeps its checkpoints, and the
    model of its last end until there is a new one; it no longer counts as complete or failed.
    """
    folder = Path(folder)
    for name in OURS if metrics is None else (RESULT, FAULT):
        if name == CHECKPOINTS:
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)
    remove_unfinished(folder)
    write_whole(folder / CONFIG, [config.encode()])
    if metrics is not None:
        write_whole(folder / METRICS, [metrics])


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


def metrics_until(folder: str | Path, epoch: int, step: int) -> bytes:
    """Return the lines of metrics.jsonl as they stood after `epoch` epochs and `step` steps.

    Raises
    ------
    DataError
        If the file cannot be read; a missing one has no lines.
    """
    kept = []
    file = Path(folder) / METRICS
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    for line in lines:
        try:
            record = msgspec.convert(msgspec.json.decode(line), _Record)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):  # cut off by a kill
            break
        if record.epoch <= epoch if record.kind == "epoch" else record.step <= step:
            kept.append(line)
    return b"".join(kept)


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
