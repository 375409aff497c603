"""Standardisation: each feature to mean 0 and deviation 1, fitted on the training part."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.data.rows import Array, Rows, block_slice, read_rows
from ddpbp.data.team import Team
from ddpbp.errors import DataError

Float64 = npt.NDArray[np.float64]

LEAF_ROWS = 1_024
"""Rows of a leaf of the sums; part of the arithmetic."""
CACHE_ELEMENTS, COLUMNS_AT_ONCE = 32_768, 64
"""Elements that one call scales, columns that one sums; no part of the arithmetic."""


@dataclass(frozen=True)
class Standardization:
    """x ← (x − mean) / deviation.

    Attributes
    ----------
    mean, deviation : (features,) float64
        A deviation of zero counts as 1.
    """

    mean: Float64
    deviation: Float64

    def apply(self, x: Array, dtype: npt.DTypeLike) -> Array:
        """Return (n, features) rows shifted and scaled in float64, then cast to `dtype`."""
        out: npt.NDArray[Any] = np.empty(x.shape, dtype)
        self.apply_to(x, out)
        return out

    def apply_to(self, x: Array, out: Array) -> None:
        """Write (n, features) rows, shifted and scaled in float64, to `out` in its type."""
        with np.errstate(over="ignore"):  # an infinite result is refused by the caller
            for start in range(0, len(x), step := max(1, CACHE_ELEMENTS // len(self.mean))):
                centred = x[start : start + step] - self.mean
                np.divide(centred, self.deviation, out=centred)
                out[start : start + step] = centred


def fit_standardization(x: Rows, team: Team) -> Standardization:
    """Fit mean and deviation, summed in float64 over leaves of fixed size.

    Raises
    ------
    DataError
        Names a feature whose squares are beyond the range of float64.
    """
    n, columns, kept = len(x), x.schema.columns, x.schema.dtype
    leaves = -(-n // LEAF_ROWS)
    parts = _parts(columns)
    first = np.empty((0, columns))

    def leaf(i: int) -> Array:
        return read_rows(x, block_slice(i, LEAF_ROWS, n), kept)

    def sums(i: int) -> Float64:
        """Return the sum of each feature, and whether it differs from that of the first row."""
        nonlocal first
        if not len(first):
            first = read_rows(x, slice(0, 1), kept)
        rows, found = leaf(i), np.empty((2, columns))
        for part in parts:
            np.add.reduce(np.array(rows[:, part], np.float64, order="C"), 0, out=found[0, part])
            found[1, part] = (rows[:, part] != first[:, part]).any(axis=0)
        return found.reshape(-1)

    def squares(i: int) -> Float64:
        rows, total = leaf(i), np.empty(columns)
        for part in parts:
            centred = np.array(rows[:, part], np.float64, order="C")
            centred -= mean[part]
            centred *= centred
            np.add.reduce(centred, axis=0, out=total[part])
        return total

    with np.errstate(over="ignore", invalid="ignore"):
        both = team.tree_sum(sums, leaves)
        mean = both[:columns] / n
        deviation = np.sqrt(team.tree_sum(squares, leaves) / n)
    if not np.isfinite(deviation).all():
        column = int(np.argmin(np.isfinite(deviation)))
        raise DataError(
            f"feature {column} (from 0): its values are too large to be squared; scale them down"
        )
    # The mean of equal values may be off by a rounding, and then their deviation is not 0.
    deviation[(deviation == 0.0) | (both[columns:] == 0)] = 1.0
    return Standardization(mean, deviation)


def _parts(columns: int) -> list[slice]:
    """Cut columns into parts; none is of one column, whose sum NumPy forms in another order."""
    edges = [*range(0, max(1, columns - 1), COLUMNS_AT_ONCE), columns]
    return [slice(begin, end) for begin, end in pairwise(edges)]
