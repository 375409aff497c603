"""Checkpoints: what a run needs to go on, bit for bit, on any number of ranks.

A checkpoint is a folder `checkpoints/step-00001200` of the run folder: `model.safetensors`, the
weights as any model file has them with the optimizer's vectors beside, and `state.json`. It is made
under another name, brought to the disk and renamed; the file `latest` names the newest. Nothing in
it depends on the number of ranks.
"""

import hashlib
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ddpbp.base.hashing import digest
from ddpbp.config.settings import CheckpointConfig
from ddpbp.errors import DataError, DdpbpError
from ddpbp.store.model_file import Model, load_model, model_file
from ddpbp.store.run_folder import (
    CHECKPOINTS,
    MODEL,
    metrics_until,
    sync_folder,
    write_synced,
    write_whole,
)

Array = npt.NDArray[Any]

STATE = "state.json"
LATEST = "latest"


class Progress(msgspec.Struct, kw_only=True):
    """How far a run has come: its place in the data, and the sums of the epoch it is in."""

    epoch: int = 0
    """Epochs that are over."""
    position: int = 0
    """Examples of the running epoch that have been learned from."""
    loss_sum: float = 0.0
    """The sum of their losses."""
    scores: dict[str, float | None] = msgspec.field(default_factory=dict)
    """Of the last epoch that is over."""
    best_epoch: int = 0
    best_loss: float | None = None
    """The epoch with the least loss so far, and that loss."""


class State(msgspec.Struct, kw_only=True):
    """What state.json holds."""

    version: str
    """Of ddpbp."""
    step: int
    seed: int
    progress: Progress
    score: float | None
    """The loss of these very weights, where they have been judged; the less the better."""
    learning_rate: float
    """η of the last step; the schedule is a function of the step."""
    optimizer_products: list[float]
    callbacks: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """What callbacks remember, by the name of their class."""
    config: dict[str, Any]
    config_sha256: str
    data_sha256: str
    canary_sha256: str
    environment: dict[str, Any]
    """What else the bits depend on: see `pin.fingerprint`."""
    theta_sha256: str = ""
    model_sha256: str = ""
    """Of the file beside."""
    sha256: str = ""
    """Of this state, with "" in this place."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read and found whole; `vectors` are θ and those of the optimizer."""

    path: Path
    state: State
    vectors: dict[str, Array]


def name_of(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"step-{step:08d}"


def write(folder: Path, model: Model, vectors: Mapping[str, Array], state: State) -> Path:
    """Write one checkpoint below `folder`, whole or not at all; make it the latest.

    The model's θ is among the vectors; the others stand beside it. The hashes in `state` are filled
    in.

    Raises
    ------
    DdpbpError
        If it cannot be written; what was there before is left as it was.
    """
    path = folder / name_of(state.step)
    temporary, old = folder / f".{path.name}.tmp", folder / f".{path.name}.old.tmp"
    try:
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)
        temporary.mkdir(parents=True)
        beside = {name: vector for name, vector in vectors.items() if name != "theta"}
        state.model_sha256 = write_synced(temporary / MODEL, model_file(model, beside))
        state.theta_sha256 = digest([model.theta.flat])
        state.sha256 = hashlib.sha256(msgspec.json.encode(state)).hexdigest()
        text = msgspec.json.format(msgspec.json.encode(state), indent=2)
        write_synced(temporary / STATE, [text, b"\n"])
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


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify all its hashes.

    Raises
    ------
    DataError
        If it is damaged.
    """
    state = read_state(path)
    try:
        with (path / MODEL).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path / MODEL} cannot be read: {error.strerror}") from None
    if found != state.model_sha256:
        raise DataError(
            f"{path / MODEL} is damaged: its SHA-256 is {found[:12]}..., written was "
            f"{state.model_sha256[:12]}..."
        )
    from safetensors import safe_open

    model = load_model(path)
    with safe_open(path / MODEL, framework="numpy") as opened:  # type: ignore[no-untyped-call]
        names = [name for name in opened.keys() if name.startswith("optimizer.")]  # noqa: SIM118
        vectors = {name: opened.get_tensor(name) for name in names}
    return Checkpoint(path, state, {"theta": model.theta.flat, **vectors})


def read_state(path: Path) -> State:
    """Read state.json of a checkpoint.

    Raises
    ------
    DataError
        If it is damaged.
    """
    file = path / STATE
    try:
        found = msgspec.json.decode(file.read_bytes())
        written, found["sha256"] = found["sha256"], ""
        if hashlib.sha256(msgspec.json.encode(found)).hexdigest() != written:
            raise DataError(f"{file} is damaged: it does not have the hash it was written with")
        return msgspec.convert(found, State)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error}") from None


def steps_in(folder: Path) -> dict[int, Path]:
    """Return the checkpoints below a folder by their step, the newest first."""
    found = {
        int(path.name.removeprefix("step-")): path
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdigit()
    }
    return dict(sorted(found.items(), reverse=True))


def candidates(folder: Path) -> list[Path]:
    """List the checkpoints to go on from: the one that `latest` names, then those before it."""
    steps = steps_in(folder)
    try:
        latest = (folder / LATEST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        latest = ""
    last = max(steps, default=0)
    if latest.removeprefix("step-").isdigit():  # what is newer belongs to a run taken back
        last = int(latest.removeprefix("step-"))
    return [path for step, path in steps.items() if step <= last]


def find(given: str, run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint to go on from, and say what had to be passed over.

    Parameters
    ----------
    given : str
        "auto" looks in the run folder; else the path of a checkpoint or of a run folder.
    run_folder : Path

    Returns
    -------
    checkpoint : Checkpoint or None
        None if `auto` finds none.
    notes : list of str

    Raises
    ------
    DataError
        If there are some, but all of them are damaged; if there is none at the path.
    """
    place = run_folder if given == "auto" else Path(given)
    if place.name.startswith("step-") and place.is_dir():
        return read(place), []
    found = candidates(place / CHECKPOINTS)
    faults: list[str] = []
    for path in found:
        try:
            return read(path), [f"warning: {fault}; taking the one before" for fault in faults]
        except DataError as error:
            faults.append(str(error))
    if found:
        raise DataError(
            f"{place / CHECKPOINTS}: none of {len(found)} checkpoints is whole ({faults[0]}); "
            "start again with --overwrite"
        )
    if given == "auto":
        return None, []
    raise DataError(
        f"--resume {given}: no checkpoint there; give a run folder, one of its checkpoints, or auto"
    )


def metrics_of(checkpoint: Checkpoint) -> bytes:
    """Return the metrics of the run as they stood when a checkpoint was made."""
    progress = checkpoint.state.progress
    return metrics_until(checkpoint.path.parent.parent, progress.epoch, checkpoint.state.step)


def prune(folder: Path, newest: int, settings: CheckpointConfig) -> None:
    """Remove the checkpoints that the settings do not keep; the newest always stays."""
    steps = steps_in(folder)
    keep = set([step for step in steps if step <= newest][: settings.keep_last])
    if settings.keep_best:
        scores = []
        for step, path in steps.items():
            try:
                score = read_state(path).score
            except DataError:
                continue
            if score is not None and step <= newest:
                scores.append((score, step))
        keep.update(step for _, step in sorted(scores)[: settings.keep_best])
    for step, path in steps.items():
        if step not in keep:
            gone = path.with_name(f".{path.name}.old.tmp")
            path.rename(gone)  # at once: half a checkpoint never has a checkpoint's name
            shutil.rmtree(gone, ignore_errors=True)


class Writer:
    """Writes checkpoints beside the training, from copies, one at a time; rank 0 has it.

    Parameters
    ----------
    folder : Path
        The run folder.
    settings : CheckpointConfig
    """

    def __init__(self, folder: Path, settings: CheckpointConfig) -> None:
        self._folder, self._settings = folder / CHECKPOINTS, settings
        self._thread: threading.Thread | None = None
        self._copies: dict[str, Array] = {}
        self._failure: DdpbpError | None = None

    def start(
        self, model: Model, vectors: Mapping[str, Array], state: State, *, wait: bool
    ) -> None:
        """Copy the vectors and begin to write them; nothing may be being written any more.

        With `wait` they are not copied, and written when this returns.
        """
        if wait:
            self._write(model, vectors, state)
            return
        try:
            copies = {name: self._copy(name, vector) for name, vector in vectors.items()}
        except MemoryError:
            self._failure = DdpbpError(f"no memory for a copy of step {state.step} to be saved")
            return
        model = replace(model, theta=model.network.views(copies["theta"]))
        self._thread = threading.Thread(
            target=self._write, name="checkpoint", args=(model, copies, state)
        )
        self._thread.start()

    def _copy(self, name: str, vector: Array) -> Array:
        if name not in self._copies:
            self._copies[name] = np.empty_like(vector)
        np.copyto(self._copies[name], vector)
        return self._copies[name]

    def _write(self, model: Model, vectors: Mapping[str, Array], state: State) -> None:
        try:
            write(self._folder, model, vectors, state)
            prune(self._folder, state.step, self._settings)
        except DdpbpError as error:
            self._failure = error
        except Exception as error:  # whatever it is, the training has to hear of it
            self._failure = DdpbpError(f"checkpoint of step {state.step}: {error!r}")

    def wait(self) -> None:
        """Wait until nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_failure(self) -> DdpbpError | None:
        """Return, once, why a checkpoint could not be written; costs nothing."""
        failure, self._failure = self._failure, None
        return failure
