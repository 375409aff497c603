"""Opening files that others made: regular ones only."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, cast


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Reading a pipe could wait forever, and a device may never end.

    Raises
    ------
    OSError
        If it cannot be opened, or is something else.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", str(path))
    return cast(BinaryIO, file)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
