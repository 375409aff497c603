"""The IDX format of MNIST: a folder of files with one array each, plain or gzip."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from ddpbp.data.files import Stream, open_stream, reading
from ddpbp.data.formats.elements import ElementRows, Header
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class IdxRows(ElementRows):
    """The rows of an IDX file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "an IDX file")

    def _open(self) -> AbstractContextManager[Stream]:
        return open_stream(self._path)

    def _read_header(self, file: IO[bytes]) -> Header:
        begin = file.read(4)
        kind, dims = begin[2:3], begin[3:4]
        if (
            begin[:2] != b"\0\0"
            or not kind
            or kind[0] not in TYPES
            or not dims
            or not 0 < dims[0] < 9
        ):
            raise DataError(
                f"{self._path}: not an IDX file: begins with the bytes "
                f"{begin.hex(' ') or '(none)'}; an IDX file begins with 00 00, a type (08 for "
                "uint8) and the number of dimensions"
            )
        sizes = file.read(4 * dims[0])
        if len(sizes) < 4 * dims[0]:
            raise DataError(f"{self._path}: cut short: it ends in its header; copy it again")
        shape = tuple(int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4))
        return Header(np.dtype(TYPES[kind[0]]), shape, 4 + len(sizes))


def open_idx(path: Path, options: SourceOptions) -> Contents:
    """Open a folder of IDX files, or one file of images to predict from.

    A folder holds train-images* and train-labels*, and may hold t10k-* or test-* of both kinds.
    """
    needs = "a folder with the files train-images* and train-labels*"
    if not path.is_dir():
        return Contents(str(path), needs, arrays={"x": partial(IdxRows, path)})
    with reading(path, "a folder"):
        held = sorted(file.name for file in path.iterdir())
    prefixes = {"train": "train"}
    for prefix in ("test", "t10k"):
        if any(name.startswith(f"{prefix}-") for name in held):
            prefixes["test"] = prefix
    arrays = {}
    for part, prefix in prefixes.items():
        for letter, kind in (("x", "images"), ("y", "labels")):
            name = next((name for name in held if name.startswith(f"{prefix}-{kind}")), None)
            if name is None:
                raise DataError(
                    f"{path}: no file {prefix}-{kind}*; it holds {', '.join(held[:8]) or 'nothing'}"
                )
            arrays[f"{letter}_{part}"] = partial(IdxRows, path / name)
    return Contents(str(path), needs, arrays=arrays)
