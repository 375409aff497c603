"""Sums over the leaves of all ranks, always in the order of the canonical tree.

A reducer owns the vectors into which a rank writes the sums of its nodes, brings the nodes of all
ranks together, adds them along the tree and divides once. The transports differ in what travels,
never in a bit of what comes out:

=============  ==========================================================================
`Local`        one rank: nothing to send
`Gathered`     small vectors: every rank gets all nodes in one call and sums them itself
`Sliced`       big vectors: each rank sums one slice over all nodes, then slices are shared
=============  ==========================================================================
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp import tree
from ddpbp.comm.world import World

Array = npt.NDArray[Any]

SMALL_BYTES = 65_536  # up to here one call that sends everything is the fastest


class Reducer:
    """What all reducers share: the node vectors of this rank, and the programs of the tree.

    Parameters
    ----------
    world : World
    length : int
        The number of elements of the gradient.
    dtype : numpy.dtype
    statistics : int
        The number of float64 sums that ride along.
    leaf_counts : iterable of int
        The numbers of leaves that a step may have: of a full batch, and of the last one.
    """

    def __init__(
        self,
        world: World,
        length: int,
        dtype: npt.DTypeLike,
        statistics: int,
        leaf_counts: tuple[int, ...],
    ) -> None:
        self.world, self.length, self.dtype = world, length, np.dtype(dtype)
        self.statistics = statistics
        self.programs = {size: tree.root_program(size, world.world_size) for size in leaf_counts}
        self.node_count = max(max(counts) for counts, _ in self.programs.values())
        head = -(-length * self.dtype.itemsize // 8) * 8
        self._memory = self._allocate(head + 8 * statistics)
        self.node_grads = self._memory[:, : length * self.dtype.itemsize].view(self.dtype)
        self.node_statistics = self._memory[:, head:].view(np.float64)

    def _allocate(self, row_bytes: int) -> Array:
        return np.zeros((self.node_count, row_bytes), np.uint8)

    def nodes(self, size: int) -> tuple[Array, Array]:
        """Return where this rank writes its nodes of a tree over `size` leaves.

        Returns
        -------
        gradients : (nodes, length) float
        statistics : (nodes, statistics) float64
        """
        count = self.programs[size][0][self.world.rank]
        return self.node_grads[:count], self.node_statistics[:count]

    def start(self, begin: int, end: int) -> None:
        """Hand over elements [begin, end) of my nodes: complete, and mine no more."""

    def finish(self, size: int, examples: int) -> tuple[Array, Array]:
        """Return the averaged gradient and the summed statistics of the step.

        Parameters
        ----------
        size : int
            The number of leaves of this step.
        examples : int
            The number of examples of the global batch, by which the sum is divided once.

        Returns
        -------
        grad : (length,) float
            The caller may overwrite it.
        statistics : (statistics,) float64
        """
        raise NotImplementedError

    def _in_order(self, rows: Array, size: int) -> list[Array]:
        """List the nodes of all ranks in tree order; rows is (world_size, node_count, ...)."""
        counts, _ = self.programs[size]
        return [rows[rank, node] for rank, count in enumerate(counts) for node in range(count)]


class Local(Reducer):
    """One rank: its only node is the root."""

    def finish(self, size: int, examples: int) -> tuple[Array, Array]:
        grad = self.node_grads[0]
        grad /= examples
        return grad, self.node_statistics[0]


class Gathered(Reducer):
    """Every rank receives all nodes and adds them itself."""

    def _allocate(self, row_bytes: int) -> Array:
        mine = super()._allocate(row_bytes)
        self._all = np.zeros((self.world.world_size, *mine.shape), np.uint8)
        return mine

    def finish(self, size: int, examples: int) -> tuple[Array, Array]:
        self.world.all_gather(self._memory, self._all)
        merges = self.programs[size][1]
        grad_bytes = self.length * self.dtype.itemsize
        head = self._memory.shape[1] - 8 * self.statistics
        grads = self._in_order(self._all[:, :, :grad_bytes].view(self.dtype), size)
        sums = self._in_order(self._all[:, :, head:].view(np.float64), size)
        (grad,), (statistics,) = tree.accumulate(grads, merges), tree.accumulate(sums, merges)
        grad /= examples
        return grad, statistics


class Sliced(Reducer):
    """Pairwise exchange of slices, tree sum, all-gather: portable over any MPI."""

    def _allocate(self, row_bytes: int) -> Array:
        ranks = self.world.world_size
        self._slice = -(-self.length // ranks)
        self._send = np.zeros((ranks, self.node_count, self._slice), self.dtype)
        self._receive = np.zeros_like(self._send)
        self._grad = np.zeros(ranks * self._slice, self.dtype)
        self._all_statistics = np.zeros((ranks, self.node_count, self.statistics))
        return super()._allocate(row_bytes)

    def finish(self, size: int, examples: int) -> tuple[Array, Array]:
        ranks, merges = self.world.world_size, self.programs[size][1]
        for r in range(ranks):
            piece = self.node_grads[:, r * self._slice : (r + 1) * self._slice]
            self._send[r, :, : piece.shape[1]] = piece
        self.world.all_to_all(self._send, self._receive)
        (mine,) = tree.accumulate(self._in_order(self._receive, size), merges)
        mine /= examples
        self.world.all_gather(mine, self._grad.reshape(ranks, self._slice))
        self.world.all_gather(np.ascontiguousarray(self.node_statistics), self._all_statistics)
        (statistics,) = tree.accumulate(self._in_order(self._all_statistics, size), merges)
        return self._grad[: self.length], statistics


def make_reducer(
    world: World,
    length: int,
    dtype: npt.DTypeLike,
    statistics: int,
    leaf_counts: tuple[int, ...],
) -> Reducer:
    """Choose the reducer: by the number of ranks and by how much there is to send."""
    kind: type[Reducer] = Local
    if world.world_size > 1:
        small = length * np.dtype(dtype).itemsize <= SMALL_BYTES
        kind = Gathered if small else Sliced
    return kind(world, length, dtype, statistics, leaf_counts)


def tree_sum(
    world: World, leaf: Callable[[int], npt.NDArray[np.float64]], size: int
) -> npt.NDArray[np.float64]:
    """Sum small vectors over leaves that are computed where they are owned.

    Parameters
    ----------
    world : World
    leaf : int -> (k,) float64
        Computes the vector of one leaf; called for the leaves of this rank, in order.
    size : int
        The number of leaves of all ranks, at least 1.

    Returns
    -------
    (k,) float64
        The same bits for every number of ranks.
    """
    start, stop = tree.deal(size, world.rank, world.world_size)
    merges, _ = tree.run_program(size, world.rank, world.world_size)
    nodes = tree.accumulate((leaf(i) for i in range(start, stop)), merges)
    gathered: list[npt.NDArray[np.float64]] = [
        node for rank in world.all_gather_object(nodes) for node in rank
    ]
    _, root_merges = tree.root_program(size, world.world_size)
    (root,) = tree.accumulate(gathered, root_merges)
    return root
