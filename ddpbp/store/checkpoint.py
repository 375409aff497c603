"""Checkpoints: the state that a run resumes from, bit for bit, on any number of ranks.

A checkpoint is a folder `checkpoints/step-00001200` of the run folder: `model.safetensors`, a model
file with the optimizer's vectors beside the weights, and `state.json`. It is written under another
name, flushed to the disk and renamed. The file `latest` names the newest checkpoint, and `best`
that with the least loss where `checkpoint.keep_best` keeps some. Nothing in a checkpoint depends on
the number of ranks.

Formats of state.json
---------------------
1   Without a format number; read, no longer written.
2   With its number, and with the state of callbacks.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy.typing as npt

from ddpbp.base.hashing import digest
from ddpbp.errors import DataError, DdpbpError
from ddpbp.store.files import (
    NewerFormat,
    json_text,
    read_bytes,
    read_json,
    require_format,
    sync_folder,
    write_synced,
    write_whole,
)
from ddpbp.store.model_file import StoredModel, encode_model, read_model_and_optimizer
from ddpbp.store.run_folder import CHECKPOINTS, MODEL, metrics_until

Array = npt.NDArray[Any]

FORMAT = 2
STATE = "state.json"
LATEST = "latest"
BEST = "best"
PREFIX = "step-"


class Progress(msgspec.Struct, kw_only=True):
    """How far a run has come: its place in the data, and the sums of the epoch it is in."""

    epoch: int = 0
    """Completed epochs."""
    position: int = 0
    """Examples of the current epoch that have been learned from."""
    loss_sum: float = 0.0
    """The sum of their losses."""
    scores: dict[str, float | None] = msgspec.field(default_factory=dict)
    """The scores of the last completed epoch."""
    best_epoch: int = 0
    """The epoch with the least loss so far."""
    best_loss: float | None = None
    """The loss of that epoch."""


class State(msgspec.Struct, kw_only=True):
    """The content of state.json."""

    format: int = FORMAT
    """Of this file, see above."""
    version: str
    """Of ddpbp."""
    step: int
    seed: int
    progress: Progress
    score: float | None
    """The loss of exactly these weights, where they have been evaluated; less is better."""
    learning_rate: float
    """η of the last step; the schedule is a function of the step."""
    optimizer_products: list[float]
    callbacks: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """The state of callbacks, by the name of their class."""
    config: dict[str, Any]
    config_sha256: str
    data_sha256: str
    canary_sha256: str
    environment: dict[str, Any]
    """What else the bits depend on: see `blas.fingerprint`."""
    theta_sha256: str = ""
    model_sha256: str = ""
    """Of the model file beside this one."""
    sha256: str = ""
    """Of this state, with "" in this place."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read and verified; `vectors` are θ and those of the optimizer."""

    path: Path
    state: State
    vectors: dict[str, Array]


def name_of(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"{PREFIX}{step:08d}"


def write_checkpoint(
    folder: str | Path, model: StoredModel, vectors: Mapping[str, Array], state: State
) -> Path:
    """Write one checkpoint below `folder`, whole or not at all, and make it the latest.

    Parameters
    ----------
    folder : str or Path
        The folder of all checkpoints of the run.
    model : StoredModel
    vectors : mapping of str to array
        θ, which is written as the weights of the model, and those of the optimizer.
    state : State
        Its hashes are computed here.

    Raises
    ------
    DdpbpError
        If it cannot be written; an earlier one stays as it was.
    """
    folder = Path(folder)
    path = folder / name_of(state.step)
    temporary, old = folder / f".{path.name}.tmp", folder / f".{path.name}.old.tmp"
    try:
        for remains in (temporary, old):
            shutil.rmtree(remains, ignore_errors=True)
        temporary.mkdir(parents=True)
        theta_sha256 = digest([model.theta.flat])
        optimizer = {name: vector for name, vector in vectors.items() if name != "theta"}
        pieces = encode_model(model, theta_sha256, optimizer)
        model_sha256 = write_synced(temporary / MODEL, pieces)
        state = msgspec.structs.replace(
            state, theta_sha256=theta_sha256, model_sha256=model_sha256, sha256=""
        )
        state.sha256 = _json_sha256(state)
        write_synced(temporary / STATE, [json_text(state)])
        sync_folder(temporary)
        if path.exists():  # of a run that was taken back to an earlier step
            path.rename(old)
        temporary.rename(path)
        write_whole(folder / LATEST, [f"{path.name}\n".encode()])
    except (OSError, DdpbpError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DdpbpError(f"checkpoint {path} cannot be written: {reason}") from None
    shutil.rmtree(old, ignore_errors=True)
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify all its hashes.

    Raises
    ------
    DataError
        If it is damaged or of a format that this version of ddpbp does not know.
    """
    path = Path(path)
    state = read_state(path)
    try:
        with (path / MODEL).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path / MODEL} cannot be read: {error.strerror}") from None
    if sha256 != state.model_sha256:
        raise DataError(
            f"{path / MODEL} is damaged: its SHA-256 is {sha256[:12]}..., it was written with "
            f"{state.model_sha256[:12]}..."
        )
    model, vectors = read_model_and_optimizer(path / MODEL)
    return Checkpoint(path, state, {"theta": model.theta.flat, **vectors})


def read_state(path: str | Path) -> State:
    """Read and verify state.json of a checkpoint.

    Raises
    ------
    DataError
        If it is damaged or of a format that this version of ddpbp does not know.
    """
    file = Path(path) / STATE
    content = read_json(file)
    sha256, content["sha256"] = content.get("sha256"), ""
    intact = _json_sha256(content) == sha256
    try:
        number = require_format(file, content, FORMAT)
    except NewerFormat as error:
        if intact:
            raise
        raise DataError(str(error)) from None  # or a flipped bit: the one before may be taken
    if not intact:
        raise DataError(f"{file} is damaged: its content does not match its hash")
    try:
        return msgspec.convert({**content, "format": number, "sha256": sha256}, State)
    except msgspec.ValidationError as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error}") from None


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def steps_in(folder: str | Path) -> dict[int, Path]:
    """Return the checkpoints below a folder by their step, the newest first."""
    steps = {}
    for path in Path(folder).glob(f"{PREFIX}*"):
        if (step := _step_of(path.name)) is not None:
            steps[step] = path
    return dict(sorted(steps.items(), reverse=True))


def _step_of(name: str) -> int | None:
    digits = name.removeprefix(PREFIX)
    return int(digits) if digits.isdecimal() and name.startswith(PREFIX) else None


def candidates(folder: str | Path) -> list[Path]:
    """List the checkpoints to resume from: the one that `latest` names, then those before it."""
    steps = steps_in(folder)
    try:
        latest = _step_of(read_bytes(Path(folder) / LATEST, 100).decode("ascii").strip())
    except (DataError, UnicodeDecodeError):
        latest = None
    if latest is None:
        return list(steps.values())
    # A newer one belongs to a run that was taken back to an earlier step.
    return [path for step, path in steps.items() if step <= latest]


def find_checkpoint(
    resume: str | Path, run_folder: str | Path
) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint that is whole.

    Parameters
    ----------
    resume : str or Path
        "auto" looks in the run folder; else the path of a checkpoint or of a run folder.
    run_folder : str or Path

    Returns
    -------
    checkpoint : Checkpoint or None
        None if "auto" finds none.
    notes : list of str
        One for each damaged checkpoint that was passed over.

    Raises
    ------
    DataError
        If all that are there are damaged, or if there is none at the path.
    """
    place = Path(run_folder if resume == "auto" else resume)
    if place.name.startswith(PREFIX) and place.is_dir():
        return read_checkpoint(place), []
    paths = candidates(place / CHECKPOINTS)
    faults: list[str] = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except NewerFormat:  # to pass it over would lose it
            raise
        except DataError as error:
            faults.append(str(error))
        else:
            return checkpoint, [f"{fault}; taking the one before" for fault in faults]
    if paths:
        raise DataError(
            f"{place / CHECKPOINTS}: none of {len(paths)} checkpoints is whole ({faults[0]}); "
            "start again with --overwrite"
        )
    if resume == "auto":
        return None, []
    raise DataError(
        f"--resume {resume}: no checkpoint there; give a run folder, one of its checkpoints, or "
        "auto"
    )


def metrics_of(checkpoint: Checkpoint) -> bytes:
    """Return the metrics of the run as they stood when a checkpoint was made."""
    progress = checkpoint.state.progress
    return metrics_until(checkpoint.path.parent.parent, progress.epoch, checkpoint.state.step)
