"""How a run starts: from the beginning, or from a checkpoint that it resumes bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ddpbp.base import blas
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.config.write import differences
from ddpbp.errors import ConfigError, DataError, OutOfStep
from ddpbp.store.checkpoint import Checkpoint, find_checkpoint, finish_exchange, metrics_of
from ddpbp.store.model_file import read_model
from ddpbp.store.run_folder import CHECKPOINTS, RESULT, read_result, require_free


@dataclass
class Start:
    """How a run starts, as rank 0 knows it; the other ranks have an empty one.

    Attributes
    ----------
    checkpoint : Checkpoint or None
        The checkpoint to resume from.
    force : bool
        Resume although the numbers will differ.
    replace : bool
        The run replaces what another left in the folder, instead of continuing it.
    result : dict or None
        The content of result.json, if the run is already complete.
    notes : list of str
        Lines for the report.
    records : list of dict
        The last records of the metrics, where the file may lack them.
    """

    checkpoint: Checkpoint | None = None
    force: bool = False
    replace: bool = False
    result: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int | None:
        """The step to resume from."""
        return self.checkpoint and self.checkpoint.state.step

    @property
    def vectors(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """θ and the vectors of the optimizer."""
        return self.checkpoint and self.checkpoint.vectors

    def foremost(self, world: World) -> "tuple[int, Start]":
        """Find the rank that is farthest: where ranks were lost, some missed the last step.

        Returns
        -------
        root : int
        start : Start
            Its checkpoint, without the vectors, and records.

        Raises
        ------
        OutOfStep
            On every rank, if two that are equally far do not hold the same weights.
        """
        mine = None
        if self.checkpoint:
            state = self.checkpoint.state
            mine = state.progress.epoch, state.step, state.theta_sha256
        roots = world.decide(mine, _foremost)
        if len(roots) > 1:
            raise OutOfStep(f"ranks {roots} differ in the weights they hold")
        (root,) = roots
        checkpoint = self.checkpoint and self.checkpoint._replace(vectors={})
        return root, world.broadcast(Start(checkpoint, records=self.records), root)

    def refuse(self, difference: str) -> None:
        """Refuse to resume with other numbers; if forced, note the difference instead."""
        assert self.checkpoint is not None
        text = f"{self.checkpoint.path} was made with other settings, data or software: "
        text += difference
        if not self.force:
            raise ConfigError(f"{text}; undo the change, or resume all the same with --force")
        self.notes.append(f"{text}; resuming because of --force")

    def require_fit(self, vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Refuse a checkpoint of another network or optimizer, forced or not.

        Parameters
        ----------
        vectors : mapping of str to array
            Those of this network and optimizer.

        Raises
        ------
        ConfigError
            Lists the vectors that the checkpoint holds and those that are needed.
        """
        if self.checkpoint is None:
            return
        held, needed = (
            ", ".join(f"{name} {vector.dtype} ({vector.size:,})" for name, vector in some.items())
            for some in (self.checkpoint.vectors, vectors)
        )
        if held != needed:
            raise ConfigError(
                f"{self.checkpoint.path} holds {held}; this network and optimizer need {needed}: "
                "take the model and optimizer settings of the checkpoint, or start a new run"
            )

    def require_same_numbers(self, data_sha256: str, canary: str) -> None:
        """Refuse other data, or a machine that computes other bits, than the checkpoint's.

        Raises
        ------
        ConfigError
            Names what differs, unless forced.
        """
        if self.checkpoint is None:
            return
        state = self.checkpoint.state
        if data_sha256 != state.data_sha256:
            self.refuse(f"the data have the hash {data_sha256[:12]}, not {state.data_sha256[:12]}")
        if canary != state.canary_sha256:
            now = blas.fingerprint()
            changed = [
                f"{name} {before} → {now.get(name)}"
                for name, before in state.environment.items()
                if before != now.get(name)
            ]
            self.refuse(
                f"the canary has the hash {canary[:12]}, not {state.canary_sha256[:12]} "
                f"({'; '.join(changed) or 'same versions, kernel and CPU features'})"
            )


def _foremost(places: list[tuple[int, int, str] | None]) -> list[int]:
    """Return the last rank of the farthest, for each value of the weights that these hold."""
    farthest = max((place[:2] for place in places if place), default=None)
    hashes = {
        place[2]: rank for rank, place in enumerate(places) if place and place[:2] == farthest
    }
    return sorted(hashes.values()) or [0]


def find_start(
    config: Config, folder: str | Path, *, overwrite: bool, resume: str | None, force: bool
) -> Start:
    """Find, on rank 0, how a run in `folder` starts; a run that is there is not changed.

    Raises
    ------
    ConfigError
        If a run is in the way, or the checkpoint was made with other settings.
    DataError
        If there is no checkpoint at the path in `resume`, or none that is whole.
    """
    folder = Path(folder)
    if resume is None:
        require_free(folder, overwrite=overwrite)
        return Start(replace=True)
    finish_exchange(folder / CHECKPOINTS)
    checkpoint, notes = find_checkpoint(resume, folder)
    in_place = checkpoint is None or checkpoint.path.resolve().parent.parent == folder.resolve()
    complete = in_place and (folder / RESULT).exists()
    if checkpoint is None and complete:
        raise ConfigError(
            f"output {folder} holds a complete run without a checkpoint; add --overwrite (without "
            "--resume) to replace it, or choose another folder with output=..."
        )
    require_free(folder, overwrite=overwrite or in_place)
    start = Start(checkpoint, force, replace=not in_place, notes=notes)
    if checkpoint is None:
        start.notes.append(f"no checkpoint in {folder}: starting from the beginning")
        return start
    _require_same_course(start, checkpoint, config)
    progress = checkpoint.state.progress
    if complete and progress.epoch == config.epochs:
        start.result = read_result(folder)
        start.notes += metrics_of(checkpoint)[1]
        try:
            read_model(folder)
        except DataError as error:
            start.result = None  # the end is written again
            start.notes.append(f"{error}; it is written again")
    start.notes.append(
        f"continuing from {checkpoint.path}: step {checkpoint.state.step}, epoch "
        f"{progress.epoch + 1} after {progress.position} of its examples"
    )
    return start


def _require_same_course(start: Start, checkpoint: Checkpoint, config: Config) -> None:
    """Refuse other settings than the checkpoint's, and fewer epochs than it has begun."""
    state = checkpoint.state
    if changes := differences(state.config, config):
        start.refuse("; ".join(changes))
    begun = state.progress.epoch + (state.progress.position > 0)
    if begun > config.epochs:
        raise ConfigError(
            f"epochs = {config.epochs}, but {checkpoint.path} is in epoch {begun}: raise epochs"
        )
