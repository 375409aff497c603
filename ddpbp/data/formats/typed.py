"""Columns that have types and names of their own: what Parquet, HDF5, NetCDF and ROOT share."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from ddpbp.data.files import DEFLATE_RATIO, Unchanged, reading
from ddpbp.data.rows import Array, Rows, Schema
from ddpbp.errors import DataError

MOST_COLUMNS = 2**20


class Column(NamedTuple):
    """One column of a table.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype or None
        None if it holds no numbers.
    is_text : bool
    what : str
        Its type, for messages.
    field : str
        What it is stored as: a variable, which may give several columns.
    place : int
        Which of these.
    """

    name: str
    dtype: np.dtype[Any] | None
    is_text: bool
    what: str
    field: str
    place: int = 0


def spread(
    path: Path, name: str, shape: Sequence[int], dtype: np.dtype[Any] | None, what: str
) -> list[Column]:
    """Return the columns of a variable: one for each point of `shape`.

    Raises
    ------
    DataError
        If they are too many to be columns.
    """
    if not shape:
        return [Column(name, dtype, False, what, name)]
    if prod(shape) > MOST_COLUMNS:
        raise DataError(
            f"{path}: {name} has {prod(shape):,} numbers in each row; at most {MOST_COLUMNS:,} are "
            "columns: is the dimension of the rows the one that you mean?"
        )
    return [
        Column(f"{name}[{','.join(map(str, place))}]", dtype, False, what, name, i)
        for i, place in enumerate(np.ndindex(*shape))
    ]


def require_plausible(path: Path, name: str, announced_bytes: int, held_bytes: int) -> None:
    """Refuse an array of more bytes than can have been compressed into those that are stored.

    Raises
    ------
    DataError
    """
    if announced_bytes > held_bytes * DEFLATE_RATIO:
        raise DataError(
            f"{path}: {name} is announced with {announced_bytes:,} bytes, but {held_bytes:,} are "
            "stored; write the file again"
        )


class Handle:
    """A file of a library, opened when it is needed; several rows may share it.

    Parameters
    ----------
    open : callable
    """

    def __init__(self, open: Callable[[], Any]) -> None:
        self._open, self._file = open, None

    def get(self) -> Any:
        """Return the file."""
        if self._file is None:
            self._file = self._open()
        return self._file

    def release(self) -> None:
        """Close it until it is needed again."""
        if self._file is not None:
            self._file.close()
        self._file = None


class TypedRows(Rows):
    """Some columns of a file, read by ranges of rows.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be, with its article, for messages.
    handle : Handle
    rows : int
    columns : sequence of Column
    """

    def __init__(
        self, path: Path, kind: str, handle: Handle, rows: int, columns: Sequence[Column]
    ) -> None:
        self._path, self._kind, self._handle, self._count = path, kind, handle, rows
        self._columns = columns
        self._texts: Collection[int] = ()
        self._codes = dict[str, int]()
        with reading(path, kind):
            self._unchanged = Unchanged(path)

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        dtypes = [c.dtype or np.dtype(np.int64) for c in self._columns]
        dtype = np.result_type(*dtypes) if dtypes else np.dtype(np.float64)
        return Schema((len(self._columns),), dtype, tuple(c.name for c in self._columns))

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return self._texts

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return list(self._codes)

    @property
    def by_column(self) -> bool:  # noqa: D102
        return True

    def __len__(self) -> int:
        return self._count

    def release(self) -> None:  # noqa: D102
        self._handle.release()

    def allow_text(self, columns: Collection[int]) -> Self:  # noqa: D102
        allowed = {i for i in columns if self._columns[i].is_text}
        return self._with(self._columns, allowed)

    def pick(self, columns: Sequence[int]) -> Self:  # noqa: D102
        texts = {i for i, column in enumerate(columns) if column in self._texts}
        return self._with([self._columns[column] for column in columns], texts)

    def _with(self, columns: Sequence[Column], texts: Collection[int]) -> Self:
        other = self._copy(columns)
        other._texts = texts
        return other

    @abstractmethod
    def _copy(self, columns: Sequence[Column]) -> Self:
        """Return rows of the same file with these columns."""

    @abstractmethod
    def _field(self, name: str, rows: slice) -> Any:
        """Read what is stored as `name`: (rows,) or (rows, columns), numbers or a list of texts.

        Numbers that are missing are NaN; texts that are missing are None.
        """

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        with reading(self._path, self._kind):
            self._unchanged.require()
            fields = dict[str, Any]()
            for i, column in enumerate(self._columns):
                if column.is_text and i not in self._texts:
                    raise DataError(
                        f'{self._path}: column "{column.name}" holds text; a feature is a number: '
                        f"leave it out with data.exclude={column.name}"
                    )
                if column.dtype is None and not column.is_text:
                    raise DataError(
                        f'{self._path}: column "{column.name}" is of type {column.what[:60]}; '
                        f"numbers are needed: leave it out with data.exclude={column.name}"
                    )
                if column.field not in fields:
                    fields[column.field] = self._field(column.field, rows)
                values = fields[column.field]
                if column.is_text:
                    out[:, i] = self._coded(values, column.name, rows.start)
                else:
                    self._write(values, column, out[:, i], rows.start)

    def _write(self, values: Array, column: Column, out: Array, first: int) -> None:
        if values.ndim > 1:
            values = values.reshape(len(out), -1)[:, column.place]
        if out.dtype.kind in "iu" and values.dtype.kind == "f" and np.isnan(values).any():
            raise self._gap(column.name, first + int(np.argmax(np.isnan(values))))
        out[...] = values

    def _coded(self, texts: Sequence[str | None], name: str, first: int) -> list[int]:
        codes = []
        for row, text in enumerate(texts):
            if text is None:
                raise self._gap(name, first + row)
            codes.append(self._codes.setdefault(text.strip(), len(self._codes)))
        return codes

    def _gap(self, name: str, row: int) -> DataError:
        return DataError(
            f'{self._path}: row {row} (from 0), column "{name}" is empty; fill it in or remove '
            "the row"
        )
