"""Learning-rate schedules, as a table: the factor on η at a step.

To add one, write its function and give it an entry in `SCHEDULES`; nothing else names it. A
schedule is a function of the step alone, counted from the end of the warm-up. NumPy is not imported
here: `config.write` needs this table before NumPy is set up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The numbers of all schedules; each reads its own."""

    steps: int
    """Steps from the end of the warm-up to the end of the run."""
    steps_per_epoch: int
    warmup_steps: int = 0
    every_epochs: float = 10.0
    gamma: float = 0.1
    final_factor: float = 0.0


def _constant(step: int, s: ScheduleSettings) -> float:
    return 1.0


def _step(step: int, s: ScheduleSettings) -> float:
    # γ^⌊epoch / every⌋
    drops = int(step / (s.every_epochs * s.steps_per_epoch))
    return float(math.prod([s.gamma] * drops))


def _exponential(step: int, s: ScheduleSettings) -> float:
    # γ^(epoch / every)
    return math.exp(math.log(s.gamma) * step / (s.every_epochs * s.steps_per_epoch))


def _cosine(step: int, s: ScheduleSettings) -> float:
    # f + (1 - f) ½ (1 + cos(π t / T))      (Loshchilov and Hutter 2017)
    share = min(1.0, step / max(1, s.steps))
    return s.final_factor + (1.0 - s.final_factor) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Schedule:
    """One schedule.

    Attributes
    ----------
    factor : (step, settings) -> float
        The factor on η at a step from the end of the warm-up, counted from 0.
    depends_on_length : bool
        Whether it reads `steps`, the length of the run: a run may then not be made longer.
    """

    factor: Callable[[int, ScheduleSettings], float]
    depends_on_length: bool = False


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(_constant),
    "step": Schedule(_step),
    "exponential": Schedule(_exponential),
    "cosine": Schedule(_cosine, depends_on_length=True),
}


def factor(name: str, step: int, settings: ScheduleSettings) -> float:
    """Return the factor on the learning rate at `step`, counted from 0.

    The factor rises linearly to 1 over the `warmup_steps` first steps (Goyal et al. 2017); then the
    schedule `name` begins.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[name].factor(step - warmup, settings)
