"""What a model is judged by: sums over examples that can be added in any grouping of leaves."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def leaf_sums(task: str, a: Array, y: Array) -> Float64:
    """Sum what the metrics of `task` need over one leaf.

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
        For `summarize`.
    """
    if task == "classification":
        return np.array([np.count_nonzero(a.argmax(axis=0) == y)], np.float64)
    targets = y.T
    if task in ("binary", "multilabel"):
        right = (a >= 0.5) == (targets >= 0.5)
        return np.array([np.count_nonzero(right), np.count_nonzero(right.all(axis=0))], np.float64)
    error = np.ascontiguousarray(a.astype(np.float64) - targets)
    columns = np.ascontiguousarray(targets, np.float64)
    sums = [np.add.reduce(v, axis=1) for v in (error * error, abs(error), columns, columns**2)]
    return np.concatenate(sums)


def summarize(task: str, sums: Float64, examples: int, outputs: int) -> dict[str, float]:
    """Turn the sums over all leaves into metrics.

    Returns
    -------
    dict
        classification, binary: accuracy; multilabel: accuracy (of single labels) and exact_match
        (of whole rows); regression: rmse, mae and r2, over all targets.
    """
    if task == "classification":
        return {"accuracy": float(sums[0]) / examples}
    if task in ("binary", "multilabel"):
        found = {"accuracy": float(sums[0]) / (examples * outputs)}
        if task == "multilabel":
            found["exact_match"] = float(sums[1]) / examples
        return found
    squares, absolutes, y, y2 = sums.reshape(4, outputs)
    spread = y2 - y * y / examples
    r2 = [1.0 - s / t for s, t in zip(squares.tolist(), spread.tolist(), strict=True) if t > 0.0]
    found = {
        "rmse": math.sqrt(math.fsum(squares) / (examples * outputs)),
        "mae": math.fsum(absolutes) / (examples * outputs),
    }
    if r2:
        found["r2"] = math.fsum(r2) / len(r2)
    return found
