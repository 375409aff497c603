"""One metric: sums over examples that can be added in any grouping of leaves, and their value."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class Metric(NamedTuple):
    """One metric.

    Attributes
    ----------
    name : str
        The key in the report.
    tasks : tuple of str
        The names of the tasks that report it.
    count : int -> int
        The number of sums for a number of outputs n_L.
    leaf_sums : (a, y) -> (count(n_L),) float64
        The sums over one leaf. a (n_L, B) are the outputs, an example a column; y is (B,) int64,
        class indices, or (B, n_L) float64, targets.
    value : (sums, examples, outputs) -> float or None
        The metric from the sums over all leaves; None leaves it out of the report.
    """

    name: str
    tasks: tuple[str, ...]
    count: Callable[[int], int]
    leaf_sums: Callable[[Array, Array], Float64]
    value: Callable[[Float64, int, int], float | None]
