"""The table of metrics, in the order of the report, and the sums and values of a task's metrics."""

import numpy as np

from ddpbp.metrics import classification, regression
from ddpbp.metrics.metric import Array, Float64, Metric

METRICS: list[Metric] = [*classification.METRICS, *regression.METRICS]


def leaf_sums(task: str, a: Array, y: Array) -> Float64:
    """Return the sums that the metrics of `task` need, over one leaf.

    Parameters
    ----------
    task : str
    a : (n_L, B) float
        The outputs, an example a column.
    y : (B,) int64 or (B, n_L) float64
        Class indices, or targets.

    Returns
    -------
    (k,) float64
        For `summarize`, once they are added over all leaves.
    """
    return np.concatenate([metric.leaf_sums(a, y) for metric in _of(task)])


def summarize(task: str, sums: Float64, examples: int, outputs: int) -> dict[str, float]:
    """Return the metrics of `task` by name, from the sums over all leaves.

    Parameters
    ----------
    task : str
    sums : (k,) float64
    examples : int
        Of all leaves together.
    outputs : int
        n_L.
    """
    values: dict[str, float] = {}
    start = 0
    for metric in _of(task):
        stop = start + metric.count(outputs)
        value = metric.value(sums[start:stop], examples, outputs)
        if value is not None:
            values[metric.name] = value
        start = stop
    return values


def _of(task: str) -> list[Metric]:
    return [metric for metric in METRICS if task in metric.tasks]
