"""The .npz format: several named arrays, compressed or not."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from ddpbp.base.files import open_regular
from ddpbp.data.files import DEFLATE_RATIO, Stream, reading
from ddpbp.data.formats.elements import ElementRows, Header
from ddpbp.data.formats.npy import read_npy_header
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError


class NpzRows(ElementRows):
    """The rows of one array of a .npz file.

    Parameters
    ----------
    path : Path
    name : str
        Of the array.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        super().__init__(path, f"a .npz file with an array {name!r}", f"{path}: {name}")

    def _open(self) -> AbstractContextManager[Stream]:
        return _open_member(self._path, self._name)

    def _read_header(self, file: IO[bytes]) -> Header:
        return read_npy_header(file)


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[Stream]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        (member,) = (info for info in archive.infolist() if _array_name(info) == name)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed in a way that NumPy does not write")
        stored = min(member.compress_size, os.fstat(file.fileno()).st_size)
        if member.file_size > stored * DEFLATE_RATIO:
            raise ValueError(f"{stored} bytes cannot hold {member.file_size}")
        with archive.open(member) as unpacked:
            packed = member.compress_type != zipfile.ZIP_STORED
            yield Stream(unpacked, member.file_size, exact=True, packed=packed)


def open_npz(path: Path, options: SourceOptions) -> Contents:
    """Open a .npz file."""
    with reading(path, "a .npz file"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = [_array_name(info) for info in archive.infolist()]
    if len({*names}) < len(names):
        raise DataError(f"{path}: holds two arrays of one name; write it again")
    return Contents(
        str(path),
        "x and y, or x_train and y_train (data.target may name y)",
        arrays={name: partial(NpzRows, path, name) for name in names},
    )


def _array_name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")
