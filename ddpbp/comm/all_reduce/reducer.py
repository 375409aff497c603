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

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK, blocks
from ddpbp.base.rounding import WIRES, Wire
from ddpbp.comm.world import World

Array = npt.NDArray[Any]


class Layout(NamedTuple):
    """What is summed in a step.

    `length` elements of type `dtype` and `statistics` float64 sums that ride along; `leaf_counts`
    are the numbers of leaves a step may have: of a full batch, and of the last one. Between
    machines the elements travel in buckets of `bucket_cap_bytes`, in the form `wire`.
    """

    length: int
    dtype: np.dtype[Any]
    statistics: int
    leaf_counts: tuple[int, ...]
    wire: str = "none"
    bucket_cap_bytes: int = 500_000

    @property
    def grad_bytes(self) -> int:
        """The size of one gradient."""
        return self.length * self.dtype.itemsize

    @property
    def head_bytes(self) -> int:
        """Where the tail of a row begins: on a multiple of 8."""
        return -(-self.grad_bytes // 8) * 8

    @property
    def row_bytes(self) -> int:
        """The size of the row of one node: gradient, and its tail: statistics, then the signal."""
        return self.head_bytes + 8 * self.statistics + 8


class Reduced(NamedTuple):
    """What every rank knows after a reduction: valid until the next step begins to write.

    `grad` is the summed gradient, read-only in spirit; `finite` tells whether all of it is.
    `signal` is the greatest signal of any rank.
    """

    grad: Array
    statistics: npt.NDArray[np.float64]
    finite: bool
    signal: int


class TreeSum:
    """A sum along the tree of vectors that stay where they are, planned once.

    Parameters
    ----------
    values : sequence of (n,) arrays
        The nodes, in order; left as they are.
    merges : sequence of int
        The program of `tree.fold` that forms one node of them.
    out : (n,) array
        Where the sum goes.
    scratch : list of array
        Buffers of at least n elements, shared by many sums; made longer when needed.
    wire : Wire, optional
        What rounds every sum.
    """

    def __init__(
        self,
        values: Sequence[Array],
        merges: Sequence[int],
        out: Array,
        scratch: list[Array],
        wire: Wire | None = None,
    ) -> None:
        self._adds: list[tuple[Array, Array, Array]] = []
        self._rounded = wire.round if wire else None
        self.out = out
        stack: list[Array] = []
        for value, count in zip(values, merges, strict=True):
            stack.append(value)
            for _ in range(count):
                right = stack.pop()
                depth = len(stack) - 1
                while len(scratch) < depth:
                    scratch.append(np.empty(max(BLOCK, out.size), out.dtype))
                target = scratch[depth - 1][: out.size] if depth else out
                self._adds.append((stack[-1], right, target))
                stack[-1] = target
        (self._root,) = stack

    def __call__(self) -> None:
        """Write the sum to `out`."""
        for left, right, out in self._adds:
            np.add(left, right, out)
            if self._rounded:
                self._rounded(out)
        if self._root is not self.out:
            np.copyto(self.out, self._root)


class Reducer:
    """What all reducers share: the rows of this rank, and the programs of the tree.

    What is not finite is found, not warned of: call it where NumPy's warnings are off.

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
        self.wire = WIRES[layout.wire]
        self.programs = {n: tree.root_program(n, world.world_size) for n in layout.leaf_counts}
        self.node_count = max(max(counts) for counts, _ in self.programs.values())
        self._set = 0
        rank = world.rank
        self._slices = {
            (size, which): slice(first := which * self.node_count, first + counts[rank])
            for size, (counts, _) in self.programs.items()
            for which in range(self.sets)
        }
        self._memory = self._allocate(self.sets * self.node_count)
        self.node_grads, self.node_statistics, self._signals = self._parts(self._memory)

    def _allocate(self, rows: int) -> Array:
        return np.zeros((rows, self.layout.row_bytes), np.uint8)

    def _parts(self, memory: Array) -> tuple[Array, Array, Array]:
        """See (..., row_bytes) bytes as gradients, statistics and signals."""
        grads = memory[..., : self.layout.grad_bytes].view(self.layout.dtype)
        tails = memory[..., self.layout.head_bytes :]
        return grads, tails[..., :-8].view(np.float64), tails[..., -8:].view(np.int64)[..., 0]

    def nodes(self, size: int) -> slice:
        """Return the rows into which this rank writes its nodes of a tree over `size` leaves."""
        self._set = (self._set + 1) % self.sets
        return self._slices[size, self._set]

    def start(self, begin: int) -> None:
        """Hand over my nodes from element `begin` to the end: complete, and mine no more.

        What has been handed over may travel now; call it often, with the same `begin` too.
        """

    def finish(self, size: int, signal: int = 0) -> Reduced:
        """Return what is known of the step after all ranks have met, summed over `size` leaves.

        `signal` is a small number that this rank wants the others to see.
        """
        raise NotImplementedError

    def _signal(self, signal: int) -> None:
        """Write this rank's signal: into its first row, which is there even if it has no leaf."""
        self._signals[self._set * self.node_count] = signal

    def in_order(self, rows: Array, size: int) -> list[Array]:
        """List the nodes of all ranks in tree order; rows is (world_size, rows, ...)."""
        counts, _ = self.programs[size]
        first = self._set * self.node_count
        return [
            rows[rank, first + node] for rank, count in enumerate(counts) for node in range(count)
        ]


class Local(Reducer):
    """One rank: its only node is the root."""

    def __init__(self, world: World, layout: Layout) -> None:
        super().__init__(world, layout)
        self._blocks = [block for (block,) in blocks(self.node_grads[0])]

    def finish(self, size: int, signal: int = 0) -> Reduced:
        finite = all([is_finite(block) for block in self._blocks])
        return Reduced(self.node_grads[0], self.node_statistics[0], finite, signal)


def is_finite(block: Array) -> bool:
    """Tell whether every element is finite; one dot product unless there is doubt."""
    return math.isfinite(np.dot(block, block)) or bool(np.isfinite(block).all())
