"""The CSV format: a table of text, plain or gzip, with or without a header."""

import csv
import io
import math
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ddpbp.data.checks import number
from ddpbp.data.files import open_binary, reading
from ddpbp.data.rows import Array, Contents, Rows, Schema
from ddpbp.errors import DataError


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


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with (
        reading(path, "CSV text"),
        open_binary(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
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
    lines = _lines(path, delimiter)
    skip, first = next(lines, (0, [""]))
    _, second = next(lines, (0, ["0"] * len(first)))
    lines.close()
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
            f"number, but {first[text.index(False)]!r} is one; give every column a name that is no "
            "number, or fill in the number"
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
    codes: dict[str, int] = {}
    code = {column: lambda field: codes.setdefault(field.strip(), len(codes)) for column in texts}
    if (
        next((row for at, row in _lines(path, dialect.delimiter) if at > dialect.skip), None)
        is None
    ):
        raise DataError(f"{path}: holds no rows of data, only a header; add at least one row")
    try:
        with _text(path) as text:
            table = np.loadtxt(
                text,
                delimiter=dialect.delimiter,
                skiprows=dialect.skip,
                converters=cast(Any, code),
                comments=None,
                quotechar='"',
                ndmin=2,
            )
    except DataError as error:
        _raise_fault(path, dialect, texts)
        raise error
    if table.shape[1] != dialect.columns or not np.isfinite(table).all():
        _raise_fault(path, dialect, texts)
    return table, list(codes)


def _lines(path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Yield (number of the line it ends on, fields) of each row that is not blank."""
    with _text(path) as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _raise_fault(path: Path, dialect: CsvDialect, texts: Collection[int]) -> None:
    """Read the file again line by line, and name the first line at fault."""
    for line, row in _lines(path, dialect.delimiter):
        if line <= dialect.skip:
            continue
        if len(row) != dialect.columns:
            raise DataError(
                f"{path}, line {line}: {len(row)} field(s) where the first line has "
                f"{dialect.columns}; every line needs the same number of fields"
            )
        for column, field in enumerate(row):
            value = 0.0 if column in texts else number(field)
            if value is None or not math.isfinite(value):
                raise DataError(
                    f"{path}, line {line}, column {dialect.name(column)}: found {field[:40]!r}; "
                    "a finite number is needed: fill it in or remove it (class labels may be text: "
                    "data.target names their column, by default the last)"
                )
