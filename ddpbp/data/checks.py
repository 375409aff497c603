"""Is an array what its task needs? Values that are not end in one message."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.errors import DataError

Array = npt.NDArray[Any]


def table_of(array: Array, where: str) -> Array:
    """Check that an array holds finite numbers; one row for each example."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} are of type {array.dtype}; real numbers are needed")
    if array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    if not array.size or not array.ndim:
        raise DataError(f"{where} are of shape {array.shape}: no examples; add at least one row")
    table = array.reshape(len(array), -1)
    if table.dtype.kind == "f" and not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise DataError(
            f"{where}: row {row}, column {column} (from 0) is {table[row, column]}; "
            "every value must be finite: fill it in or remove the row"
        )
    return table


def features_of(array: Array, where: str) -> Array:
    """Keep uint8, float32 and float64; widen the rest."""
    table = table_of(array, where)
    kept = {"|b1": "u1", "|u1": "u1", "<f2": "f4", "<f4": "f4"}
    return np.ascontiguousarray(table, kept.get(table.dtype.newbyteorder("<").str, "f8"))


def labels_of(array: Array, where: str) -> Array:
    """List the classes of an array: its distinct values, which must be integers from 0."""
    found = np.unique(table_of(array, where))
    wrong = found[(found < 0) | (found != np.floor(found))]
    if wrong.size:
        raise DataError(
            f"{where}: found {wrong[0]}; the index of a class is an integer, 0, 1, 2, ...; "
            "a number to predict is task regression"
        )
    return found


def targets_of(array: Array, where: str, task: str, known: Array | None) -> Array:
    """Bring labels into the form of `Part.y`; `known` are the classes in the order of indices."""
    table = table_of(array, where)
    if task in ("classification", "binary") and table.shape[1] != 1:
        raise DataError(
            f"{where} are of shape {array.shape}; {task} takes one number for each example "
            "(for one-hot rows take argmax(1), for many 0/1 targets task multilabel)"
        )
    if task == "regression":
        return np.ascontiguousarray(table, np.float64)
    allowed = known if known is not None and task == "classification" else np.array([0, 1])
    index = np.searchsorted(allowed, table).clip(max=len(allowed) - 1)
    wrong = allowed[index] != table
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        shown = ", ".join(str(value) for value in allowed[:12]) + ", ..." * (len(allowed) > 12)
        raise DataError(
            f"{where}: row {row} (from 0) holds {table[row, column]}; allowed for {task}: {shown}"
        )
    return index[:, 0].astype(np.int64) if task == "classification" else index.astype(np.float64)
