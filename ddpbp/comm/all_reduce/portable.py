"""Reducers for any MPI: plain collectives of equal blocks, sums in the order of the tree."""

import numpy as np

from ddpbp.base import tree
from ddpbp.base.blocks import blocks
from ddpbp.comm.all_reduce.reducer import Array, Payload, Reduced, Reducer, TreeSum, is_finite
from ddpbp.comm.world import World


class Gathered(Reducer):
    """Every rank receives all nodes and adds them itself: for small vectors."""

    def __init__(self, world: World, payload: Payload) -> None:
        super().__init__(world, payload)
        self._all = np.zeros((world.world_size, *self._memory.shape), np.uint8)
        self._all_grads, self._all_statistics, self._all_signals = self._parts(self._all)
        self._grad = np.zeros(payload.length, payload.dtype)
        self._statistics = np.zeros(payload.statistics)
        self._sums = {}
        for leaf_count, (_, merges) in self.programs.items():
            grads, statistics = (
                self.in_order(rows, leaf_count) for rows in (self._all_grads, self._all_statistics)
            )
            self._sums[leaf_count] = (
                TreeSum(grads, merges, self._grad, [], self.wire),
                TreeSum(statistics, merges, self._statistics, []),
            )

    def finish(self, signal: int = 0) -> Reduced:
        self._write_signal(signal)
        self.world.all_gather(self._memory, self._all)
        for add in self._sums[self._leaf_count]:
            add()
        signal = max(self._all_signals[:, 0].tolist())
        return Reduced(self._grad, self._statistics, is_finite(self._grad), signal)


class Tails:
    """Exchanges the tails of all rows, and whether each rank saw only finite sums."""

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer
        rows, statistics = reducer.node_statistics.shape
        self._mine = np.zeros((rows, statistics + 2))
        self._all = np.zeros((reducer.world.world_size, *self._mine.shape))
        numbers = np.arange(self._all.shape[0] * rows).reshape(-1, rows)  # of the rows of all ranks
        self._sums = {
            n: (np.array(reducer.in_order(numbers, n)), tree.rounds(merges))
            for n, (_, merges) in reducer.programs.items()
        }

    def exchange(self, leaf_count: int, signal: int, *, finite: bool) -> tuple[Array, bool, int]:
        """Return the sum of the statistics, whether all is finite, and the greatest signal."""
        reducer = self._reducer
        self._mine[:, :-2] = reducer.node_statistics
        self._mine[0, -2:] = signal, finite
        reducer.world.all_gather(self._mine, self._all)
        order, rounds = self._sums[leaf_count]
        nodes = self._all.reshape(-1, self._all.shape[-1])[order, :-2]
        for left, right in rounds:
            nodes[left] += nodes[right]
        signals, finites = self._all[:, 0, -2:].T
        return nodes[0], bool(finites.all()), int(signals.max())


class Sliced(Reducer):
    """Every rank receives one slice of all nodes and adds it; then all ranks gather the slices."""

    def __init__(self, world: World, payload: Payload) -> None:
        super().__init__(world, payload)
        ranks = world.world_size
        self._slice = -(-payload.length // ranks)
        shape = (ranks, self.node_count, self._slice)
        self._send, self._receive = np.zeros(shape, payload.dtype), np.zeros(shape, payload.dtype)
        self._mine = np.zeros(self._slice, payload.dtype)
        self._grad = np.zeros(ranks * self._slice, payload.dtype)
        self._tails = Tails(self)
        self._sums = {
            n: TreeSum(self.in_order(self._receive, n), merges, self._mine, [], self.wire)
            for n, (_, merges) in self.programs.items()
        }

    def finish(self, signal: int = 0) -> Reduced:
        ranks = self.world.world_size
        for r in range(ranks):
            piece: Array = self.node_grads[:, r * self._slice : (r + 1) * self._slice]
            self._send[r, :, : piece.shape[1]] = piece
        self.world.all_to_all(self._send, self._receive)
        self._sums[self._leaf_count]()
        finite = all([is_finite(block) for (block,) in blocks(self._mine)])
        self.world.all_gather(self._mine, self._grad.reshape(ranks, self._slice))
        statistics, finite, signal = self._tails.exchange(self._leaf_count, signal, finite=finite)
        return Reduced(self._grad[: self.payload.length], statistics, finite, signal)
