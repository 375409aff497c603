"""Metrics of real targets, over all of them: √ of the mean square, mean absolute error, R²."""

import math

import numpy as np

from ddpbp.base.tasks import REGRESSION
from ddpbp.metrics.metric import Array, Float64, Metric


def _error(a: Array, y: Array) -> Float64:
    """Return a − y as (n_L, B) float64."""
    return np.ascontiguousarray(a.astype(np.float64) - y.T)


def _squares(a: Array, y: Array) -> Float64:
    error = _error(a, y)
    return np.asarray(np.add.reduce(error * error, axis=1))


def _absolutes(a: Array, y: Array) -> Float64:
    return np.asarray(np.add.reduce(abs(_error(a, y)), axis=1))


def _squares_and_moments(a: Array, y: Array) -> Float64:
    """Return Σ (a − y)², Σ y and Σ y² of each target."""
    targets = np.ascontiguousarray(y.T, np.float64)
    moments = [np.add.reduce(v, axis=1) for v in (targets, targets**2)]
    return np.concatenate([_squares(a, y), *moments])


def _root_mean(sums: Float64, examples: int, outputs: int) -> float:
    return math.sqrt(math.fsum(sums) / (examples * outputs))


def _mean(sums: Float64, examples: int, outputs: int) -> float:
    return math.fsum(sums) / (examples * outputs)


def _r2(sums: Float64, examples: int, outputs: int) -> float | None:
    """Return the mean of 1 − Σ (a − y)² / Σ (y − ȳ)² over the targets that vary, if any does."""
    squares, y, y2 = sums.reshape(3, outputs)
    spread = y2 - y * y / examples
    r2 = [1.0 - s / t for s, t in zip(squares.tolist(), spread.tolist(), strict=True) if t > 0.0]
    return math.fsum(r2) / len(r2) if r2 else None


METRICS = (
    Metric("rmse", (REGRESSION.name,), lambda outputs: outputs, _squares, _root_mean),
    Metric("mae", (REGRESSION.name,), lambda outputs: outputs, _absolutes, _mean),
    Metric("r2", (REGRESSION.name,), lambda outputs: 3 * outputs, _squares_and_moments, _r2),
)
