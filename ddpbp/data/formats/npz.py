"""The .npz format: several named arrays, compressed or not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ddpbp.data.files import reading
from ddpbp.data.rows import ArrayRows, Contents


class NpzRows(ArrayRows):
    """The rows of one array of a .npz file, read whole."""

    def __init__(self, path: Path, name: str) -> None:
        with _archive(path) as archive:
            array = archive[name]
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
        super().__init__(array, f"{path}: {name}")


@contextmanager
def _archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with (
        reading(path, "a .npz file"),
        path.open("rb") as file,
        warnings.catch_warnings(action="ignore"),
    ):
        yield np.lib.npyio.NpzFile(file, allow_pickle=False)


def open_npz(path: Path) -> Contents:
    """Open a .npz file; an array is read when it is opened."""
    with _archive(path) as archive:
        names = list(archive.files)
    return Contents(
        str(path),
        "x and y, or x_train and y_train (data.target may name y)",
        arrays={name: partial(NpzRows, path, name) for name in names},
    )
