"""metrics.jsonl: one JSON object a line, for each epoch and each step that is logged."""

import errno
import hashlib
import os
from pathlib import Path

import msgspec

from ddpbp.run.sinks import Record
from ddpbp.store.files import write_whole
from ddpbp.store.run_folder import MetricsMark


class JsonLines:
    """Appends records to a file, unbuffered, so that a kill loses at most one line.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        If the file cannot be opened.
    """

    live = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        content = self._content()
        self._length_bytes, self._sha256 = len(content), hashlib.sha256(content)

    def __str__(self) -> str:
        return str(self._path)

    @property
    def mark(self) -> MetricsMark:
        """The length and the hash of all lines so far."""
        return MetricsMark(self._length_bytes, self._sha256.hexdigest())

    def log(self, record: Record) -> None:
        """Write the records of epochs and logged steps."""
        if record["kind"] in ("epoch", "step"):
            line = msgspec.json.encode(record) + b"\n"
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._length_bytes += len(line)
            self._sha256.update(line)

    def is_free(self) -> bool:
        """Return whether no other file has the name of this one."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return True

    def restore(self) -> None:
        """Write the file again, whose name was removed: its content lives while it is open.

        Raises
        ------
        DdpbpError
            If it cannot be written.
        """
        write_whole(self._path, [self._content()[: self._length_bytes]])
        self._file.close()
        self._file = self._path.open("a+b", buffering=0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _content(self) -> bytes:
        self._file.seek(0)
        return self._file.read()
