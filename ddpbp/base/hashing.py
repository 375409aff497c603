"""Hashes of arrays, by which weights, data and canaries are compared."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def digest(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """Return the SHA-256 over the bytes of arrays, one after the other, as hexadecimal text."""
    h = hashlib.sha256()
    for array in arrays:
        h.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return h.hexdigest()
