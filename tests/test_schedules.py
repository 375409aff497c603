"""Schedules: the factor at boundaries, the warm-up, and the length of a run."""

import math
from typing import Any

import numpy as np
import pytest

from ddpbp.comm.world import World
from ddpbp.config.read import parse
from ddpbp.data.dataset import Dataset, Part
from ddpbp.engine.build import make_trainer
from ddpbp.engine.trainer import Trainer
from ddpbp.nn.schedules import SCHEDULES, ScheduleSettings, factor


def settings(
    *, steps: int = 100, warmup_steps: int = 0, every_epochs: float = 2.0
) -> ScheduleSettings:
    return ScheduleSettings(
        steps=steps,
        steps_per_epoch=10,
        warmup_steps=warmup_steps,
        every_epochs=every_epochs,
        gamma=0.5,
        final_factor=0.1,
    )


def test_constant_stays_at_one():
    assert [factor("constant", step, settings()) for step in (0, 1, 1_000)] == [1.0, 1.0, 1.0]


def test_step_falls_at_its_boundaries_and_not_before():
    actual = [factor("step", step, settings()) for step in (0, 19, 20, 39, 40, 60)]
    assert actual == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]


def test_step_may_fall_within_an_epoch():
    actual = [factor("step", step, settings(every_epochs=0.5)) for step in (4, 5, 9, 10)]
    assert actual == [1.0, 0.5, 0.5, 0.25]


def test_exponential_meets_step_at_its_boundaries():
    actual = [factor("exponential", step, settings()) for step in (0, 10, 20, 40)]
    assert actual == pytest.approx([1.0, math.sqrt(0.5), 0.5, 0.25], rel=1e-14)


def test_cosine_falls_from_one_to_the_final_factor_and_stays():
    actual = [factor("cosine", step, settings()) for step in (0, 25, 50, 75, 100, 101, 10_000)]
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    expected = [1.0, quarter, 0.55, 1.1 - quarter, 0.1, 0.1, 0.1]
    assert actual == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_in_equal_steps_and_then_the_schedule_begins(name):
    s = settings(warmup_steps=4)
    assert [factor(name, step, s) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    later = [factor(name, 4 + step, s) for step in (0, 1, 20, 50)]
    assert later == [factor(name, step, settings()) for step in (0, 1, 20, 50)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_the_run_is_no_fault(name):
    s = settings(steps=-5, warmup_steps=105)
    assert factor(name, 99, s) == 100 / 105
    assert factor(name, 105, s) == pytest.approx(1.0)


def trainer(**optimizer: Any) -> Trainer:
    config = parse(
        {
            "epochs": 3,
            "batch_size": 4,
            "optimizer": {"learning_rate": 0.2, **optimizer},
            "schedule": {"name": "cosine", "warmup_steps": 2, "final_factor": 0.5},
            "loss": {"name": "squared_error"},
        }
    )
    part = Part(np.zeros((10, 2), np.float32), np.zeros((10, 1)))
    dataset = Dataset(part, None, None, None, 1, None, "")
    return make_trainer(config, dataset, World())


def test_the_schedule_of_a_run_ends_with_its_last_epoch():
    built = trainer()
    assert built.shards.steps_per_epoch == 3
    rates = [built.learning_rate(step) for step in (0, 1, 2, 9)]
    assert rates == pytest.approx([0.1, 0.2, 0.2, 0.1], rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_entry_knows_whether_the_length_of_the_run_matters(name):
    factors = {factor(name, 30, settings(steps=steps)) for steps in (50, 100)}
    assert SCHEDULES[name].depends_on_length == (len(factors) > 1)


def test_scaling_rule_knows_batch_sizes_only():
    assert trainer(base_batch_size=16).learning_rate(0) == pytest.approx(0.1 * 4 / 16, rel=1e-15)
    assert trainer(base_batch_size=0).learning_rate(0) == trainer().learning_rate(0)
