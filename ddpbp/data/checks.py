"""Check values as they are read: finite, of a kept type, in the range of the model."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ddpbp.data.rows import Array, Rows, Schema
from ddpbp.errors import DataError

GAPS = {"", "na", "n/a", "nan", "null", "none"}
BOOLEANS = {"true": 1.0, "false": 0.0}

KEPT = {"|b1": "u1", "|u1": "u1", "<f2": "f4", "<f4": "f4"}
"""The types in which features are kept; all others become float64."""


class Finite(Rows):
    """Rows of which every value must be finite.

    Parameters
    ----------
    rows : Rows
    dtype : numpy.dtype
        The type in which they are to be read.
    where : str
        What they are, for messages.

    Attributes
    ----------
    where : str

    Raises
    ------
    DataError
        If there are none; when they are read, for a value that is not finite.
    """

    def __init__(self, rows: Rows, dtype: np.dtype[Any], where: str) -> None:
        if not len(rows) or not rows.schema.columns:
            shape = (len(rows), *rows.schema.shape)
            raise DataError(f"{where} are of shape {shape}: no examples; add at least one row")
        self._rows, self.where = rows, where
        self._schema = Schema((rows.schema.columns,), dtype, rows.schema.names)

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return self._schema

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return self._rows.texts

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return self._rows.words

    @property
    def slow(self) -> bool:  # noqa: D102
        return self._rows.slow

    @property
    def whole(self) -> bool:  # noqa: D102
        return self._rows.whole

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            self._rows.read(rows, out)
        self.require_finite(out, rows.start)

    def over(self, rows: Rows) -> "Finite":
        """Return the same check of the same values, stored elsewhere."""
        return Finite(rows, self._schema.dtype, self.where)

    def require_finite(self, values: Array, first: int) -> None:
        """Refuse (rows, columns) values that are not finite; `first` is the number of their row."""
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            names = self._schema.names
            file, at = self._rows.locate(first + row)
            where = f"{self.where}: {file}:" if file else f"{self.where}:"
            place = f"row {at}, column {column} (from 0)"
            if names:
                place = f'row {at} (from 0), column "{names[column]}"'
            raise DataError(
                f"{where} {place} is {values[row, column]}; every value must be finite: fill it in "
                "or remove the row"
            )


def features(rows: Rows, where: str) -> Finite:
    """Return features, to be read as uint8, float32 or float64; `where` is for messages."""
    kept = KEPT.get(rows.schema.dtype.newbyteorder("<").str, "f8")
    return Finite(rows, np.dtype(kept), where)


def targets(rows: Rows, where: str) -> Finite:
    """Return targets, to be read in their own type, or float64 where that is wider."""
    dtype = rows.schema.dtype
    own = dtype.newbyteorder("=") if dtype.itemsize <= 8 else np.dtype(np.float64)
    return Finite(rows, own, where)


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


def number(field: str) -> float | None:
    """Parse a text; None if it is no number in ASCII."""
    try:
        return float(field) if field.strip().isascii() and "_" not in field else None
    except ValueError:
        return None


def number_or_boolean(field: str) -> float | None:
    """Return a number, or what True and False mean; None for other text."""
    return BOOLEANS.get(field.strip().lower(), number(field))


def number_or_gap(field: str) -> float:
    """Return a number, NaN for a gap, infinity for other text."""
    if field.strip().lower() in GAPS:
        return math.nan
    value = number_or_boolean(field)
    return math.inf if value is None else value
