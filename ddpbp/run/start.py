"""How a run starts: anew, or from a checkpoint whose numbers it would go on with bit for bit."""

import json
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
from ddpbp.store import run_folder
from ddpbp.store.checkpoint import Checkpoint, find


@dataclass
class Start:
    """What rank 0 knows of how a run starts; the other ranks have an empty one.

    Attributes
    ----------
    checkpoint : Checkpoint or None
        What to go on from.
    force : bool
        Go on though the numbers will be other ones.
    result : dict or None
        What result.json holds, if the run is complete already.
    notes : list of str
        To be said.
    records : list of dict
        The last ones of the metrics, where the file may lack them.
    """

    checkpoint: Checkpoint | None = None
    force: bool = False
    result: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int | None:
        """The step to go on from."""
        return self.checkpoint and self.checkpoint.state.step

    @property
    def vectors(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """θ and the vectors of the optimizer."""
        return self.checkpoint and self.checkpoint.vectors

    def foremost(self, world: World) -> "tuple[int, Start]":
        """Find the rank that has come farthest: when others were lost, some missed the last step.

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
        places = world.all_gather_object(mine)
        ahead = max((place[:2] for place in places if place), default=None)
        hashes = {
            place[2]: rank for rank, place in enumerate(places) if place and place[:2] == ahead
        }
        if len(hashes) > 1:
            raise OutOfStep(f"ranks {sorted(hashes.values())} differ in the weights they hold")
        root = max(hashes.values(), default=0)
        found = self.checkpoint and self.checkpoint._replace(vectors={})
        return root, world.broadcast(Start(found, records=self.records), root)

    def refuse(self, what: str) -> None:
        """Refuse to go on with other numbers, unless forced: then note it."""
        assert self.checkpoint is not None
        text = f"{self.checkpoint.path} was made with other settings, data or software: {what}"
        if not self.force:
            raise ConfigError(f"{text}; undo the change, or go on all the same with --force")
        self.notes.append(f"warning: {text}; going on, as forced")

    def require_fit(self, vectors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Refuse a checkpoint of another network or optimizer, forced or not.

        Raises
        ------
        ConfigError
            Says what does not fit.
        """
        if self.checkpoint is None:
            return
        found, needed = (
            ", ".join(f"{name} {vector.dtype} ({vector.size:,})" for name, vector in some.items())
            for some in (self.checkpoint.vectors, vectors)
        )
        if found != needed:
            raise ConfigError(
                f"{self.checkpoint.path} holds {found}; this network and optimizer need {needed}: "
                "take the model and optimizer settings of the checkpoint, or start a new run"
            )

    def require_same_numbers(self, data_sha256: str, canary: str) -> None:
        """Refuse other data, or a machine that computes other bits, than the checkpoint's.

        Raises
        ------
        ConfigError
            Says what differs, unless forced.
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


def prepare(
    config: Config, folder: Path, *, overwrite: bool, resume: str | None, force: bool
) -> Start:
    """Find out, on rank 0, how a run in `folder` starts; nothing of a run there is touched.

    Raises
    ------
    ConfigError
        If a run is in the way, or the checkpoint was made with other settings.
    DataError
        If there is nothing to go on from.
    """
    if resume is None:
        run_folder.make_run_folder(folder, overwrite=overwrite)
        return Start()
    found, notes = find(resume, folder)
    in_place = found is None or found.path.resolve().parent.parent == folder.resolve()
    complete = in_place and (folder / run_folder.RESULT).exists()
    if found is None and complete:
        raise ConfigError(
            f"output {folder} holds a complete run without a checkpoint; add --overwrite (without "
            "--resume) to replace it, or choose another folder with output=..."
        )
    run_folder.make_run_folder(folder, overwrite=overwrite or in_place)
    start = Start(found, force, notes=notes)
    if found is None:
        start.notes.append(f"no checkpoint in {folder}: starting from the beginning")
        return start
    state = found.state
    if differing := differences(state.config, config):
        start.refuse("; ".join(differing))
    reached = state.progress
    if reached.epoch + (reached.position > 0) > config.epochs:
        raise ConfigError(
            f"epochs = {config.epochs}, but {found.path} is in epoch "
            f"{reached.epoch + (reached.position > 0)}: raise epochs"
        )
    if complete and reached.epoch == config.epochs:
        start.result = _read_result(folder / run_folder.RESULT)
    start.notes.append(
        f"going on from {found.path}: step {state.step}, epoch {reached.epoch + 1}, "
        f"{reached.position} examples of it seen"
    )
    return start


def _read_result(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
