"""The IDX format of MNIST: a folder of files with one array each, plain or gzip."""

import math
from functools import partial
from pathlib import Path

import numpy as np

from ddpbp.data.files import open_binary, reading
from ddpbp.data.rows import Array, ArrayRows, Contents
from ddpbp.errors import DataError

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class IdxRows(ArrayRows):
    """The rows of an IDX file, read whole: gzip has no row ranges."""

    def __init__(self, path: Path) -> None:
        super().__init__(_read(path), str(path))


def _read(path: Path) -> Array:
    with reading(path, "an IDX file"), open_binary(path) as file:
        raw = file.read()
    zeros, kind, dims = raw[:2], raw[2] if len(raw) > 2 else 0, raw[3] if len(raw) > 3 else 0
    if zeros != b"\0\0" or kind not in TYPES or not 0 < dims < 9:
        raise DataError(
            f"{path}: not an IDX file: begins with the bytes {raw[:4].hex(' ') or '(none)'}; an "
            "IDX file begins with 00 00, a type (08 for uint8) and the number of dimensions"
        )
    dtype = np.dtype(TYPES[kind])
    start = 4 + 4 * dims
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise DataError(
            f"{path}: {'cut short' if len(raw) < expected else 'too long'}: {len(raw)} bytes where "
            f"the header {shape} needs {expected}; copy it again"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def open_idx(path: Path) -> Contents:
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
