"""The Parquet format, through pyarrow: a table of columns in groups of rows."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import library, reading
from ddpbp.data.formats.typed import Column, Handle, TypedRows
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Contents, block_rows
from ddpbp.errors import DataError

KIND = "a Parquet file"
INDEX = "__index_level_"  # what pandas calls an index that it stores


class ParquetRows(TypedRows):
    """The rows of a Parquet file, read in batches, which go on where the last read ended."""

    def __init__(
        self, path: Path, handle: Handle, firsts: Sequence[int], columns: Sequence[Column]
    ) -> None:
        super().__init__(path, KIND, handle, firsts[-1], columns)
        self._firsts = firsts  # the first row of each group, and the end
        self._batches: Iterator[Any] = iter(())
        self._group, self._begin, self._end = -1, 0, 0
        self._held = dict[str, Any]()

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._handle, self._firsts, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    def release(self) -> None:  # noqa: D102
        self._batches, self._held = iter(()), {}
        self._group, self._begin, self._end = -1, 0, 0
        super().release()

    def _field(self, name: str, rows: slice) -> Any:
        parts, at = [], rows.start
        while at < rows.stop:
            self._go_to(at)
            held = self._held[name]
            parts.append(held[at - self._begin : min(rows.stop, self._end) - self._begin])
            at = self._end
        if isinstance(parts[0], list):
            return [text for part in parts for text in part]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        # A batch at a time, so that all its columns are taken before the next one comes.
        at = rows.start
        while at < rows.stop:
            with reading(self._path, KIND):
                self._go_to(at)
            stop = min(rows.stop, self._end)
            super().read(slice(at, stop), out[at - rows.start : stop - rows.start])
            at = stop

    def _go_to(self, row: int) -> None:
        """Hold the batch with a row."""
        if self._begin <= row < self._end:
            return
        group = bisect_right(self._firsts, row) - 1
        if group != self._group or row < self._end:
            names = list({column.field for column in self._columns})
            self._batches = self._handle.get().iter_batches(
                block_rows(len(names)), [group], columns=names, use_threads=False
            )
            self._group, self._end = group, self._firsts[group]
        while row >= self._end:
            batch = next(self._batches)
            self._begin, self._end = self._end, self._end + batch.num_rows
            self._held = {c.field: _values(batch.column(c.field), c) for c in self._columns}


def _values(stored: Any, column: Column) -> Any:
    """Return the texts of a column, None where one is missing, or its numbers, NaN where."""
    if column.is_text:
        return [None if text is None else str(text) for text in stored.to_pylist()]
    if column.dtype is None:
        return stored
    if stored.null_count:
        stored = stored.cast("float64", safe=False)
    return stored.to_numpy(zero_copy_only=False)


def open_parquet(path: Path, options: SourceOptions) -> Contents:
    """Open a Parquet file as a table."""
    parquet = library("pyarrow.parquet", "arrow", path)
    types = library("pyarrow.types", "arrow", path)
    # Not mapped: a file that is cut short while it is mapped ends the process.
    handle = Handle(partial(parquet.ParquetFile, path, memory_map=False))
    with reading(path, KIND):
        file = handle.get()
        schema, about = file.schema_arrow, file.metadata
        columns = [
            _column_of(types, field.name, field.type)
            for field in schema
            if not field.name.startswith(INDEX)
        ]
    if not about.num_rows:
        raise DataError(f"{path}: holds no rows; add at least one row")
    groups = (about.row_group(group).num_rows for group in range(about.num_row_groups))
    return Contents(str(path), "", ParquetRows(path, handle, [0, *accumulate(groups)], columns))


def _column_of(types: Any, name: str, kind: Any) -> Column:
    value = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value) or types.is_large_string(value)
    dtype: np.dtype[Any] | None = None
    if types.is_boolean(value):
        dtype = np.dtype(np.bool_)
    elif types.is_integer(value) or types.is_floating(value):
        dtype = np.dtype(value.to_pandas_dtype())
    return Column(name, dtype, is_text, str(kind), name)
