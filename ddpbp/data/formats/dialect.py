"""How a text of columns is written: separator, header, decimal sign, encoding; and its fields."""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ddpbp.data.checks import number_or_boolean
from ddpbp.data.files import open_stream, reading
from ddpbp.data.formats import lines
from ddpbp.data.options import SourceOptions
from ddpbp.errors import DataError

BLANK = " "
LEAST_NUMBERED = 4
"""Columns that 0, 1, 2, ... must name to be a header: fewer may be a row of data."""


@dataclass(frozen=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes
    ----------
    delimiter : str or None
        Semicolon, tab or comma: the most frequent one in the first line; None for runs of blanks.
    names : tuple of str or None
        The header, if there is one.
    columns : int
        The number of fields in each line.
    skip : int
        The number of lines before the first row of data.
    decimal : str
        The sign before decimals.
    encoding : str
        One in which ASCII is one byte a character.
    """

    delimiter: str | None
    names: tuple[str, ...] | None
    columns: int
    skip: int
    decimal: str = "."
    encoding: str = "utf-8"

    def name(self, column: int) -> str:
        """Name a column for a message: its header, or its number counted from 0."""
        return f'"{self.names[column]}"' if self.names else str(column)


@contextmanager
def text_of(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a text, without its byte order mark."""
    with (
        reading(path, "CSV text"),
        open_stream(path) as stream,
        io.TextIOWrapper(cast(Any, stream.file), encoding=_with_mark(encoding), newline="") as text,
    ):
        yield text


def _with_mark(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding


def encoding_of(path: Path, name: str | None) -> str:
    """Return the proper name of an encoding, by default UTF-8.

    Raises
    ------
    DataError
        If it is unknown, or line ends are not one byte in it.
    """
    try:
        codec = codecs.lookup(name or "utf-8")
        if "\n,".encode(codec.name) == b"\n,":
            return codec.name
    except (LookupError, UnicodeError):
        pass
    raise DataError(
        f"{path}: data.encoding = {name!r}: allowed are utf-8, latin-1, cp1252 and others of one "
        "byte a sign; convert the file to UTF-8"
    )


def dialect_of(path: Path, options: SourceOptions) -> CsvDialect:
    """Find out how a CSV file is written from its first two lines, as far as it is not set.

    The first line is a header if some field in it is text where the second line has a number, as
    in "age,label" before "31,yes"; "5.1,setosa" before "4.9,setosa" is data.
    """
    encoding, decimal = encoding_of(path, options.encoding), options.decimal
    delimiter = _separator(path, encoding, options.separator)
    if decimal == delimiter:
        raise DataError(f"{path}: data.decimal and data.separator are both {decimal!r}")
    with text_of(path, encoding) as file:
        rows = FieldRows(path, file, delimiter)
        full = (row for row in rows if row)
        first = next(full, [""])
        skip = rows.line
        second = [field.replace(decimal, ".") for field in next(full, ["0"] * len(first))]
    if first == [""]:
        raise DataError(f"{path}: is empty; a header line and rows of numbers are needed")
    text = [number_or_boolean(field.replace(decimal, ".")) is None for field in first]
    above = [
        field
        for field, is_text, below in zip(first, text, second, strict=False)
        if field and is_text and number_or_boolean(below) is not None
    ]
    if above and not all(text):
        raise DataError(
            f"{path}, line {skip}: neither a header nor data: {above[0][:40]!r} stands above a "
            f"number, but {first[text.index(False)][:40]!r} is one; give every column a name that "
            "is no number, or fill in the number"
        )
    named = first[1:] if not first[0] else first  # pandas leaves its index without a name
    numbered = named == [str(i) for i in range(len(named))]
    header = bool(above) or (numbered and (named != first or len(named) >= LEAST_NUMBERED))
    names = tuple(field.strip() for field in first) if header else None
    return CsvDialect(delimiter, names, len(first), skip if header else 0, decimal, encoding)


def _separator(path: Path, encoding: str, name: str | None) -> str | None:
    """Return what separates the columns: as set, or the most frequent sign in the first line."""
    if name is not None:
        sign = {"tab": "\t", "blanks": BLANK, "\\t": "\t"}.get(name, name)
        if len(sign) != 1 or not sign.isascii() or sign in '\n\r"':
            raise DataError(
                f"{path}: data.separator = {name!r}: allowed are one sign, tab and blanks"
            )
        return None if sign == BLANK else sign
    with text_of(path, encoding) as file:
        line = ""
        while not line.strip() and (line := file.readline(lines.MAX_ROW_CHARACTERS)):
            if len(line) == lines.MAX_ROW_CHARACTERS:
                raise lines.too_long(path)
    sign = max(";\t,", key=line.count)
    blanks = sign not in line and len(line.split()) > 1
    return None if blanks else sign


class FieldRows:
    """The fields of each row; of a blank line there are none.

    Attributes
    ----------
    line : int
        The number of the line on which the last row ended.
    """

    def __init__(
        self, path: Path, text: Iterable[str], delimiter: str | None, before: int = 0
    ) -> None:
        self._path, self._text, self._delimiter = path, text, delimiter
        self._characters, self.line = 0, before

    def __iter__(self) -> Iterator[list[str]]:
        if self._delimiter is None:
            for line in self._counted():
                self._characters = 0
                yield line.split()
            return
        try:
            for row in csv.reader(self._counted(), delimiter=self._delimiter, strict=True):
                self._characters = 0
                yield row
        except csv.Error as error:
            raise DataError(f"{self._path}, line {self.line}: not CSV: {error}") from error

    def _counted(self) -> Iterator[str]:
        for line in self._text:
            self.line += 1
            self._characters += len(line)
            if self._characters > lines.MAX_ROW_CHARACTERS:
                raise lines.too_long(self._path)
            yield line
