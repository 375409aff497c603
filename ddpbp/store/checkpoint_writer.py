"""Writing checkpoints beside the training, and removing those that are no longer kept."""

import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ddpbp.config.settings import CheckpointConfig
from ddpbp.errors import DataError, DdpbpError
from ddpbp.store.checkpoint import BEST, State, by_age, read_state, steps_in, write_checkpoint
from ddpbp.store.files import write_whole
from ddpbp.store.model_file import StoredModel
from ddpbp.store.run_folder import CHECKPOINTS, remove_replaced

Array = npt.NDArray[Any]


def prune(folder: str | Path, newest: int, settings: CheckpointConfig) -> None:
    """Remove the checkpoints that the settings do not keep; the newest always stays.

    Where some are kept for their loss, the file `best` names the one with the least, the earlier of
    two that are equal.
    """
    folder = Path(folder)
    steps = steps_in(folder)
    keep = set([step for step in steps if step <= newest][: settings.keep_last])
    best = _best(steps, newest, settings.keep_best)
    keep.update(best)
    if best:
        write_whole(folder / BEST, [f"{steps[best[0]].name}\n".encode()])
    else:
        (folder / BEST).unlink(missing_ok=True)
    for step, path in steps.items():
        if step not in keep:
            removed = path.with_name(f".{path.name}.removed.tmp")
            path.rename(removed)  # at once: half a checkpoint never has a checkpoint's name
            shutil.rmtree(removed, ignore_errors=True)


def _best(steps: Mapping[int, Path], newest: int, count: int) -> list[int]:
    """Return the `count` steps up to `newest` with the least loss, the best first."""
    if not count:
        return []
    scores = []
    for step, path in steps.items():
        try:
            score = read_state(path).score
        except DataError:
            continue
        if score is not None and step <= newest:
            scores.append((score, step))
    return [step for _, step in sorted(scores)[:count]]


class Writer:
    """Writes checkpoints in a thread beside the training, one at a time, from copies.

    Rank 0 has it.

    Parameters
    ----------
    folder : str or Path
        The run folder.
    settings : CheckpointConfig
    """

    def __init__(self, folder: str | Path, settings: CheckpointConfig) -> None:
        self._folder, self._settings = Path(folder) / CHECKPOINTS, settings
        self._serial = -1  # of the last checkpoint in the folder; not read yet
        self._thread: threading.Thread | None = None
        self._copies: dict[str, Array] = {}
        self.failure: DdpbpError | None = None

    def start(
        self, model: StoredModel, vectors: Mapping[str, Array], state: State, *, wait: bool
    ) -> None:
        """Copy the vectors and begin to write them; call only when no write is in progress.

        With `wait` nothing is copied, and the checkpoint is written when this returns.
        """
        if wait:
            self._write(model, vectors, state)
            return
        try:
            copies = {name: self._copy(name, vector) for name, vector in vectors.items()}
        except MemoryError:
            self.failure = DdpbpError(f"no memory for a copy of step {state.step} to be saved")
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

    def _write(self, model: StoredModel, vectors: Mapping[str, Array], state: State) -> None:
        try:
            if self._serial < 0:
                self._serial = max((serial for serial, _ in by_age(self._folder)[0]), default=0)
            self._serial += 1
            state = msgspec.structs.replace(state, serial=self._serial)
            write_checkpoint(self._folder, model, vectors, state)
            remove_replaced(self._folder.parent)
            prune(self._folder, state.step, self._settings)
        except DdpbpError as error:
            self.failure = error
        except Exception as error:  # a thread's exception would be lost: the training reports it
            self.failure = DdpbpError(f"checkpoint of step {state.step}: {error!r}")

    def wait(self) -> None:
        """Wait until no write is in progress."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_failure(self) -> DdpbpError | None:
        """Return, once, why a checkpoint could not be written; costs nothing."""
        failure, self.failure = self.failure, None
        return failure
