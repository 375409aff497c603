"""Metrics of classes and of 0/1 targets; both are integer counts."""

import numpy as np

from ddpbp.base.tasks import BINARY, CLASSIFICATION, MULTILABEL
from ddpbp.metrics.metric import Array, Float64, Metric


def _one(outputs: int) -> int:
    return 1


def _right_classes(a: Array, y: Array) -> Float64:
    return np.array([np.count_nonzero(a.argmax(axis=0) == y)], np.float64)


def _right_labels(a: Array, y: Array) -> Float64:
    return np.array([np.count_nonzero((a >= 0.5) == (y.T >= 0.5))], np.float64)


def _right_rows(a: Array, y: Array) -> Float64:
    right = (a >= 0.5) == (y.T >= 0.5)
    return np.array([np.count_nonzero(right.all(axis=0))], np.float64)


def _of_examples(sums: Float64, examples: int, outputs: int) -> float:
    return float(sums[0]) / examples


def _of_labels(sums: Float64, examples: int, outputs: int) -> float:
    return float(sums[0]) / (examples * outputs)


METRICS = (
    Metric("accuracy", (CLASSIFICATION.name,), _one, _right_classes, _of_examples),
    Metric("accuracy", (BINARY.name, MULTILABEL.name), _one, _right_labels, _of_labels),
    Metric("exact_match", (MULTILABEL.name,), _one, _right_rows, _of_examples),
)
"""Accuracy is the share of right classes, or of right single labels; exact_match of right rows."""
