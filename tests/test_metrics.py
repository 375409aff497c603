"""Metrics: sums over leaves of any grouping give the value over all examples."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ddpbp.base.tasks import TASKS
from ddpbp.metrics.table import leaf_sums, summarize

N, OUTPUTS = 50, 3
RNG = np.random.default_rng(4)
A = RNG.random((OUTPUTS, N)).astype(np.float32)  # an example a column


def metrics_of(
    task: str, a: npt.NDArray[Any], y: npt.NDArray[Any], *edges: int
) -> dict[str, float]:
    """Return the metrics from leaves cut at `edges`."""
    leaves = pairwise([0, *edges, len(y)])
    sums = sum(leaf_sums(task, a[:, i:j], y[i:j]) for i, j in leaves)
    return summarize(task, np.asarray(sums), len(y), len(a))


def targets(task: str) -> npt.NDArray[Any]:
    if task == "classification":
        return RNG.integers(0, OUTPUTS, N)
    if task == "regression":
        return RNG.normal(size=(N, OUTPUTS))
    return RNG.integers(0, 2, (N, OUTPUTS)).astype(np.float64)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classification", ["accuracy"]),
        ("binary", ["accuracy"]),
        ("multilabel", ["accuracy", "exact_match"]),
        ("regression", ["rmse", "mae", "r2"]),
    ],
)
def test_each_task_reports_these_in_this_order_however_the_leaves_are_cut(task, names):
    y = targets(task)
    whole = metrics_of(task, A, y)
    assert list(whole) == names
    for edges in ((1,), (7, 8, 30)):
        assert metrics_of(task, A, y, *edges) == pytest.approx(whole, rel=1e-12)


def test_every_task_has_a_metric():
    assert all(metrics_of(task, A, targets(task)) for task in TASKS)


def test_accuracy_counts_classes_labels_and_rows():
    y = A.argmax(axis=0)
    y[:10] = (y[:10] + 1) % OUTPUTS
    assert metrics_of("classification", A, y) == {"accuracy": 0.8}
    labels = (A.T >= 0.5).astype(np.float64)
    labels[:5] = 1.0 - labels[:5]  # five rows all wrong
    labels[5:20, 0] = 1.0 - labels[5:20, 0]  # fifteen rows wrong in one label
    assert metrics_of("multilabel", A, labels) == {"accuracy": 120 / 150, "exact_match": 0.6}


def test_regression_metrics_are_those_of_their_definitions():
    y = targets("regression")
    error = A.T.astype(np.float64) - y
    r2 = 1 - (error**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    expected = {
        "rmse": math.sqrt((error**2).mean()),
        "mae": abs(error).mean(),
        "r2": r2.mean(),
    }
    assert metrics_of("regression", A, y, 20) == pytest.approx(expected, rel=1e-12)


def test_r2_leaves_out_targets_that_do_not_vary():
    y = targets("regression")
    y[:, 1] = 2.0
    two = metrics_of("regression", A[[0, 2]], y[:, [0, 2]])
    assert metrics_of("regression", A, y)["r2"] == pytest.approx(two["r2"])
    assert "r2" not in metrics_of("regression", A, np.full((N, OUTPUTS), 2.0))
