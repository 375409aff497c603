"""Rows of numbers, wherever they are stored: the one interface between formats and the rest."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.errors import DataError

Array = npt.NDArray[Any]

ROWS_AT_ONCE = 4_096
"""Rows of a table held beside the columns taken from it; no part of the arithmetic."""

BLOCK_ELEMENTS, MOST_BLOCK_ROWS = 2**18, 2**14


def block_rows(columns: int) -> int:
    """Return the rows of a block, in which data are read, checked and hashed.

    It depends on the columns alone, never on a file or on ranks.
    """
    return max(1, min(MOST_BLOCK_ROWS, BLOCK_ELEMENTS // max(1, columns)))


def block_slice(block: int, size: int, n: int) -> slice:
    """Return the rows of a block of `size` rows, of which the last may be shorter, out of n."""
    return slice(block * size, min((block + 1) * size, n))


@dataclass(frozen=True)
class Schema:
    """What a row holds.

    Attributes
    ----------
    shape : tuple of int
        The shape of one row: (columns,) in a table, (28, 28) for an image, () for one number.
    dtype : numpy.dtype
        The type in which the source stores numbers.
    names : tuple of str or None
        The names of the columns, where they are known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: tuple[str, ...] | None = None

    @property
    def columns(self) -> int:
        """The numbers in a row."""
        return math.prod(self.shape)


class Rows(ABC):
    """The rows of one table or one array."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """What a row holds; known before a row is read."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def read(self, rows: slice, out: Array) -> None:
        """Read consecutive rows.

        Parameters
        ----------
        rows : slice
            [start, stop) with 0 ≤ start ≤ stop ≤ len, without a step.
        out : (stop - start, columns) array, C-contiguous
            Where to write them, cast to its type.
        """

    def allow_text(self, columns: Collection[int]) -> "Rows":
        """Return the same rows with text allowed in some columns, read as indices into `words`.

        A source that stores numbers only returns itself.
        """
        return self

    def release(self) -> None:  # noqa: B027 - most rows hold nothing
        """Close files and forget what was read, until more is read."""

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file that holds a row, if there are several, and its number there."""
        return "", row

    def allow_gaps(self) -> "Rows":
        """Return the same rows with NaN where a number is missing, if that is refused else."""
        return self

    @property
    def texts(self) -> Collection[int]:
        """The columns that are read as indices into `words`."""
        return ()

    @property
    def words(self) -> Sequence[str]:
        """The distinct texts that were read so far, in the order they were read."""
        return ()

    @property
    def slow(self) -> bool:
        """Reading again costs much more than reading numbers: text, compressed data."""
        return False

    @property
    def by_column(self) -> bool:
        """The columns are stored apart, so that reading a few costs a part of reading all."""
        return False

    @property
    def whole(self) -> bool:
        """Reading a few rows costs as much as reading all: compressed data stored by columns."""
        return False

    def pick(self, columns: Sequence[int]) -> "Rows":
        """Return some columns of a table, in this order."""
        return Columns(self, columns)


class ArrayRows(Rows):
    """The rows of an array of real numbers in memory.

    Parameters
    ----------
    array : (n, ...) array
    where : str
        What the array is, for messages.
    words : sequence of str, optional
    texts : collection of int, optional
        The columns that are indices into `words`.
    """

    def __init__(
        self, array: Array, where: str, words: Sequence[str] = (), texts: Collection[int] = ()
    ) -> None:
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: numbers of type {array.dtype}; real numbers are needed")
        if array.ndim == 0:
            raise DataError(f"{where}: a single number; an array with a row per example is needed")
        self._array, self._words, self._texts = array, words, texts

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return self._texts

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return self._words

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return Schema(self._array.shape[1:], self._array.dtype)

    def __len__(self) -> int:
        return len(self._array)

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        out[...] = self._array[rows].reshape(out.shape)


class Columns(Rows):
    """Some columns of a table, in a given order."""

    def __init__(self, table: Rows, columns: Sequence[int]) -> None:
        self._table, self._columns = table, list(columns)
        # Neighbours in the table are copied together, which is several times as fast.
        breaks = np.flatnonzero(np.diff(self._columns) != 1) + 1
        edges = [0, *breaks.tolist(), len(self._columns)]
        self._runs = list(pairwise(edges)) if self._columns else []

    @property
    def schema(self) -> Schema:  # noqa: D102
        whole = self._table.schema
        names = tuple(whole.names[c] for c in self._columns) if whole.names else None
        return Schema((len(self._columns),), whole.dtype, names)

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return {i for i, column in enumerate(self._columns) if column in self._table.texts}

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return self._table.words

    @property
    def slow(self) -> bool:  # noqa: D102
        return self._table.slow

    @property
    def whole(self) -> bool:  # noqa: D102
        return self._table.whole

    def __len__(self) -> int:
        return len(self._table)

    def allow_text(self, columns: Collection[int]) -> Rows:  # noqa: D102
        allowed = {self._columns[column] for column in columns}
        return Columns(self._table.allow_text(allowed), self._columns)

    def release(self) -> None:  # noqa: D102
        self._table.release()

    def locate(self, row: int) -> tuple[str, int]:  # noqa: D102
        return self._table.locate(row)

    def allow_gaps(self) -> Rows:  # noqa: D102
        return Columns(self._table.allow_gaps(), self._columns)

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        schema = self._table.schema
        if self._columns == [*range(schema.columns)]:
            self._table.read(rows, out)
            return
        at_once = rows.stop - rows.start if self.whole else ROWS_AT_ONCE
        for start in range(rows.start, rows.stop, max(1, at_once)):
            stop = min(start + at_once, rows.stop)
            table = np.empty((stop - start, schema.columns), schema.dtype)
            self._table.read(slice(start, stop), table)
            mine = out[start - rows.start : stop - rows.start]
            for begin, end in self._runs:
                first = self._columns[begin]
                mine[:, begin:end] = table[:, first : first + end - begin]


class Concatenated(Rows):
    """The rows of several tables of one schema, one after the other.

    Parameters
    ----------
    tables : sequence of Rows
        At least one.
    files : sequence of str
        Where each of them is, for messages.
    """

    def __init__(self, tables: Sequence[Rows], files: Sequence[str]) -> None:
        self._tables, self._files, first = tables, files, tables[0].schema
        dtype = np.result_type(*(table.schema.dtype for table in tables))
        self._schema = Schema(first.shape, dtype, first.names)
        self._codes = dict[str, int]()
        self.release()

    def release(self) -> None:  # noqa: D102
        for table in self._tables:
            table.release()

    @cached_property
    def _firsts(self) -> list[int]:
        sizes = []
        for table in self._tables:
            sizes.append(len(table))
            table.release()
        return [0, *accumulate(sizes)]

    @property
    def schema(self) -> Schema:  # noqa: D102
        return self._schema

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return self._tables[0].texts

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return list(self._codes)

    @property
    def slow(self) -> bool:  # noqa: D102
        return any(table.slow for table in self._tables)

    @property
    def by_column(self) -> bool:  # noqa: D102
        return all(table.by_column for table in self._tables)

    def __len__(self) -> int:
        return self._firsts[-1]

    def allow_text(self, columns: Collection[int]) -> Rows:  # noqa: D102
        return Concatenated([t.allow_text(columns) for t in self._tables], self._files)

    def allow_gaps(self) -> Rows:  # noqa: D102
        return Concatenated([table.allow_gaps() for table in self._tables], self._files)

    def pick(self, columns: Sequence[int]) -> Rows:  # noqa: D102
        return Concatenated([table.pick(columns) for table in self._tables], self._files)

    def locate(self, row: int) -> tuple[str, int]:  # noqa: D102
        i = bisect_right(self._firsts, row) - 1
        return self._files[i], row - self._firsts[i]

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        for table, first, end in zip(self._tables, self._firsts, self._firsts[1:], strict=False):
            start, stop = max(rows.start, first), min(rows.stop, end)
            if start >= stop:
                continue
            mine = out[start - rows.start : stop - rows.start]
            table.read(slice(start - first, stop - first), mine)
            for column in table.texts:
                codes = [self._codes.setdefault(word, len(self._codes)) for word in table.words]
                mine[:, column] = np.array(codes)[mine[:, column].astype(np.int64)]
            if stop == end:  # what follows is in another file
                table.release()


def read_rows(rows: Rows, which: slice, dtype: npt.DTypeLike) -> Array:
    """Return consecutive rows as a (rows, columns) array of `dtype`."""
    out = np.empty((which.stop - which.start, rows.schema.columns), dtype)
    with np.errstate(over="ignore"):  # an infinite result is refused by the caller
        rows.read(which, out)
    return out


def read_all(rows: Rows, dtype: npt.DTypeLike) -> Array:
    """Return all rows as an (n, columns) array of `dtype`."""
    return read_rows(rows, slice(0, len(rows)), dtype)


@dataclass(frozen=True)
class Contents:
    """What a file, a folder or a named source holds: one table, or several arrays.

    Attributes
    ----------
    where : str
        The path or the name, for messages.
    needs : str
        What a file of this format must hold to be trained on, for messages.
    table : Rows or None
        A table with targets among its columns.
    arrays : mapping of str to callable
        Opens one array: the features x, x_train or x_test, or the targets y, y_train or y_test.
    classes : tuple of str or None
        The names of the classes 0, 1, ..., where the source has them.
    """

    where: str
    needs: str
    table: Rows | None = None
    arrays: Mapping[str, Callable[[], Rows]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
