"""metrics.jsonl: one JSON object a line, for each epoch and each step that is logged."""

from pathlib import Path

import msgspec

from ddpbp.run.sinks import Record


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
        self._file = path.open("ab", buffering=0)

    def __str__(self) -> str:
        return str(self._path)

    def log(self, record: Record) -> None:
        """Write the records of epochs and logged steps."""
        if record["kind"] in ("epoch", "step"):
            self._file.write(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
