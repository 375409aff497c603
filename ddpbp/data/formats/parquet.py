"""The Parquet format, through pyarrow: a table of columns in groups of rows."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import library, reading
from ddpbp.data.formats.typed import Column, TypedRows
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

KIND = "a Parquet file"
INDEX = "__index_level_"  # what pandas calls an index that it stores


class ParquetRows(TypedRows):
    """The rows of a Parquet file; the last group that was read is kept."""

    def __init__(self, path: Path, file: Any, columns: Sequence[Column]) -> None:
        super().__init__(path, KIND, file.metadata.num_rows, columns)
        self._file = file
        groups = range(file.metadata.num_row_groups)
        self._firsts = [0, *accumulate(file.metadata.row_group(g).num_rows for g in groups)]
        self._group, self._held = -1, dict[str, Any]()

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._file, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    def _field(self, name: str, rows: slice) -> Any:
        parts, at = [], rows.start
        while at < rows.stop:
            group = bisect_right(self._firsts, at) - 1
            first, end = self._firsts[group : group + 2]
            parts.append(self._column(group, name)[at - first : min(rows.stop, end) - first])
            at = end
        if isinstance(parts[0], list):
            return [text for part in parts for text in part]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _column(self, group: int, name: str) -> Any:
        if group != self._group:
            self._group, self._held = group, {}
            names = list({column.field for column in self._columns})
            table = self._file.read_row_group(group, columns=names, use_threads=False)
            for column in self._columns:
                values = table.column(column.field)
                self._held[column.field] = (
                    [None if text is None else str(text) for text in values.to_pylist()]
                    if column.is_text
                    else values.to_numpy()
                )
        return self._held[name]


def open_parquet(path: Path, options: SourceOptions) -> Contents:
    """Open a Parquet file as a table."""
    parquet = library("pyarrow.parquet", "arrow", path)
    types = library("pyarrow.types", "arrow", path)
    with reading(path, KIND):
        # Not mapped: a file that is cut short while it is mapped ends the process.
        file = parquet.ParquetFile(path, memory_map=False)
        schema = file.schema_arrow
        columns = [
            _column_of(types, field.name, field.type)
            for field in schema
            if not field.name.startswith(INDEX)
        ]
    if not file.metadata.num_rows:
        raise DataError(f"{path}: holds no rows; add at least one row")
    return Contents(str(path), "", ParquetRows(path, file, columns))


def _column_of(types: Any, name: str, kind: Any) -> Column:
    value = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value) or types.is_large_string(value)
    dtype: np.dtype[Any] | None = None
    if types.is_boolean(value):
        dtype = np.dtype(np.bool_)
    elif types.is_integer(value) or types.is_floating(value):
        dtype = np.dtype(value.to_pandas_dtype())
    return Column(name, dtype, is_text, str(kind), name)
