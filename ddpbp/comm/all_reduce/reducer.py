"""The interface of all reducers, and the one for a rank alone.

A rank writes the sums of its nodes of the canonical tree into vectors of its reducer. The reducer
brings the nodes of all ranks together and adds them along the tree. Reducers differ in how bytes
travel, never in a bit of the result.
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


class Payload(NamedTuple):
    """What a step sums over all leaves.

    Attributes
    ----------
    length : int
        The number of elements of the gradient.
    dtype : numpy.dtype
    statistics : int
        The number of float64 sums that travel with the gradient.
    leaf_counts : tuple of int
        The numbers of leaves a step can have: of a full batch, and of the last one.
    wire : str
        The form in which elements travel, a name in `base.rounding.WIRES`.
    bucket_cap_bytes : int
        The greatest size of a bucket, the unit of transport between hosts.
    """

    length: int
    dtype: np.dtype[Any]
    statistics: int
    leaf_counts: tuple[int, ...]
    wire: str = "none"
    bucket_cap_bytes: int = 500_000

    @property
    def full(self) -> int:
        """The number of leaves of a full batch, by which they are dealt to the ranks."""
        return max(self.leaf_counts)

    def program(self, leaf_count: int, world_size: int) -> tuple[list[int], list[int]]:
        """Return how many nodes each rank has in a step of so many leaves, and their merges."""
        return tree.root_program(leaf_count, world_size, self.full)

    @property
    def grad_bytes(self) -> int:
        """The size of one gradient."""
        return self.length * self.dtype.itemsize

    @property
    def head_bytes(self) -> int:
        """Where the tail of a row begins: a multiple of 8."""
        return -(-self.grad_bytes // 8) * 8

    @property
    def row_bytes(self) -> int:
        """The size of the row of one node: its gradient, then its tail of statistics and signal."""
        return self.head_bytes + 8 * self.statistics + 8


class Reduced(NamedTuple):
    """The result of a reduction, the same on every rank; valid until the next step begins.

    Attributes
    ----------
    grad : (length,) array
        The sum of the gradients. Where the ranks of a host share it (`Reducer.shares_sum`), each
        may write a part of its own after all have read that; else do not write to it.
    statistics : (statistics,) float64
        The sums of the statistics.
    finite : bool
        Whether every element of `grad` is finite.
    signal : int
        The greatest signal of any rank.
    """

    grad: Array
    statistics: npt.NDArray[np.float64]
    finite: bool
    signal: int


class TreeSum:
    """A sum along the tree of vectors that stay where they are, planned once and run often.

    Parameters
    ----------
    values : sequence of (n,) arrays
        The nodes, in order. They are not changed.
    merges : sequence of int
        The program of `tree.fold` that forms one node of them.
    out : (n,) array
        The destination of the sum.
    scratch : list of array
        Buffers of at least n elements, shared by many sums; more are added when needed.
    wire : Wire, optional
        Rounds every sum.
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
    """The rows into which this rank writes, and the programs of the tree.

    A step is `begin_step`, any number of `start`, one `finish`. Call them where NumPy's
    floating-point warnings are off: infinities and NaN are reported in the result.

    Parameters
    ----------
    world : World
    payload : Payload

    Attributes
    ----------
    node_count : int
        The greatest number of nodes that any rank has in a step.
    node_grads : (rows, length) array
    node_statistics : (rows, statistics) float64
        This rank writes its nodes to the rows that `begin_step` returns.
    """

    sets = 1  # of rows, used in turn
    shares_sum = False  # the sum lies in memory that the ranks of a host share

    def __init__(self, world: World, payload: Payload) -> None:
        self.world, self.payload = world, payload
        self.wire = WIRES[payload.wire]
        self.programs = {n: payload.program(n, world.world_size) for n in payload.leaf_counts}
        self.node_count = max(max(counts) for counts, _ in self.programs.values())
        self._set, self._leaf_count = 0, 0
        rank = world.rank
        self._slices = {
            (leaf_count, which): slice(first := which * self.node_count, first + counts[rank])
            for leaf_count, (counts, _) in self.programs.items()
            for which in range(self.sets)
        }
        self._memory = self._allocate(self.sets * self.node_count)
        self.node_grads, self.node_statistics, self._signals = self._parts(self._memory)

    def _allocate(self, rows: int) -> Array:
        return np.zeros((rows, self.payload.row_bytes), np.uint8)

    def _parts(self, memory: Array) -> tuple[Array, Array, Array]:
        """View (..., row_bytes) bytes as gradients, statistics and signals."""
        grads = memory[..., : self.payload.grad_bytes].view(self.payload.dtype)
        tails = memory[..., self.payload.head_bytes :]
        return grads, tails[..., :-8].view(np.float64), tails[..., -8:].view(np.int64)[..., 0]

    def begin_step(self, leaf_count: int) -> slice:
        """Begin a step of `leaf_count` leaves; return the rows for the nodes of this rank."""
        self._leaf_count = leaf_count
        self._set = (self._set + 1) % self.sets
        return self._slices[leaf_count, self._set]

    def start(self, begin: int) -> None:
        """Hand over this rank's nodes from element `begin` to the end: they are complete.

        They may travel from now on and must not be written any more. Messages advance only inside
        this call, so call it often, also with the same `begin`.
        """

    def finish(self, signal: int = 0) -> Reduced:
        """Wait for all ranks; return the sums over all leaves of the step.

        Parameters
        ----------
        signal : int
            A number, 0 or greater, to be compared with those of the other ranks.
        """
        raise NotImplementedError

    def _write_signal(self, signal: int) -> None:
        """Write this rank's signal to its first row, which exists even if it owns no leaf."""
        self._signals[self._set * self.node_count] = signal

    def in_order(self, rows: Array, leaf_count: int) -> list[Array]:
        """Return the nodes of all ranks in tree order; rows is (world_size, rows, ...)."""
        counts, _ = self.programs[leaf_count]
        first = self._set * self.node_count
        return [
            rows[rank, first + node] for rank, count in enumerate(counts) for node in range(count)
        ]


class Local(Reducer):
    """One rank alone: its only node is the root."""

    def __init__(self, world: World, payload: Payload) -> None:
        super().__init__(world, payload)
        self._blocks = [block for (block,) in blocks(self.node_grads[0])]

    def finish(self, signal: int = 0) -> Reduced:
        finite = all([is_finite(block) for block in self._blocks])
        return Reduced(self.node_grads[0], self.node_statistics[0], finite, signal)


def is_finite(block: Array) -> bool:
    """Return whether every element is finite: by one dot product, unless that overflows."""
    return math.isfinite(np.dot(block, block)) or bool(np.isfinite(block).all())
