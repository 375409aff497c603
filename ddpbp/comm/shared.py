"""Reducers for the ranks of one machine, through memory that all of them see.

Every rank writes the sums of its nodes where the others can read them; nothing is copied to be
sent.
"""

import mmap

import numpy as np

from ddpbp import tree
from ddpbp.comm.reducer import BLOCK, Array, Layout, Reduced, Reducer, TreeSum, blocks, is_finite
from ddpbp.comm.world import World


class Shared(Reducer):
    """What the two reducers of one machine have in common: rows that all ranks can read."""

    def __init__(self, world: World, layout: Layout, memory: Array) -> None:
        self._bytes = memory
        super().__init__(world, layout)
        rows = self.sets * self.node_count
        every = memory[:, : rows * layout.row_bytes].reshape(world.local_size, rows, -1)
        self._all_grads, self._all_statistics = self._parts(every)
        self._views: dict[tuple[int, int], tuple[list[Array], list[Array]]] = {}
        self._statistics = np.zeros(layout.statistics)
        self._sum_statistics = TreeSum(layout.statistics, self._statistics.dtype)

    def _allocate(self, rows: int) -> Array:
        mine = self._bytes[self.world.rank, : rows * self.layout.row_bytes]
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

    def _nodes_of_all(self, size: int) -> tuple[list[Array], list[Array]]:
        """Return gradients and statistics of the nodes of all ranks, in tree order."""
        where = (size, self._set)
        if where not in self._views:
            self._views[where] = (
                self._in_order(self._all_grads, size),
                self._in_order(self._all_statistics, size),
            )
        return self._views[where]


class SharedSmall(Shared):
    """Every rank adds all nodes itself; two sets of rows, in turn, make one barrier enough.

    A set is written again only after the next barrier, which nobody passes while still reading.
    """

    sets = 2

    def __init__(self, world: World, layout: Layout, memory: Array) -> None:
        super().__init__(world, layout, memory)
        self._grad = np.zeros(layout.length, layout.dtype)
        self._sum = TreeSum(layout.length, layout.dtype)

    def finish(self, size: int) -> Reduced:
        self.world.local_barrier()
        nodes, statistics = self._nodes_of_all(size)
        merges = self.programs[size][1]
        self._sum(nodes, merges, self._grad)
        self._sum_statistics(statistics, merges, self._statistics)
        return Reduced(self._grad, self._statistics, is_finite(self._grad))


class SharedSlices(Shared):
    """Each rank adds one slice of all nodes, block by block in its cache, for everybody to read."""

    def __init__(self, world: World, layout: Layout, memory: Array, sums: Array) -> None:
        super().__init__(world, layout, memory)
        self._flags = memory[:, -8:].view(np.int64)[:, 0]
        width = sums.shape[1] // layout.dtype.itemsize  # whole pages: the slices form one vector
        self._grad = sums.reshape(-1).view(layout.dtype)[: layout.length]
        self._begin = min(world.rank * width, layout.length)
        self._mine = self._grad[self._begin : (world.rank + 1) * width]
        self._sum = TreeSum(BLOCK, layout.dtype)

    @classmethod
    def make(cls, world: World, layout: Layout) -> tuple[Shared | None, str]:
        slice_bytes = -(-layout.grad_bytes // world.world_size)
        pages = -(-slice_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory, reason = world.share(-(-cls._rows_bytes(world, layout) // 8) * 8 + 8)
        sums, reason = world.share(pages) if memory is not None else (None, reason)
        if memory is None or sums is None:
            return None, reason
        return cls(world, layout, memory, sums), ""

    def finish(self, size: int) -> Reduced:
        nodes, statistics = self._nodes_of_all(size)
        merges = self.programs[size][1]
        self.world.local_barrier()  # all rows are written
        finite, begin = True, self._begin
        for out in blocks(self._mine):
            end = begin + out.size
            self._sum([node[begin:end] for node in nodes], merges, out)
            finite &= is_finite(out)
            begin = end
        self._flags[self.world.rank] = finite
        self._sum_statistics(statistics, merges, self._statistics)
        self.world.local_barrier()  # all slices are summed
        return Reduced(self._grad, self._statistics, bool(self._flags.all()))
