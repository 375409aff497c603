"""Reducers for the ranks of one machine, through memory that all of them see.

Every rank writes the sums of its nodes where the others can read them; nothing is copied to be
sent.
"""

import mmap

import numpy as np

from ddpbp.base import tree
from ddpbp.base.blocks import blocks
from ddpbp.comm.all_reduce.reducer import (
    Array,
    Layout,
    Reduced,
    Reducer,
    TreeSum,
    is_finite,
)
from ddpbp.comm.world import World


class Shared(Reducer):
    """What reducers in shared memory have in common: rows that all ranks of a machine can read."""

    def __init__(self, world: World, layout: Layout, memory: Array) -> None:
        self._bytes = memory
        super().__init__(world, layout)
        rows = self.sets * self.node_count
        every = memory[:, : rows * layout.row_bytes].reshape(world.local_size, rows, -1)
        self._all_grads, self._all_statistics, self._all_signals = self._parts(every)
        self._statistics = np.zeros(layout.statistics)
        self._scratch: list[Array] = []
        self._plans: dict[tuple[int, int], tuple[list[TreeSum], TreeSum]] = {}

    def _allocate(self, rows: int) -> Array:
        mine = self._bytes[self.world.local_rank, : rows * self.layout.row_bytes]
        return mine.reshape(rows, self.layout.row_bytes)

    @classmethod
    def _rows_bytes(cls, world: World, layout: Layout) -> int:
        programs = (tree.root_program(n, world.world_size) for n in layout.leaf_counts)
        return cls.sets * max(max(counts) for counts, _ in programs) * layout.row_bytes

    @classmethod
    def make(cls, world: World, layout: Layout) -> "tuple[Shared | None, str]":
        """Return the reducer, or None and the reason why this machine cannot have it."""
        memory, reason = world.share(cls._rows_bytes(world, layout))
        return (None if memory is None else cls(world, layout, memory)), reason

    def _sums(self, size: int, outs: list[Array], begin: int) -> tuple[list[TreeSum], TreeSum]:
        """Plan the sums of `outs`, vectors in a row from element `begin` on, and the statistics."""
        where = (size, self._set)
        if where not in self._plans:
            nodes, merges = self.in_order(self._all_grads, size), self.programs[size][1]
            sums = []
            for out in outs:
                values = [node[begin : begin + out.size] for node in nodes]
                sums.append(TreeSum(values, merges, out, self._scratch, self.wire))
                begin += out.size
            statistics = self.in_order(self._all_statistics, size)
            self._plans[where] = sums, TreeSum(statistics, merges, self._statistics, [])
        return self._plans[where]


class SharedSmall(Shared):
    """Every rank adds all nodes itself; two sets of rows, in turn, make one barrier enough.

    A set is written again only after the next barrier, which nobody passes while still reading.
    """

    sets = 2

    def __init__(self, world: World, layout: Layout, memory: Array) -> None:
        super().__init__(world, layout, memory)
        self._grad = np.zeros(layout.length, layout.dtype)

    def finish(self, size: int, signal: int = 0) -> Reduced:
        self._signal(signal)
        (add_grads,), add_statistics = self._sums(size, [self._grad], 0)
        self.world.local_barrier()
        add_grads()
        add_statistics()
        signals = self._all_signals[:, self._set * self.node_count].tolist()
        return Reduced(self._grad, self._statistics, is_finite(self._grad), max(signals))


class SharedSums(Shared):
    """What is summed slice by slice: one vector that all ranks of the machine read."""

    def __init__(self, world: World, layout: Layout, memory: Array, sums: Array) -> None:
        super().__init__(world, layout, memory)
        self._width = sums.shape[1] // layout.dtype.itemsize  # whole pages: they form one vector
        self._grad = sums.reshape(-1).view(layout.dtype)[: layout.length]

    @classmethod
    def make(cls, world: World, layout: Layout) -> tuple[Shared | None, str]:
        slice_bytes = -(-layout.grad_bytes // world.local_size)
        pages = -(-slice_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory, reason = world.share(-(-cls._rows_bytes(world, layout) // 8) * 8 + 8)
        sums, reason = world.share(pages) if memory is not None else (None, reason)
        if memory is None or sums is None:
            return None, reason
        return cls(world, layout, memory, sums), ""


class SharedSlices(SharedSums):
    """Each rank adds one slice of all nodes, block by block in its cache, for everybody to read."""

    def __init__(self, world: World, layout: Layout, memory: Array, sums: Array) -> None:
        super().__init__(world, layout, memory, sums)
        self._finite = memory[:, -8:].view(np.int64)[:, 0]
        self._begin = min(world.rank * self._width, layout.length)
        mine = self._grad[self._begin : (world.rank + 1) * self._width]
        self._mine = [block for (block,) in blocks(mine)]

    def finish(self, size: int, signal: int = 0) -> Reduced:
        self._signal(signal)
        add_blocks, add_statistics = self._sums(size, self._mine, self._begin)
        self.world.local_barrier()  # all rows are written
        finite = True
        for add in add_blocks:
            add()
            finite &= is_finite(add.out)
        self._finite[self.world.rank] = finite
        add_statistics()
        signal = max(self._all_signals[:, 0].tolist())
        self.world.local_barrier()  # all slices are summed
        return Reduced(self._grad, self._statistics, all(self._finite.tolist()), signal)
