"""Learning-rate schedules, as a table: the factor on η at a step.

A schedule is a function of the step alone, counted after the warm-up.
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


SCHEDULES: dict[str, Callable[[int, ScheduleSettings], float]] = {
    "constant": _constant,
    "step": _step,
    "exponential": _exponential,
    "cosine": _cosine,
}


def factor(name: str, step: int, settings: ScheduleSettings) -> float:
    """Return the factor on the learning rate at `step`, counted from 0.

    The warm-up rises linearly to 1 over `warmup_steps` steps (Goyal et al. 2017); then the
    schedule `name` begins.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[name](step - warmup, settings)
