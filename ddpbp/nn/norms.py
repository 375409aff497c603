"""The norm of a long vector, and clipping by it: the same bits for any number of ranks."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK

Array = npt.NDArray[Any]


def norm(vector: Array) -> float:
    """Return the Euclidean norm: blocks of `BLOCK` elements, summed along the tree.

    The blocks are the same for any number of ranks or buckets.
    """
    squares = [_square(vector[i : i + BLOCK]) for i in range(0, vector.size, BLOCK)]
    merges, _ = tree.fold(((i, i + 1) for i in range(len(squares))), len(squares))
    return math.sqrt(tree.accumulate(squares, merges)[0])


def _square(block: Array) -> float:
    with np.errstate(over="ignore"):
        square = float(np.dot(block, block))
    if math.isfinite(square):
        return square
    wide = block.astype(np.float64)  # squares of finite float32 can overflow
    return float(np.dot(wide, wide))


def clip_factor(grad: Array, largest: float) -> float:
    """Return the factor that limits the norm of a gradient to `largest` (Pascanu et al. 2013)."""
    length = norm(grad)
    return largest / length if length > largest else 1.0
