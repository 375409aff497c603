"""Checkpoints: the state that a run resumes from, bit for bit, on any number of ranks.

A checkpoint is a folder `checkpoints/step-00001200` of the run folder: `model.safetensors`, a model
file with the optimizer's vectors beside the weights, and `state.json`. It is written under another
name, flushed to the disk and renamed. The newest is that with the largest serial number, which
stands in its state, under its hash. Two files are for people, and nothing depends on them: `latest`
names the newest checkpoint, and `best` that with the least loss where `checkpoint.keep_best` keeps
some. Nothing in a checkpoint depends on the number of ranks (but the metrics, which tell times).

Formats of state.json
---------------------
1   Without a format number; read, no longer written.
2   With its number, and with the state of callbacks.
"""

import hashlib
import re
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
    read_sealed,
    sealed_json,
    sync_folder,
    write_synced,
    write_whole,
)
from ddpbp.store.model_file import StoredModel, encode_model, read_model_and_optimizer
from ddpbp.store.run_folder import CHECKPOINTS, MODEL, STEPS, MetricsMark, metrics_until

Array = npt.NDArray[Any]

FORMAT = 2
STATE = "state.json"
LATEST = "latest"
BEST = "best"
PREFIX = "step-"
OLD = ".old.tmp"  # ends the name of a checkpoint while another takes its place


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
    serial: int = 0
    """How many checkpoints this run folder had seen; 0 in those of earlier versions."""
    metrics: MetricsMark | None = None
    """metrics.jsonl as it stood; None in those of earlier versions."""
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
    temporary, old = folder / f".{path.name}.tmp", folder / f".{path.name}{OLD}"
    try:
        for remains in (temporary, old):
            shutil.rmtree(remains, ignore_errors=True)
        folder.mkdir(exist_ok=True)  # not the run folder: who removed it must be noticed
        temporary.mkdir()
        theta_sha256 = digest([model.theta.flat])
        optimizer = {name: vector for name, vector in vectors.items() if name != "theta"}
        pieces = encode_model(model, theta_sha256, optimizer)
        model_sha256 = write_synced(temporary / MODEL, pieces)
        state = msgspec.structs.replace(state, theta_sha256=theta_sha256, model_sha256=model_sha256)
        write_synced(temporary / STATE, [sealed_json(msgspec.to_builtins(state))])
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
    content = read_sealed(file, FORMAT)
    try:
        return msgspec.convert(content, State)
    except msgspec.ValidationError as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error}") from None


def steps_in(folder: str | Path) -> dict[int, Path]:
    """Return the checkpoints below a folder by their step, the newest first."""
    steps = {}
    for path in Path(folder).glob(STEPS):
        if re.fullmatch(f"{PREFIX}[0-9]{{1,18}}", path.name):
            steps[int(path.name.removeprefix(PREFIX))] = path
    return dict(sorted(steps.items(), reverse=True))


def by_age(folder: str | Path) -> tuple[list[tuple[int, Path]], list[DataError]]:
    """Order the checkpoints below a folder.

    Returns
    -------
    checkpoints : list of (serial, path)
        The newest first; of equal serials that of the later step.
    faults : list of DataError
        One for each checkpoint whose state cannot be read.
    """
    states: list[tuple[int, int, Path]] = []
    faults: list[DataError] = []
    for path in steps_in(folder).values():
        try:
            state = read_state(path)
        except DataError as error:
            faults.append(error)
        else:
            states.append((state.serial, state.step, path))
    return [(serial, path) for serial, _, path in sorted(states, reverse=True)], faults


def make_newest(path: Path) -> None:
    """Give a checkpoint a new serial number, unless it is the newest of its run already.

    A run that is taken back to it continues from here, even if it is killed before it saves again.

    Raises
    ------
    DdpbpError
        If it cannot be written; it stays as it was.
    """
    ages, _ = by_age(path.parent)
    if path in [older for _, older in ages[1:]]:
        state = msgspec.structs.replace(read_state(path), serial=ages[0][0] + 1)
        write_whole(path / STATE, [sealed_json(msgspec.to_builtins(state))])


def finish_exchange(folder: str | Path) -> None:
    """Bring back the checkpoints that a killed process was about to replace by new ones."""
    for old in Path(folder).glob(f".{STEPS}{OLD}"):
        path = old.with_name(old.name[1:].removesuffix(OLD))
        if not path.exists():
            old.rename(path)


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
    ages, faults = by_age(place / CHECKPOINTS)
    for fault in faults:
        if isinstance(fault, NewerFormat):  # to pass it over would lose it
            raise fault
    for _, path in ages:
        try:
            checkpoint = read_checkpoint(path)
        except NewerFormat:
            raise
        except DataError as error:
            faults.append(error)
        else:
            return checkpoint, [f"{fault}; this checkpoint is passed over" for fault in faults]
    if faults:
        raise DataError(
            f"{place / CHECKPOINTS}: none of {len(faults)} checkpoints is whole ({faults[0]}); "
            "start again with --overwrite"
        )
    if resume == "auto":
        return None, []
    raise DataError(
        f"--resume {resume}: no checkpoint there; give a run folder, one of its checkpoints, or "
        "auto"
    )


def metrics_of(checkpoint: Checkpoint) -> tuple[bytes, list[str]]:
    """Return the metrics of the run as they stood when a checkpoint was made: see metrics_until."""
    state, folder = checkpoint.state, checkpoint.path.parent.parent
    return metrics_until(folder, state.progress.epoch, state.step, state.metrics)
