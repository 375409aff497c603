"""Opening files, and the messages for files that cannot be read."""

import gzip
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from ddpbp.base.spelling import nearest
from ddpbp.errors import DataError


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
    except DataError:
        raise
    except Exception as error:  # a damaged header can make numpy raise almost anything
        if isinstance(error, OSError) and error.strerror:
            fault = f"cannot be read: {error.strerror}; check the path"
        elif isinstance(error, UnicodeDecodeError):
            fault = f"not UTF-8 text: {error}; save it as UTF-8"
        elif "Object arrays" in str(error) or "Python objects" in str(error):
            fault = (
                "holds a pickled object array, which could run code and is never loaded; "
                "save plain numbers, e.g. array.astype(float)"
            )
        else:
            why = textwrap.shorten(str(error), 90)
            fault = f"cut short, damaged or not {kind} ({why}); copy or write it again"
        raise DataError(f"{path}: {fault}") from error


def is_gzip(path: Path) -> bool:
    """Return whether the first two bytes of a file are those of gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading; a gzip file is decompressed."""
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else path.open("rb")


def hint(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to `word`, or ""."""
    similar = nearest(word, known)
    return f" (did you mean {similar!r}?)" if similar else ""
