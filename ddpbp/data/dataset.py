"""The examples of a run as the network takes them: split, standardised, in the model's dtype."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws
from ddpbp.data.order import Order
from ddpbp.data.sources import Part, Source
from ddpbp.errors import DataError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

TreeSum = Callable[[Callable[[int], Float64], int], Float64]
"""Takes (the vector of leaf i, the number of leaves) and sums along the canonical tree."""

LEAF_ROWS = 1_024
"""Rows of a leaf of the standardisation; part of the arithmetic."""
CACHE_ELEMENTS = 32_768
"""Elements that one call scales; no part of the arithmetic."""


@dataclass(frozen=True)
class Standardization:
    """x ← (x − mean) / deviation, fitted on the training part.

    Attributes
    ----------
    mean, deviation : (features,) float64
        A deviation of zero counts as 1.
    """

    mean: Float64
    deviation: Float64

    def apply(self, x: Array, dtype: npt.DTypeLike) -> Array:
        """Return (n, features) rows shifted and scaled in float64, then cast to `dtype`."""
        out = np.empty(x.shape, dtype)
        with np.errstate(over="ignore"):  # an infinite result is refused by the caller
            for start in range(0, len(x), step := max(1, CACHE_ELEMENTS // len(self.mean))):
                centred = x[start : start + step] - self.mean
                np.divide(centred, self.deviation, out=centred)
                out[start : start + step] = centred
        return out


def fit_standardization(x: Array, tree_sum: TreeSum) -> Standardization:
    """Fit mean and deviation on (n, features) rows, summed in float64 over leaves of fixed size.

    Raises
    ------
    DataError
        Names a feature whose squares are beyond the range of float64.
    """
    n = len(x)
    leaves = -(-n // LEAF_ROWS)

    def leaf(i: int) -> Float64:
        return x[i * LEAF_ROWS : (i + 1) * LEAF_ROWS].astype(np.float64)

    def squares(i: int) -> Float64:
        centred = leaf(i)
        centred -= mean
        centred *= centred
        total: Float64 = np.add.reduce(centred, axis=0)
        return total

    with np.errstate(over="ignore", invalid="ignore"):
        mean = tree_sum(lambda i: np.add.reduce(leaf(i), axis=0), leaves) / n
        deviation = np.sqrt(tree_sum(squares, leaves) / n)
    if not np.isfinite(deviation).all():
        column = int(np.argmin(np.isfinite(deviation)))
        raise DataError(
            f"feature {column} (from 0): its values are too large to be squared; scale them down"
        )
    # The mean of equal values may be off by a rounding, and then their deviation is not 0.
    deviation[(deviation == 0.0) | (x.max(axis=0) == x.min(axis=0))] = 1.0
    return Standardization(mean, deviation)


@dataclass(frozen=True)
class Dataset:
    """The parts of a run.

    Attributes
    ----------
    train, validation, test : Part
        x in the model's dtype and standardised; y as `Part` has it.
    classes : tuple of str or None
        The names of the classes of a classification.
    outputs : int
        The number of units of the last layer.
    standardization : Standardization or None
    description : str
        One line for the log: the source, the numbers of examples, features and outputs.
    columns : tuple of str or None
    target : str or None
        The names of the features and of the targets, as `Source` has them.
    sha256 : str
        The hash of everything that was read.
    """

    train: Part
    validation: Part | None
    test: Part | None
    classes: tuple[str, ...] | None
    outputs: int
    standardization: Standardization | None
    description: str
    columns: tuple[str, ...] | None = None
    target: str | None = None
    sha256: str = ""


def split(
    source: Source,
    *,
    validation: float | Source,
    test: float | Source | None,
    seed: int,
) -> tuple[Part, Part | None, Part | None]:
    """Hold out validation and test examples; which ones depends on seed and row alone.

    Parameters
    ----------
    source : Source
    validation, test : float or Source
        A fraction of the rows, or the source to take instead; None takes the source's own test.
    seed : int

    Returns
    -------
    train, validation, test : Part or None
        Each in the order of the file.
    """
    n = len(source.train)
    shares = [v if isinstance(v, float) else 0.0 for v in (validation, test)]
    counts = [round(share * n) for share in shares]
    place = np.empty(n, np.int64)
    place[Order(n, seed, draws.SPLIT)(np.arange(n))] = np.arange(n)
    parts: list[Part | None] = []
    end = 0
    for choice, count in zip((validation, test), counts, strict=True):
        if isinstance(choice, Source):
            parts.append(with_classes(source.classes, choice))
        else:
            parts.append(_rows(source.train, (place >= end) & (place < end + count)))
        end += count
    train = _rows(source.train, place >= end)
    if train is None:
        raise DataError(
            f"{source.name}: holding {sum(counts)} of {n} examples out leaves "
            "none to train on; lower data.validation or data.test"
        )
    return train, parts[0], parts[1] if test is not None else source.test


def make_dataset(
    source: Source,
    *,
    validation: float | Source,
    test: float | Source | None,
    standardize: bool,
    dtype: npt.DTypeLike,
    seed: int,
    tree_sum: TreeSum,
) -> Dataset:
    """Split a source and bring its features into the form the network takes.

    Parameters
    ----------
    source, validation, test, seed
        As `split` has them.
    standardize : bool
        Fit on the training part, apply to all.
    dtype : numpy.dtype
        Of the model.
    tree_sum : callable
        Sums the leaves of the standardisation over all ranks.

    Raises
    ------
    DataError
        If the parts do not fit each other, or their values the dtype.
    """
    parts = split(source, validation=validation, test=test, seed=seed)
    if source.classes and (parts[0].y == parts[0].y[0]).all():
        raise DataError(
            f"{source.name}: all {len(parts[0])} training examples are of class "
            f"{source.classes[int(parts[0].y[0])]!r}; at least two classes are needed"
        )
    for name, part in zip(("validation", "test"), parts[1:], strict=True):
        if part is not None and part.x.shape[1] != parts[0].x.shape[1]:
            raise DataError(
                f"data.{name} has {part.x.shape[1]} features, the training part "
                f"{parts[0].x.shape[1]}; both need the same columns"
            )
    fitted = fit_standardization(parts[0].x, tree_sum) if standardize else None

    def ready(part: Part | None) -> Part | None:
        if part is None:
            return None
        with np.errstate(over="ignore"):
            x = fitted.apply(part.x, dtype) if fitted else part.x.astype(dtype, copy=False)
        for what, values in (("feature", x), ("target", part.y)):
            require_range(values, np.dtype(dtype), f"{source.name}: a {what}")
        return Part(np.ascontiguousarray(x), part.y)

    train, held_out, tested = (ready(part) for part in parts)
    assert train is not None
    test_rows = len(tested) if tested else 0
    training_rows = len(source.train) - (test_rows if isinstance(test, float) else 0)
    return Dataset(
        train,
        held_out,
        tested,
        source.classes,
        source.outputs,
        fitted,
        source.describe(training_rows, test_rows),
        source.columns,
        source.target,
    )


def require_range(values: Array, dtype: np.dtype[Any], what: str) -> None:
    """Refuse values that `dtype` does not hold.

    Raises
    ------
    DataError
        Names them as `what`.
    """
    largest = np.finfo(dtype).max
    if values.dtype.kind == "f" and not (values.max() <= largest and values.min() >= -largest):
        raise DataError(
            f"{what} is beyond the range of {dtype} (±{largest:.1e}); "
            'scale it down, or set model.dtype = "float64"'
        )


def _rows(part: Part, chosen: npt.NDArray[np.bool_]) -> Part | None:
    if chosen.all():
        return part
    return Part(part.x[chosen], part.y[chosen]) if chosen.any() else None


def with_classes(classes: tuple[str, ...] | None, other: Source) -> Part:
    """Return the examples of another source with these classes, matched by name.

    Raises
    ------
    DataError
        Names a class that is not among them.
    """
    x, y = other.train.x, other.train.y
    if classes is not None and other.classes is not None and classes != other.classes:
        unknown = [name for name in other.classes if name not in classes]
        if unknown:
            raise DataError(
                f"{other.name}: class {unknown[0]!r} does not occur in the training part, "
                f"whose classes are {', '.join(classes)}"
            )
        y = np.array([classes.index(name) for name in other.classes])[y]
    return Part(x, y)
