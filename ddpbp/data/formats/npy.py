"""The .npy format: one array, mapped from the file."""

import warnings
from pathlib import Path

import numpy as np

from ddpbp.data.files import is_gzip, reading
from ddpbp.data.rows import ArrayRows, Contents
from ddpbp.errors import DataError


class NpyRows(ArrayRows):
    """The rows of a .npy file; only the rows that are asked for are read from the disk."""

    def __init__(self, path: Path) -> None:
        with reading(path, "a .npy file"), warnings.catch_warnings(action="ignore"):
            if is_gzip(path):
                raise DataError(f"{path}: a compressed .npy file; unpack it first with gunzip")
            array = np.lib.format.open_memmap(path, mode="r")
        super().__init__(array, str(path))


def open_npy(path: Path) -> Contents:
    """Open a .npy file as a table, or as images to predict from."""
    return Contents(str(path), " (or use .npz with arrays x and y)", NpyRows(path))
