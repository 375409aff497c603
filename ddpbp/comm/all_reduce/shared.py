"""Reducers for the ranks of one host, through memory that all of them see.

Every rank writes the sums of its nodes where the others can read them; nothing is copied to be
sent.
"""

import numpy as np

from ddpbp.base.blocks import blocks
from ddpbp.comm.all_reduce.reducer import Array, Payload, Reduced, Reducer, TreeSum, is_finite
from ddpbp.comm.shared_memory import whole_pages
from ddpbp.comm.world import World


class Shared(Reducer):
    """A reducer whose rows all ranks of the host can read.

    Parameters
    ----------
    world : World
    payload : Payload
    memory : (local_size, bytes) uint8
        Shared memory, at least of the size of a rank's rows.
    """

    def __init__(self, world: World, payload: Payload, memory: Array) -> None:
        self._bytes = memory
        super().__init__(world, payload)
        rows = self.sets * self.node_count
        every = memory[:, : rows * payload.row_bytes].reshape(world.local_size, rows, -1)
        self._all_grads, self._all_statistics, self._all_signals = self._parts(every)
        self._statistics = np.zeros(payload.statistics)
        self._scratch: list[Array] = []
        self._plans: dict[tuple[int, int], tuple[list[TreeSum], TreeSum]] = {}

    def _allocate(self, rows: int) -> Array:
        mine = self._bytes[self.world.local_rank, : rows * self.payload.row_bytes]
        return mine.reshape(rows, self.payload.row_bytes)

    @classmethod
    def _rows_bytes(cls, world: World, payload: Payload) -> int:
        programs = (payload.program(n, world.world_size) for n in payload.leaf_counts)
        return cls.sets * max(max(counts) for counts, _ in programs) * payload.row_bytes

    @classmethod
    def make(cls, world: World, payload: Payload) -> "tuple[Shared | None, str]":
        """Return the reducer, or None and the reason why there is no memory for it."""
        memory, reason = world.share(cls._rows_bytes(world, payload))
        return (None if memory is None else cls(world, payload, memory)), reason

    def _sums(self, outs: list[Array], begin: int) -> tuple[list[TreeSum], TreeSum]:
        """Plan the sums of the statistics and of `outs`: adjacent vectors from `begin` on."""
        leaf_count = self._leaf_count
        key = (leaf_count, self._set)
        if key not in self._plans:
            nodes, merges = self.in_order(self._all_grads, leaf_count), self.programs[leaf_count][1]
            sums = []
            for out in outs:
                values = [node[begin : begin + out.size] for node in nodes]
                sums.append(TreeSum(values, merges, out, self._scratch, self.wire))
                begin += out.size
            statistics = self.in_order(self._all_statistics, leaf_count)
            self._plans[key] = sums, TreeSum(statistics, merges, self._statistics, [])
        return self._plans[key]


class SharedSmall(Shared):
    """Every rank adds all nodes itself; one barrier is enough, since two sets of rows alternate.

    A set is written again only after the next barrier, which no rank passes while another one
    still reads the set.
    """

    sets = 2

    def __init__(self, world: World, payload: Payload, memory: Array) -> None:
        super().__init__(world, payload, memory)
        self._grad = np.zeros(payload.length, payload.dtype)

    def finish(self, signal: int = 0) -> Reduced:
        self._write_signal(signal)
        (add_grads,), add_statistics = self._sums([self._grad], 0)
        self.world.local_barrier()
        add_grads()
        add_statistics()
        signals = self._all_signals[:, self._set * self.node_count].tolist()
        return Reduced(self._grad, self._statistics, is_finite(self._grad), max(signals))


class SharedSums(Shared):
    """A reducer whose sum, too, lies in shared memory, so that each rank can add a part of it.

    Parameters
    ----------
    world : World
    payload : Payload
    memory : (local_size, bytes) uint8
        Shared memory for the rows, and the last 8 bytes for a flag.
    sums : (local_size, bytes) uint8
        Shared memory in whole pages, so that the parts of all ranks form one vector.
    """

    shares_sum = True

    def __init__(self, world: World, payload: Payload, memory: Array, sums: Array) -> None:
        super().__init__(world, payload, memory)
        self._width = sums.shape[1] // payload.dtype.itemsize
        self._grad = sums.reshape(-1).view(payload.dtype)[: payload.length]

    @classmethod
    def make(cls, world: World, payload: Payload) -> tuple[Shared | None, str]:
        slice_bytes = whole_pages(-(-payload.grad_bytes // world.local_size))
        memory, reason = world.share(cls._rows_bytes(world, payload) + 8)
        sums, reason = world.share(slice_bytes) if memory is not None else (None, reason)
        if memory is None or sums is None:
            return None, reason
        return cls(world, payload, memory, sums), ""


class SharedSlices(SharedSums):
    """Each rank adds one slice of all nodes, block by block in its cache, for all ranks to read."""

    def __init__(self, world: World, payload: Payload, memory: Array, sums: Array) -> None:
        super().__init__(world, payload, memory, sums)
        self._finite = memory[:, -8:].view(np.int64)[:, 0]
        self._begin = min(world.rank * self._width, payload.length)
        mine = self._grad[self._begin : (world.rank + 1) * self._width]
        self._mine = [block for (block,) in blocks(mine)]

    def finish(self, signal: int = 0) -> Reduced:
        self._write_signal(signal)
        add_blocks, add_statistics = self._sums(self._mine, self._begin)
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
