"""Reducers over any MPI: plain collectives of equal blocks, sums in the order of the tree."""

import numpy as np

from ddpbp import tree
from ddpbp.comm.reducer import Array, Layout, Reduced, Reducer, TreeSum, blocks, is_finite
from ddpbp.comm.world import World


class Gathered(Reducer):
    """Every rank receives all nodes and adds them itself: for small vectors."""

    def __init__(self, world: World, layout: Layout) -> None:
        super().__init__(world, layout)
        self._all = np.zeros((world.world_size, *self._memory.shape), np.uint8)
        self._all_grads, self._all_statistics = self._parts(self._all)

    def finish(self, size: int) -> Reduced:
        self.world.all_gather(self._memory, self._all)
        merges = self.programs[size][1]
        (grad,) = tree.accumulate(self._in_order(self._all_grads, size), merges)
        (statistics,) = tree.accumulate(self._in_order(self._all_statistics, size), merges)
        return Reduced(grad, statistics, is_finite(grad))


class Sliced(Reducer):
    """Each rank receives one slice of all nodes and adds it; then the slices are shared."""

    def __init__(self, world: World, layout: Layout) -> None:
        super().__init__(world, layout)
        ranks = world.world_size
        self._slice = -(-layout.length // ranks)
        shape = (ranks, self.node_count, self._slice)
        self._send, self._receive = np.zeros(shape, layout.dtype), np.zeros(shape, layout.dtype)
        self._mine = np.zeros(self._slice, layout.dtype)
        self._grad = np.zeros(ranks * self._slice, layout.dtype)
        self._all_statistics = np.zeros((ranks, *self.node_statistics.shape))
        self._sum = TreeSum(self._slice, layout.dtype)

    def finish(self, size: int) -> Reduced:
        ranks, merges = self.world.world_size, self.programs[size][1]
        for r in range(ranks):
            piece: Array = self.node_grads[:, r * self._slice : (r + 1) * self._slice]
            self._send[r, :, : piece.shape[1]] = piece
        self.world.all_to_all(self._send, self._receive)
        self._sum(self._in_order(self._receive, size), merges, self._mine)
        self.world.all_gather(self._mine, self._grad.reshape(ranks, self._slice))
        self.world.all_gather(np.ascontiguousarray(self.node_statistics), self._all_statistics)
        (statistics,) = tree.accumulate(self._in_order(self._all_statistics, size), merges)
        grad = self._grad[: self.layout.length]
        finite = all([is_finite(block) for block in blocks(grad)])
        return Reduced(grad, statistics, finite)
