"""Big vectors in pieces that stay in the cache.

The size is part of the arithmetic where blocks are summed (norms), so it is a constant.
"""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 32_768
"""Elements of a block."""


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Walk equally shaped contiguous arrays together in cache-sized flat pieces."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)
