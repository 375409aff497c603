"""The CSV format: a table of text, plain or gzip, with or without a header.

A number is written in ASCII, as C has it: 1, -2.5, 1e-3. Hexadecimal, underscores, digits of other
scripts, infinity and NaN are refused, and so are quotes that are not closed and rows of more than
`MAX_ROW_CHARACTERS`. The text is read in blocks of lines, each of which becomes numbers before the
next is read, so a compressed file needs memory for its numbers only.
"""

import csv
import io
import math
import warnings
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ddpbp.data.checks import number
from ddpbp.data.files import open_stream, reading
from ddpbp.data.rows import Array, Contents, Rows, Schema
from ddpbp.errors import DataError

BLOCK_CHARACTERS = 2**18
MAX_ROW_CHARACTERS = 2**24


@dataclass(frozen=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes
    ----------
    delimiter : str
        Semicolon, tab or comma: the most frequent one in the first line.
    names : tuple of str or None
        The header, if there is one.
    columns : int
        The number of fields in each line.
    skip : int
        The number of lines before the first row of data.
    """

    delimiter: str
    names: tuple[str, ...] | None
    columns: int
    skip: int

    def name(self, column: int) -> str:
        """Name a column for a message: its header, or its number counted from 0."""
        return f'"{self.names[column]}"' if self.names else str(column)


class CsvRows(Rows):
    """The rows of a CSV file, parsed whole when the first of them is needed.

    Parameters
    ----------
    path : Path
    dialect : CsvDialect
    texts : collection of int
        The columns that may hold text; all others must hold finite numbers.
    """

    def __init__(self, path: Path, dialect: CsvDialect, texts: Collection[int] = ()) -> None:
        self._path, self._dialect, self._texts = path, dialect, texts

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return Schema((self._dialect.columns,), np.dtype(np.float64), self._dialect.names)

    def __len__(self) -> int:
        return len(self._parsed[0])

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        out[...] = self._parsed[0][rows]

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    def allow_text(self, columns: Collection[int]) -> Rows:  # noqa: D102
        return CsvRows(self._path, self._dialect, columns)

    @property
    def words(self) -> Sequence[str]:  # noqa: D102
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[Array, list[str]]:
        return parse(self._path, self._dialect, self._texts)


def open_csv(path: Path) -> Contents:
    """Open a CSV file as a table."""
    needs = ", separated by comma, semicolon or tab"
    return Contents(str(path), needs, CsvRows(path, dialect_of(path)))


class _ShortLines(io.BufferedIOBase):
    """The bytes of a file, unless a line is too long to be held."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self._since = path, file, 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        block = self._file.read1(size)  # type: ignore[attr-defined] # of files and of gzip's
        end = 1 + max(block.rfind(b"\n"), block.rfind(b"\r"))
        self._since = len(block) - end + (0 if end else self._since)
        if self._since > MAX_ROW_CHARACTERS:
            raise _too_long(self._path)
        return cast(bytes, block)


def _too_long(path: Path) -> DataError:
    return DataError(
        f"{path}: a row of more than {MAX_ROW_CHARACTERS:,} characters; is it CSV, "
        "and is every quote closed?"
    )


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with (
        reading(path, "CSV text"),
        open_stream(path) as stream,
        io.TextIOWrapper(
            cast(Any, _ShortLines(path, stream.file)), encoding="utf-8-sig", newline=""
        ) as text,
    ):
        yield text


def dialect_of(path: Path) -> CsvDialect:
    """Find out how a CSV file is written from its first two lines.

    The first line is a header if some field in it is text where the second line has a number, as
    in "age,label" before "31,yes"; "5.1,setosa" before "4.9,setosa" is data.
    """
    with _text(path) as file:
        line = next((line for line in file if line.strip()), "")
    delimiter = max(";\t,", key=line.count)
    with _text(path) as file:
        rows = _TableRows(path, file, delimiter)
        full = (row for row in rows if row)
        first = next(full, [""])
        skip = rows.line
        second = next(full, ["0"] * len(first))
    if first == [""]:
        raise DataError(f"{path}: is empty; a header line and rows of numbers are needed")
    text = [number(field) is None for field in first]
    above = [
        field
        for field, is_text, below in zip(first, text, second, strict=False)
        if field and is_text and number(below) is not None
    ]
    if above and not all(text):
        raise DataError(
            f"{path}, line {skip}: neither a header nor data: {above[0][:40]!r} stands above a "
            f"number, but {first[text.index(False)][:40]!r} is one; give every column a name that "
            "is no number, or fill in the number"
        )
    header = bool(above)
    names = tuple(field.strip() for field in first) if header else None
    return CsvDialect(delimiter, names, len(first), skip if header else 0)


def parse(path: Path, dialect: CsvDialect, texts: Collection[int]) -> tuple[Array, list[str]]:
    """Read a CSV file whole.

    Parameters
    ----------
    path : Path
    dialect : CsvDialect
        From `dialect_of`.
    texts : collection of int
        As `CsvRows` has them.

    Returns
    -------
    table : (rows, columns) float64
        The numbers; in the columns of text, indices into `words`.
    words : list of str
        The distinct texts in order of appearance.
    """
    numbers, codes = array("d"), dict[str, int]()

    def code(field: str) -> int:
        return codes.setdefault(field.strip(), len(codes))

    converters = dict.fromkeys(texts, code)
    with _text(path) as text, warnings.catch_warnings(action="ignore"):
        for _ in range(dialect.skip):
            text.readline()
        line = dialect.skip
        while block := text.readlines(BLOCK_CHARACTERS):
            try:
                table = _parse_simple(block, dialect, converters)
            except ValueError:  # quotes, or a fault
                rows = _TableRows(path, chain(block, text), dialect.delimiter, line)
                for row in rows:
                    if row:
                        numbers.fromlist(_parse_row(path, rows.line, row, dialect, converters))
                    if rows.line >= line + len(block):
                        break
                line = rows.line
            else:
                numbers.frombytes(table.data.cast("B"))
                line += len(block)
    if not numbers:
        raise DataError(f"{path}: holds no rows of data, only a header; add at least one row")
    return np.frombuffer(numbers).reshape(-1, dialect.columns), list(codes)


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


class _TableRows:
    """The fields of each row; of a blank line there are none.

    Attributes
    ----------
    line : int
        The number of the line on which the last row ended.
    """

    def __init__(self, path: Path, lines: Iterable[str], delimiter: str, before: int = 0) -> None:
        self._path, self._lines, self._delimiter = path, lines, delimiter
        self._characters, self.line = 0, before

    def __iter__(self) -> Iterator[list[str]]:
        try:
            for row in csv.reader(self._counted(), delimiter=self._delimiter, strict=True):
                self._characters = 0
                yield row
        except csv.Error as error:
            raise DataError(f"{self._path}, line {self.line}: not CSV: {error}") from error

    def _counted(self) -> Iterator[str]:
        for line in self._lines:
            self.line += 1
            self._characters += len(line)
            if self._characters > MAX_ROW_CHARACTERS:
                raise _too_long(self._path)
            yield line


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
        value = code[column](field) if column in code else number(field)
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{path}, line {line}, column {dialect.name(column)}: found {field[:40]!r}; "
                "a finite number is needed: fill it in or remove it (class labels may be text: "
                "data.target names their column, by default the last)"
            )
        numbers.append(value)
    return numbers
