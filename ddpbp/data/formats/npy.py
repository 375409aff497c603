"""The .npy format: one array."""

import io
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np

from ddpbp.data.files import Stream, is_gzip, open_stream, reading
from ddpbp.data.formats.elements import ElementRows, Header
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

MAX_HEADER_BYTES = 10_000
"""What NumPy takes as the length of a header."""


class NpyRows(ElementRows):
    """The rows of a .npy file."""

    def __init__(self, path: Path) -> None:
        with reading(path, "a .npy file"):
            if is_gzip(path):
                raise DataError(f"{path}: a compressed .npy file; unpack it first with gunzip")
        super().__init__(path, "a .npy file")

    def _open(self) -> AbstractContextManager[Stream]:
        return open_stream(self._path)

    def _read_header(self, file: IO[bytes]) -> Header:
        return read_npy_header(file)


def read_npy_header(file: IO[bytes]) -> Header:
    """Read the header of an array as `numpy.save` writes it.

    Raises
    ------
    ValueError, or almost anything else
        If it is damaged.
    """
    begin = io.BytesIO(file.read(MAX_HEADER_BYTES + 12))
    version = np.lib.format.read_magic(begin)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format is not known")
    # 3 differs from 2 in the names of structured types only, which are refused.
    read = np.lib.format.read_array_header_1_0
    if version > (1, 0):
        read = np.lib.format.read_array_header_2_0
    with warnings.catch_warnings(action="ignore"):
        try:
            shape, columns_first, dtype = read(begin, max_header_size=MAX_HEADER_BYTES)
        except (MemoryError, RecursionError):
            raise ValueError("the header is nested too deeply") from None
    return Header(dtype, shape, begin.tell(), columns_first)


def open_npy(path: Path, options: SourceOptions) -> Contents:
    """Open a .npy file as a table, or as images to predict from."""
    return Contents(str(path), " (or use .npz with arrays x and y)", NpyRows(path))
