"""The files of ddpbp: written whole or not at all, read with a limit and one kind of message."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from ddpbp.errors import DataError, DdpbpError

Buffer = Any  # bytes, or another object with the buffer interface

MAX_JSON_BYTES = 16_000_000


class NewerFormat(DataError):  # noqa: N818
    """A file is whole, but a newer version of ddpbp wrote it."""


def write_synced(path: str | Path, pieces: Iterable[Buffer]) -> str:
    """Write a file and flush it to the disk; return the SHA-256 of its content."""
    with Path(path).open("wb") as file:
        sha256 = _write(file, pieces)
        file.flush()
        os.fsync(file.fileno())
    return sha256


def _write(file: IO[bytes], pieces: Iterable[Buffer]) -> str:
    sha256 = hashlib.sha256()
    for piece in pieces:
        file.write(piece)
        sha256.update(piece)
    return sha256.hexdigest()


def write_whole(path: str | Path, pieces: Iterable[Buffer]) -> str:
    """Write a file so that a reader sees all of it or the one that was there before.

    Returns
    -------
    str
        The SHA-256 of the content.

    Raises
    ------
    DdpbpError
        If it cannot be written; an earlier file stays as it was.
    """
    with whole_file(path) as file:
        return _write(file, pieces)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to be written bit by bit, which appears only when the block ends well.

    Raises
    ------
    DdpbpError
        If it cannot be written; an earlier file stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DdpbpError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def json_text(value: Any) -> bytes:
    """Return a value as indented JSON that ends with a line break; NaN becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def sealed_json(content: dict[str, Any]) -> bytes:
    """Return a JSON object that holds its own hash, under "sha256"."""
    return json_text({**content, "sha256": _content_sha256(content)})


def read_sealed(path: str | Path, newest: int, *, sealed_since: int = 1) -> dict[str, Any]:
    """Read a JSON object that `sealed_json` made, and verify it.

    Parameters
    ----------
    path : str or Path
    newest : int
        The newest format that this version of ddpbp reads.
    sealed_since : int
        The first format that holds its hash.

    Returns
    -------
    dict
        The content, with its "format" and "sha256".

    Raises
    ------
    NewerFormat
        If it is whole, but of a later format.
    DataError
        If it cannot be read or is damaged.
    """
    content = read_json(path)
    intact = content.get("sha256") == _content_sha256(content)
    try:
        number = require_format(path, content, newest)
    except NewerFormat as error:
        if intact:
            raise
        raise DataError(str(error)) from None  # or a flipped bit
    if not intact and ("sha256" in content or number >= sealed_since):
        raise DataError(f"{path} is damaged: its content does not match its hash")
    return {**content, "format": number}


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode({**content, "sha256": ""})).hexdigest()


def sync_folder(folder: str | Path) -> None:
    """Flush a folder to the disk, so that a rename in it survives a loss of power."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_bytes(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a small file.

    Raises
    ------
    DataError
        If it cannot be read or is larger than `max_bytes`.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise DataError(f"{path} is damaged: it is larger than {max_bytes:,} bytes")
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object that ddpbp wrote.

    Raises
    ------
    DataError
        If the file cannot be read, is too large or does not hold a JSON object.
    """
    return decode_json(path, read_bytes(path))


def decode_json(path: str | Path, text: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `text`, which comes from the file `path`.

    Raises
    ------
    DataError
        If there is none.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def require_format(path: str | Path, content: dict[str, Any], newest: int) -> int:
    """Return the format number of a file; without one it is 1, the first format.

    Raises
    ------
    NewerFormat
        If this version of ddpbp does not know the format yet.
    DataError
        If no version does.
    """
    number = content.get("format", 1)
    if isinstance(number, int) and number > newest:
        raise NewerFormat(
            f"{path} is of format {number}, and this ddpbp reads formats 1 to {newest}: "
            "use a newer version of ddpbp"
        )
    if not isinstance(number, int) or number < 1:
        raise DataError(f"{path} is damaged: format {number!r}, allowed are 1 to {newest}")
    return number
