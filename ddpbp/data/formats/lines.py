"""Which bytes of a text hold which rows: an index, made by one scan, for reading by ranges of rows.

A row is a line that is not empty; a line may hold line ends inside quotes. The scan looks at bytes
only: line ends and quotes are the same bytes in ASCII and UTF-8.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.errors import DataError

CHUNK_BYTES = 2**20
MAX_ROW_CHARACTERS = 2**24
NEWLINE, RETURN, QUOTE = b'\n\r"'
BOM = b"\xef\xbb\xbf"


class Mark(NamedTuple):
    """The begin of a row: its byte, its number, and the lines before it."""

    byte: int
    row: int
    line: int


class Index:
    """The begins of segments of whole rows, about a chunk long, and the number of all rows.

    Parameters
    ----------
    marks : list of Mark
        The begin of each segment, and the end of the text.
    """

    def __init__(self, marks: list[Mark]) -> None:
        self._marks = marks
        self._rows = [mark.row for mark in marks]

    def __len__(self) -> int:
        return self._rows[-1] if self._rows else 0

    def segment(self, row: int) -> tuple[Mark, Mark]:
        """Return the begin and the end of the segment that holds a row."""
        i = bisect_right(self._rows, row) - 1
        return self._marks[i], self._marks[i + 1]


class StrayQuoteError(ValueError):
    """A quote stands inside a field that is not quoted, so bytes alone do not tell the rows."""


def scan(path: Path, file: IO[bytes], delimiter: str, *, header: bool) -> Index:
    """Find the rows of a text.

    Parameters
    ----------
    path : Path
        For messages.
    file : binary file
        At its begin.
    delimiter : str
        What a quoted field may follow.
    header : bool
        The first row is none.

    Raises
    ------
    StrayQuoteError
    DataError
        If a row is too long to be held.
    """
    before_quote = np.zeros(256, bool)
    before_quote[[NEWLINE, RETURN, QUOTE, ord(delimiter)]] = True
    marks, rows, lines = list[Mark](), -1 if header else 0, 0
    place, last, quoted, since = 0, NEWLINE, False, 0
    while chunk := file.read(CHUNK_BYTES):
        if not place and chunk.startswith(BOM):
            chunk, lines = bytes([NEWLINE] * len(BOM)) + chunk[len(BOM) :], -len(BOM)
        a = np.frombuffer(chunk, np.uint8)
        after = np.concatenate([[np.uint8(last)], a[:-1]])
        ends = (a == NEWLINE) | (a == RETURN)
        if quoted or QUOTE in chunk:
            quotes = a == QUOTE
            inside = (np.cumsum(quotes) + quoted) % 2 == 1
            if (quotes & inside & ~before_quote[after]).any():
                raise StrayQuoteError
            was_inside = np.concatenate([[quoted], inside[:-1]])
            starts = ~ends & ((after == NEWLINE) | (after == RETURN)) & ~was_inside
            quoted = bool(inside[-1])
        else:
            starts = ~ends & ((after == NEWLINE) | (after == RETURN))
        begins = np.flatnonzero(starts)
        first = begins[1:] if rows < 0 else begins  # the header begins no segment
        if len(first):
            at = int(first[0])
            marks.append(Mark(place + at, max(rows, 0), lines + _line_ends(a[:at], after[:at])))
        since = len(a) - int(begins[-1]) if len(begins) else since + len(a)
        if since > MAX_ROW_CHARACTERS:
            raise too_long(path)
        rows += len(begins)
        lines += _line_ends(a, after)
        place, last = place + len(a), int(a[-1])
    return Index([*marks, Mark(place, max(rows, 0), lines)] if marks else [])


def _line_ends(a: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> int:
    """Count the ends of lines; a return and a newline after it are one."""
    newlines = a == NEWLINE
    return int(
        np.count_nonzero(newlines)
        + np.count_nonzero(a == RETURN)
        - np.count_nonzero(newlines & (after == RETURN))
    )


def scan_exactly(rows: Iterable[tuple[int, int]], size: Callable[[], int]) -> Index:
    """Make an index of rows that were told apart by reading them.

    Parameters
    ----------
    rows : iterable of (line, byte)
        The lines and the bytes before each row.
    size : callable
        Returns the bytes of the whole text, at the end.
    """
    marks, count, line = list[Mark](), 0, 0
    for line, byte in rows:
        if not marks or byte - marks[-1].byte >= CHUNK_BYTES:
            marks.append(Mark(byte, count, line))
        count += 1
    return Index([*marks, Mark(size(), count, line)] if marks else [])


def too_long(path: Path) -> DataError:
    """Return the fault of a row that is too long."""
    return DataError(
        f"{path}: a row of more than {MAX_ROW_CHARACTERS:,} characters; is it CSV, "
        "and is every quote closed?"
    )
