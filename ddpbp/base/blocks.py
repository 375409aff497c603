"""Long vectors in blocks that fit in the cache.

Where blocks are summed, as in norms, their size is part of the arithmetic. So it is a constant.
"""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 32_768
"""The number of elements of a block."""


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Iterate over contiguous arrays of one shape together, in flat blocks of `BLOCK` elements."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)
