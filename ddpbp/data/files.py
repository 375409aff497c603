"""Opening files, and the messages for those that cannot be read."""

import gzip
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from ddpbp.base.files import open_regular
from ddpbp.base.spelling import nearest
from ddpbp.errors import DataError

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DEFLATE_RATIO = 1_032
"""The most bytes that deflate, of gzip and zip, makes of one."""
ZSTANDARD_RATIO = 2**15
"""The most that is believed of Zstandard, which has no limit."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn any error raised while reading a file into a `DataError` that names the file.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be, with its article: "a .npy file".
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged header can make numpy raise almost anything
        if isinstance(error, OSError) and error.strerror:
            fault = f"cannot be read: {error.strerror}; check the path"
        elif isinstance(error, UnicodeDecodeError):
            raise not_utf8(path, error.object[error.start], error.start) from error
        else:
            why = textwrap.shorten(str(error), 90)
            fault = f"cut short, damaged or not {kind} ({why}); copy or write it again"
        raise DataError(f"{path}: {fault}") from error


def not_utf8(path: Path, byte: int, place: int) -> DataError:
    """Return the fault of a text with a byte that UTF-8 does not have there."""
    packed = "neither gzip nor " if path.suffix.lower() == ".gz" else "not "
    return DataError(
        f"{path}: {packed}UTF-8 text (byte 0x{byte:02x} at {place:,}); save it as UTF-8, or set "
        "data.encoding"
    )


class Stream(NamedTuple):
    """An open file, decompressed.

    Attributes
    ----------
    file : binary file
    most_bytes : int
        The bytes that it can hold at most.
    exact : bool
        It holds exactly so many.
    packed : bool
        It is decompressed while it is read, from its begin on.
    """

    file: IO[bytes]
    most_bytes: int
    exact: bool
    packed: bool = False


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a regular file for reading; a gzip file is decompressed."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(4)
        file.seek(0)
        if begin == ZSTANDARD:
            zstandard = library("zstandard", "zstd", path)
            with zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
                yield Stream(unpacked, size * ZSTANDARD_RATIO, exact=False, packed=True)
        elif begin[:2] == GZIP:
            with gzip.open(file) as unpacked:
                yield Stream(
                    cast(IO[bytes], unpacked), size * DEFLATE_RATIO, exact=False, packed=True
                )
        else:
            yield Stream(file, size, exact=True)


class Continued:
    """A file that stays open, so that a read goes on where the last one ended.

    Of compressed data all before a place must be decompressed to read there. A file that is opened
    again must be the one that it was.

    Parameters
    ----------
    path : Path
    open : callable
        Opens the stream.
    """

    def __init__(self, path: Path, open: Callable[[], AbstractContextManager[Stream]]) -> None:
        self._stack = ExitStack()
        self._open, self._unchanged = open, Unchanged(path)
        self._stream: Stream | None = None

    def __del__(self) -> None:
        self._stack.close()

    def at(self, place: int) -> IO[bytes]:
        """Return the file at a byte of its content."""
        if self._stream is None or self._stream.file.tell() != place:
            if self._stream is None or self._stream.packed:
                self.close()
                self._stream = self._stack.enter_context(self._open())
            self._stream.file.seek(place)
        return self._stream.file

    def close(self) -> None:
        """Close the file; refuse one that was changed meanwhile."""
        self._stack.close()
        self._stream = None
        self._unchanged.require()


class Unchanged:
    """A file that must stay as it is while it is read.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, self._now(path)

    def require(self) -> None:
        """Refuse a file that was written to, or replaced.

        Raises
        ------
        DataError
        """
        if self._now(self._path) != self._state:
            raise DataError(
                f"{self._path}: changed while it was read; start again when it is whole"
            )

    @staticmethod
    def _now(path: Path) -> tuple[int, ...]:
        state = path.stat()
        return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def is_gzip(path: Path) -> bool:
    """Return whether a regular file begins with the two bytes of gzip."""
    with open_regular(path) as file:
        return file.read(2) == GZIP


def hint(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to `word`, or ""."""
    similar = nearest(word, islice(known, 1_000))
    return f" (did you mean {similar!r}?)" if similar else ""


def library(name: str, extra: str, path: Path) -> Any:
    """Import the library that reads a format.

    Raises
    ------
    DataError
        If it is not installed: names the command that does it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs {name} ({error}); run: pip install 'ddpbp[{extra}]'"
        ) from None
