"""The interface of all reducers, and the one that has nothing to send.

A reducer owns the vectors into which a rank writes the sums of its nodes of the canonical tree. It
brings the nodes of all ranks together and adds them along the tree. Reducers differ in how bytes
travel, never in a bit of what comes out.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp import tree
from ddpbp.comm.world import World

Array = npt.NDArray[Any]

BLOCK = 32_768  # elements of a cache-sized block


class Layout(NamedTuple):
    """What is summed in a step.

    `length` elements of type `dtype` and `statistics` float64 sums that ride along; `leaf_counts`
    are the numbers of leaves a step may have: of a full batch, and of the last one.
    """

    length: int
    dtype: np.dtype[Any]
    statistics: int
    leaf_counts: tuple[int, ...]

    @property
    def grad_bytes(self) -> int:
        """The size of one gradient."""
        return self.length * self.dtype.itemsize

    @property
    def head_bytes(self) -> int:
        """Where the statistics of a row begin: on a multiple of 8."""
        return -(-self.grad_bytes // 8) * 8

    @property
    def row_bytes(self) -> int:
        """The size of the row of one node: gradient, then statistics."""
        return self.head_bytes + 8 * self.statistics


class Reduced(NamedTuple):
    """What every rank knows after a reduction: valid until the next step begins to write.

    `grad` is the summed gradient, read-only in spirit; `finite` tells whether all of it is.
    """

    grad: Array
    statistics: npt.NDArray[np.float64]
    finite: bool


class Reducer:
    """What all reducers share: the rows of this rank, and the programs of the tree.

    Parameters
    ----------
    world : World
    layout : Layout

    Attributes
    ----------
    node_grads : (rows, length) float
    node_statistics : (rows, statistics) float64
        Where this rank writes; `nodes` tells which rows.
    """

    sets = 1  # of rows, taken in turn

    def __init__(self, world: World, layout: Layout) -> None:
        self.world, self.layout = world, layout
        self.programs = {n: tree.root_program(n, world.world_size) for n in layout.leaf_counts}
        self.node_count = max(max(counts) for counts, _ in self.programs.values())
        self._set = 0
        self._memory = self._allocate(self.sets * self.node_count)
        self.node_grads, self.node_statistics = self._parts(self._memory)

    def _allocate(self, rows: int) -> Array:
        return np.zeros((rows, self.layout.row_bytes), np.uint8)

    def _parts(self, memory: Array) -> tuple[Array, Array]:
        """See (..., row_bytes) bytes as gradients and statistics."""
        grads = memory[..., : self.layout.grad_bytes].view(self.layout.dtype)
        return grads, memory[..., self.layout.head_bytes :].view(np.float64)

    def nodes(self, size: int) -> slice:
        """Return the rows into which this rank writes its nodes of a tree over `size` leaves."""
        self._set = (self._set + 1) % self.sets
        first = self._set * self.node_count
        return slice(first, first + self.programs[size][0][self.world.rank])

    def start(self, begin: int, end: int) -> None:
        """Hand over elements [begin, end) of my nodes: complete, and mine no more."""

    def finish(self, size: int) -> Reduced:
        """Return the gradient and the statistics of the step, summed over its `size` leaves."""
        raise NotImplementedError

    def _in_order(self, rows: Array, size: int) -> list[Array]:
        """List the nodes of all ranks in tree order; rows is (world_size, rows, ...)."""
        counts, _ = self.programs[size]
        first = self._set * self.node_count
        return [
            rows[rank, first + node] for rank, count in enumerate(counts) for node in range(count)
        ]


class Local(Reducer):
    """One rank: its only node is the root."""

    def finish(self, size: int) -> Reduced:
        grad = self.node_grads[0]
        finite = all([is_finite(block) for block in blocks(grad)])
        return Reduced(grad, self.node_statistics[0], finite)


class TreeSum:
    """Adds vectors along the tree without touching them.

    Parameters
    ----------
    width : int
        The most elements at once.
    dtype : numpy.dtype
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self._width, self._dtype = width, dtype
        self._buffers: list[Array] = []

    def __call__(self, values: Sequence[Array], merges: Sequence[int], out: Array) -> None:
        """Write the value of the root to `out`."""
        stack: list[Array] = []
        for value, count in zip(values, merges, strict=True):
            stack.append(value)
            for _ in range(count):
                right = stack.pop()
                depth = len(stack) - 1
                target = self._buffer(depth)[: out.size] if depth else out
                stack[-1] = np.add(stack[-1], right, out=target)
        if stack[0] is not out:
            np.copyto(out, stack[0])

    def _buffer(self, depth: int) -> Array:
        while len(self._buffers) < depth:
            self._buffers.append(np.empty(self._width, self._dtype))
        return self._buffers[depth - 1]


def is_finite(block: Array) -> bool:
    """Tell whether every element is finite; one dot product unless there is doubt."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.dot(block, block)
    return math.isfinite(square) or bool(np.isfinite(block).all())


def blocks(vector: Array) -> list[Array]:
    """Cut a vector into views that stay in the cache."""
    return [vector[i : i + BLOCK] for i in range(0, vector.size, BLOCK)]
