"""Check values as they are read: finite, of a kept type, and targets that fit the task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base.tasks import Task
from ddpbp.data.rows import Array, Rows, read_all
from ddpbp.errors import DataError

KEPT = {"|b1": "u1", "|u1": "u1", "<f2": "f4", "<f4": "f4"}
"""The types in which features are kept; all others become float64."""

REGRESSION_HINT = "to predict a number, set loss.name=squared_error"


def feature_values(rows: Rows, where: str) -> Array:
    """Read all rows as (n, columns) uint8, float32 or float64; `where` is for messages."""
    kept = KEPT.get(rows.schema.dtype.newbyteorder("<").str, "f8")
    return _finite(rows, np.dtype(kept), where)


def target_values(rows: Rows, where: str) -> Array:
    """Read all rows as (n, columns) in their own type, or float64 where that is wider."""
    dtype = rows.schema.dtype
    own = dtype.newbyteorder("=") if dtype.itemsize <= 8 else np.dtype(np.float64)
    return _finite(rows, own, where)


def _finite(rows: Rows, dtype: np.dtype[Any], where: str) -> Array:
    if not len(rows) or not rows.schema.columns:
        shape = (len(rows), *rows.schema.shape)
        raise DataError(f"{where} are of shape {shape}: no examples; add at least one row")
    table = read_all(rows, dtype)
    if dtype.kind == "f" and not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise DataError(
            f"{where}: row {row}, column {column} (from 0) is {table[row, column]}; "
            "every value must be finite: fill it in or remove the row"
        )
    return table


def labels_of(table: Array, where: str) -> Array:
    """Return the distinct values of an array of class indices: integers from 0."""
    labels = np.unique(table)
    wrong = labels[(labels < 0) | (labels != np.floor(labels))]
    if wrong.size:
        raise DataError(
            f"{where}: found {wrong[0]}; the index of a class is an integer, 0, 1, 2, ...; "
            f"{REGRESSION_HINT}"
        )
    return labels


def sort_classes(codes: Array, words: Sequence[str], where: str) -> tuple[Array, tuple[str, ...]]:
    """Turn texts into class indices, in the order of integers if all are integers, else of text.

    Integers from 2⁵³ on are taken as text: as numbers, two of them could be one.

    Parameters
    ----------
    codes : (n, 1) float64
        Indices into `words`; other columns of the table may use words too.
    words : sequence of str
    where : str
        The column, for messages.

    Returns
    -------
    indices : (n, 1) int64
    classes : tuple of str
        The names of the classes 0, 1, ...
    """
    used, index = np.unique(codes.astype(np.int64), return_inverse=True)
    words = [words[code] for code in used.tolist()]
    numbers = [number(word) for word in words]
    numeric = None not in numbers
    for i, word in enumerate(words):
        if not word or (numeric and not float(word).is_integer()):
            raise DataError(
                f"{where} holds {word[:40]!r}, first in row {np.argmax(index == i)} (from 0); "
                f"a class label is text or an integer; {REGRESSION_HINT}"
            )
    exact = numeric and all(abs(float(word)) < 2**53 for word in words)
    labels: list[Any] = [int(float(word)) for word in words] if exact else words
    ranks = {label: rank for rank, label in enumerate(sorted(set(labels)))}
    order = np.array([ranks[label] for label in labels])
    return order[index].reshape(codes.shape), tuple(str(label) for label in ranks)


def targets_of(table: Array, where: str, task: Task, known: Array | None) -> Array:
    """Check targets and bring them into the form of `Part.y`.

    Parameters
    ----------
    table : (n, columns) array
    where : str
        For messages.
    task : Task
    known : (classes,) array or None
        The labels of the classes, in the order of their indices.
    """
    if task.single and table.shape[1] != 1:
        raise DataError(
            f"{where} are of shape {table.shape}; {task.name} takes one number for each example "
            "(for one-hot rows take argmax(1), for many 0/1 targets task multilabel)"
        )
    if not task.classes and not task.zero_or_one:
        return np.ascontiguousarray(table, np.float64)
    allowed = known if known is not None and task.classes else np.array([0, 1])
    index: npt.NDArray[np.int64] = np.searchsorted(allowed, table).clip(max=len(allowed) - 1)
    wrong = allowed[index] != table
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        shown = ", ".join(str(value) for value in allowed[:12]) + ", ..." * (len(allowed) > 12)
        raise DataError(
            f"{where}: row {row} (from 0) holds {table[row, column]}; "
            f"allowed for {task.name}: {shown}"
        )
    return index[:, 0].astype(np.int64) if task.classes else index.astype(np.float64)


def number(field: str) -> float | None:
    """Parse a text; None if it is no number in ASCII."""
    try:
        return float(field) if field.strip().isascii() and "_" not in field else None
    except ValueError:
        return None
