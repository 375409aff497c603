"""The CSV format: a table of text, plain or gzip, with or without a header.

A number is written in ASCII, as C has it: 1, -2.5, 1e-3. Hexadecimal, underscores, digits of other
scripts, infinity and NaN are refused, and so are quotes that are not closed and rows of more than
`MAX_ROW_CHARACTERS`. The text is read by ranges of rows, through an index of its lines, and each
segment of about a megabyte becomes numbers before the next is read.
"""

import io
import math
import warnings
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ddpbp.data.checks import number_or_boolean, number_or_gap
from ddpbp.data.files import Continued, not_utf8, open_stream, reading
from ddpbp.data.formats import lines
from ddpbp.data.formats.dialect import BLANK, CsvDialect, FieldRows, dialect_of, text_of
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Contents, Rows, Schema
from ddpbp.errors import DataError


class CsvRows(Rows):
    """The rows of a CSV file, parsed as they are read.

    Parameters
    ----------
    path : Path
    dialect : CsvDialect
    texts : collection of int
        The columns that may hold text; all others must hold finite numbers.
    gaps : bool
        A number may be missing; it is NaN then.
    """

    def __init__(
        self, path: Path, dialect: CsvDialect, texts: Collection[int] = (), *, gaps: bool = False
    ) -> None:
        self._path, self._dialect, self._texts, self._gaps = path, dialect, texts, gaps
        self._codes = dict[str, int]()
        with reading(path, "CSV text"):
            self._file = Continued(path, partial(open_stream, path))
        self._begin, self._table = -1, np.empty((0, 0))

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return Schema((self._dialect.columns,), np.dtype(np.float64), self._dialect.names)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    @property
    def texts(self) -> Collection[int]:  # noqa: D102
        return self._texts

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return list(self._codes)

    def allow_text(self, columns: Collection[int]) -> Rows:  # noqa: D102
        return CsvRows(self._path, self._dialect, columns, gaps=self._gaps)

    def release(self) -> None:  # noqa: D102
        self._begin, self._table = -1, np.empty((0, 0))
        self._file.close()

    def allow_gaps(self) -> Rows:  # noqa: D102
        return CsvRows(self._path, self._dialect, self._texts, gaps=True)

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        at = rows.start
        while at < rows.stop:
            begin, end = self._index.segment(at)
            if self._begin != begin.byte:
                self._table, self._begin = self._parsed(begin, end), begin.byte
            taken = self._table[at - begin.row : rows.stop - begin.row]
            out[at - rows.start : at - rows.start + len(taken)] = taken
            at += len(taken)

    @cached_property
    def _index(self) -> lines.Index:
        with reading(self._path, "CSV text"):
            try:
                index = lines.scan(
                    self._path,
                    self._file.at(0),
                    self._dialect.delimiter or BLANK,
                    header=self._dialect.names is not None,
                )
            except lines.StrayQuoteError:
                index = self._index_exactly()
            self._file.close()
        if not len(index):
            raise DataError(
                f"{self._path}: holds no rows of data, only a header; add at least one row"
            )
        return index

    def _index_exactly(self) -> lines.Index:
        """Tell the rows apart as the parser does."""
        byte = len(lines.BOM) if self._file.at(0).read(len(lines.BOM)) == lines.BOM else 0

        def counted(text: IO[str]) -> Iterator[str]:
            nonlocal byte
            for line in text:
                byte += len(line.encode(self._dialect.encoding))
                yield line

        with text_of(self._path, self._dialect.encoding) as text:
            rows = FieldRows(self._path, counted(text), self._dialect.delimiter)

            def begins() -> Iterator[tuple[int, int]]:
                before = (rows.line, byte)
                for row in rows:
                    if row and rows.line > self._dialect.skip:
                        yield before
                    before = (rows.line, byte)

            return lines.scan_exactly(begins(), lambda: byte)

    def _parsed(self, begin: lines.Mark, end: lines.Mark) -> Array:
        """Return the numbers of a segment; in the columns of text, indices into `words`."""
        converters: dict[int, Any] = dict.fromkeys(self._texts, self._code)
        exact = converters
        if self._gaps:
            others = {*range(self._dialect.columns)} - {*self._texts}
            exact = converters | dict.fromkeys(others, number_or_gap)
        with reading(self._path, "CSV text"), warnings.catch_warnings(action="ignore"):
            raw = self._file.at(begin.byte).read(end.byte - begin.byte)
            block = io.StringIO(self._decoded(raw, begin.byte), newline="").readlines()
            try:
                table = _parse_simple(block, self._dialect, converters)
            except ValueError:  # quotes, or a fault
                numbers = array("d")
                rows = FieldRows(self._path, block, self._dialect.delimiter, begin.line)
                for row in rows:
                    if row:
                        numbers.fromlist(
                            _parse_row(self._path, rows.line, row, self._dialect, exact)
                        )
                table = np.frombuffer(numbers).reshape(-1, self._dialect.columns)
            if len(table) != end.row - begin.row:
                self._file.close()
                raise ValueError(f"{len(table)} rows where {end.row - begin.row} were counted")
        return table

    def _decoded(self, raw: bytes, place: int) -> str:
        dialect = self._dialect
        try:
            text = raw.decode(dialect.encoding)
        except UnicodeDecodeError as error:
            raise not_utf8(self._path, raw[error.start], place + error.start) from error
        return text if dialect.decimal == "." else text.replace(dialect.decimal, ".")

    def _code(self, field: str) -> int:
        return self._codes.setdefault(field.strip(), len(self._codes))


def open_csv(path: Path, options: SourceOptions) -> Contents:
    """Open a CSV file as a table."""
    needs = ", separated by comma, semicolon, tab or blanks (data.separator)"
    return Contents(str(path), needs, CsvRows(path, dialect_of(path, options)))


def _parse_simple(block: list[str], dialect: CsvDialect, converters: dict[int, Any]) -> Array:
    """Return the numbers of lines without quotes.

    Raises
    ------
    ValueError
        If there are quotes, no numbers, numbers that are not finite or another number of fields.
    """
    if '"' in "".join(block):
        raise ValueError("quotes")
    table: Array = np.loadtxt(
        block, delimiter=dialect.delimiter, converters=cast(Any, converters), comments=None, ndmin=2
    )
    if table.shape[1] != dialect.columns or not np.isfinite(table).all():
        raise ValueError("a fault, or no rows")
    return table


def _parse_row(
    path: Path,
    line: int,
    row: list[str],
    dialect: CsvDialect,
    code: Mapping[int, Callable[[str], float]],
) -> list[float]:
    """Return the numbers of one row.

    Raises
    ------
    DataError
        Names the line and the column at fault.
    """
    if len(row) != dialect.columns:
        raise DataError(
            f"{path}, line {line}: {len(row)} field(s) where the first line has "
            f"{dialect.columns}; every line needs the same number of fields"
        )
    numbers = []
    for column, field in enumerate(row):
        value = code[column](field) if column in code else number_or_boolean(field)
        if value is None or not (math.isfinite(value) or column in code):
            raise DataError(
                f"{path}, line {line}, column {dialect.name(column)}: found {field[:40]!r}; "
                "a finite number is needed: fill it in or remove it (class labels may be text: "
                "data.target names their column, by default the last)"
            )
        numbers.append(value)
    return numbers
