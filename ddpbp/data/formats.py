"""Readers of files: IDX, .npy, .npz and CSV. Nothing is unpickled; a fault names file and place."""

import csv
import difflib
import gzip
import io
import math
import textwrap
import warnings
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from ddpbp.errors import DataError

Array = npt.NDArray[Any]

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever reading a file can raise into one sentence about that file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged header can make numpy raise almost anything
        if isinstance(error, OSError) and error.strerror:
            fault = f"cannot be read: {error.strerror}; check the path"
        elif isinstance(error, UnicodeDecodeError):
            fault = f"not UTF-8 text: {error}; save it as UTF-8"
        elif "Object arrays" in str(error):
            fault = (
                "holds a pickled object array, which could run code and is never loaded; "
                "save plain numbers, e.g. array.astype(float)"
            )
        else:
            why = textwrap.shorten(str(error), 90)
            fault = f"cut short, damaged or not {kind} ({why}); copy or write it again"
        raise DataError(f"{path}: {fault}") from error


def _open(path: Path) -> IO[bytes]:
    """Open a file, through gzip when its first bytes say so."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def read_idx(path: Path) -> Array:
    """Read an IDX file, plain or gzip: the array in the shape its header states."""
    with reading(path, "an IDX file"), _open(path) as file:
        raw = file.read()
    zeros, kind, dims = raw[:2], raw[2] if len(raw) > 2 else 0, raw[3] if len(raw) > 3 else 0
    if zeros != b"\0\0" or kind not in IDX_TYPES or not 0 < dims < 9:
        raise DataError(
            f"{path}: not an IDX file: begins with the bytes {raw[:4].hex(' ') or '(none)'}; an "
            "IDX file begins with 00 00, a type (08 for uint8) and the number of dimensions"
        )
    dtype = np.dtype(IDX_TYPES[kind])
    start = 4 + 4 * dims
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise DataError(
            f"{path}: {'cut short' if len(raw) < expected else 'too long'}: {len(raw)} bytes where "
            f"the header {shape} needs {expected}; copy it again"
        )
    return (
        np.frombuffer(raw, dtype, offset=start)
        .reshape(shape)
        .astype(dtype.newbyteorder("="), copy=False)
    )


def read_npy(path: Path) -> Array:
    """Read the one array of a .npy file."""
    with (
        reading(path, "a .npy file"),
        path.open("rb") as file,
        warnings.catch_warnings(action="ignore"),
    ):
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with (
        reading(path, "a .npz file"),
        path.open("rb") as file,
        warnings.catch_warnings(action="ignore"),
    ):
        yield np.lib.npyio.NpzFile(file, allow_pickle=False)


def npz_names(path: Path) -> list[str]:
    """List the names of the arrays in a .npz file."""
    with _npz(path) as archive:
        return list(archive.files)


def read_npz(path: Path, name: str) -> Array:
    """Read one array of a .npz file."""
    with _npz(path) as archive:
        array = archive[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
        return array


@dataclass(frozen=True)
class Layout:
    """How a CSV file is laid out.

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


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with (
        reading(path, "CSV text"),
        _open(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
    ):
        yield text


def csv_layout(path: Path) -> Layout:
    """Tell how a CSV file is laid out from its first two lines.

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
    return Layout(delimiter, names, len(first), skip if header else 0)


def columns(
    path: Path, target: str | None, names: tuple[str, ...] | None, count: int, task: str = ""
) -> list[int]:
    """Find the target columns, by name or by index."""
    if target is None:
        return [count - 1]
    names = names or ()
    picks = []
    for word in [target] if target in names else [word.strip() for word in target.split(",")]:
        if word in names:
            picks.append(names.index(word))
        elif word.lstrip("-").isdecimal() and -count <= int(word) < count:
            picks.append(int(word) % count)
        else:
            held = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
            raise DataError(
                f"{path}: no column {word!r}{hint(word, names)}; set data.target to one of "
                f"{held or f'0 to {count - 1}'}"
            )
    if len(picks) > 1 and task in ("classification", "binary"):
        raise DataError(f"{path}: data.target {target!r} names {len(picks)}; {task} takes one")
    if len(set(picks)) < len(picks) or len(picks) >= count:
        raise DataError(
            f"{path}: data.target {target!r} names a column twice or leaves no features; "
            f"there are {count} columns"
        )
    return picks


def read_csv(path: Path, layout: Layout, texts: Collection[int] = ()) -> tuple[Array, list[str]]:
    """Read a CSV file.

    Parameters
    ----------
    path : Path
        The file, plain or gzip.
    layout : Layout
        From `csv_layout`.
    texts : collection of int
        The columns that may hold text; all others must hold finite numbers.

    Returns
    -------
    table : (rows, columns) float64
        The numbers; in the columns of text, indices into `words`.
    words : list of str
        The distinct texts in order of appearance.
    """
    codes: dict[str, int] = {}
    code = {column: lambda field: codes.setdefault(field.strip(), len(codes)) for column in texts}
    if next((row for at, row in _lines(path, layout.delimiter) if at > layout.skip), None) is None:
        raise DataError(f"{path}: holds no rows of data, only a header; add at least one row")
    try:
        with _text(path) as text:
            table = np.loadtxt(
                text,
                delimiter=layout.delimiter,
                skiprows=layout.skip,
                converters=cast(Any, code),
                comments=None,
                quotechar='"',
                ndmin=2,
            )
    except DataError as error:
        _raise_csv_fault(path, layout, texts)
        raise error
    if table.shape[1] != layout.columns or not np.isfinite(table).all():
        _raise_csv_fault(path, layout, texts)
    return table, list(codes)


def _lines(path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Yield (number of the line it ends on, fields) of each row that is not blank."""
    with _text(path) as text:
        reader = csv.reader(text, delimiter=delimiter)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _raise_csv_fault(path: Path, layout: Layout, texts: Collection[int]) -> None:
    """Read once more, slowly, and name the first line at fault."""
    for line, row in _lines(path, layout.delimiter):
        if line <= layout.skip:
            continue
        if len(row) != layout.columns:
            raise DataError(
                f"{path}, line {line}: {len(row)} field(s) where the first line has "
                f"{layout.columns}; every line needs the same number of fields"
            )
        for column, field in enumerate(row):
            value = 0.0 if column in texts else number(field)
            if value is None or not math.isfinite(value):
                raise DataError(
                    f"{path}, line {line}, column {layout.name(column)}: found {field[:40]!r}; "
                    "a finite number is needed: fill it in or remove it (class labels may be text: "
                    "data.target names their column, by default the last)"
                )


def number(field: str) -> float | None:
    """Parse a field; None if it is no number."""
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def hint(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that was probably meant."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
