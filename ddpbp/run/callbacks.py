"""Callbacks: hooks at the start of a run, after each step and epoch, and at the end.

A callback runs on every rank with the same numbers, so all ranks do the same. To add one, subclass
`Callback` and pass it to `train`. Every checkpoint holds its `state`, which a resumed run gives to
`restore`.

Importing this module loads no NumPy: a script defines its callbacks before its settings choose the
BLAS kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ddpbp.errors import DdpbpError

if TYPE_CHECKING:
    from ddpbp.engine.trainer import Trainer
    from ddpbp.store.checkpoint import Progress

Scores = dict[str, float | None]


class Running(Protocol):
    """The part of a run that a callback sees and may use."""

    trainer: Trainer
    progress: Progress

    def save(self, score: float | None = None) -> None:
        """Begin to write a checkpoint; call it on all ranks alike."""


class Callback:
    """Empty hooks; override those that matter."""

    def begin(self, run: Running) -> None:
        """Act before the first step of this start, also after a resume."""

    def step(self, run: Running, loss: float) -> None:
        """Act after an update; `loss` is the mean over the batch, over all ranks."""

    def epoch(self, run: Running, scores: Scores) -> None:
        """Act after an epoch, when its scores are known."""

    def end(self, run: Running) -> None:
        """Act after the last epoch."""

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, as plain values of JSON; it is copied."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that `state` returned when the checkpoint was made."""


class CompareRanks(Callback):
    """Compares the weights of all ranks every N steps; 0 leaves it to the end of each epoch.

    Parameters
    ----------
    every_steps : int
    """

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def step(self, run: Running, loss: float) -> None:
        """Compare."""
        if self._every_steps and run.trainer.step % self._every_steps == 0:
            run.trainer.require_in_step()


class SaveCandidates(Callback):
    """Saves a checkpoint after each epoch but the last, for `checkpoint.keep_best` to choose from.

    Parameters
    ----------
    epochs : int
        Of the run; after the last one the run saves anyway.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def epoch(self, run: Running, scores: Scores) -> None:
        """Save, with the loss by which checkpoints are compared."""
        if run.progress.epoch < self._epochs:
            run.save(score=judged_by(scores))


def named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Return callbacks by the names of their states: the class, the second of one as "Name-2"."""
    names: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        count = 1 + sum(type(other).__name__ == kind for other in names.values())
        names[kind if count == 1 else f"{kind}-{count}"] = callback
    return names


def states_of(callbacks: Sequence[Callback]) -> dict[str, dict[str, Any]]:
    """Return copies of what callbacks remember: a checkpoint is written beside the next steps.

    Raises
    ------
    DdpbpError
        If JSON would not give back the same.
    """
    states: dict[str, dict[str, Any]] = {}
    for name, callback in named(callbacks).items():
        state, reason = callback.state(), "JSON would change some"
        try:
            states[name] = msgspec.json.decode(msgspec.json.encode(state))
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error)
        if states.get(name) != state or not isinstance(state, dict):
            raise DdpbpError(
                f"callback {name}: state() must return plain values of JSON (a dictionary of text, "
                f"finite numbers, lists, true, false, None): {reason}"
            )
    return {name: state for name, state in states.items() if state}


def judged_by(scores: Scores) -> float:
    """Return the loss that an epoch is judged by: of validation, else of training."""
    loss = scores.get("validation_loss", scores["train_loss"])
    return math.inf if loss is None else loss
