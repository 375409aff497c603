"""Reducers for the ranks of one machine, through memory that all of them see.

Every rank writes the sums of its nodes where the others can read them; nothing is copied to be
sent. The memory is a file under /dev/shm that is deleted as soon as everybody has mapped it, so
that a killed run leaves nothing behind.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from ddpbp import tree
from ddpbp.comm.reducer import BLOCK, Array, Layout, Reduced, Reducer, TreeSum, blocks, is_finite
from ddpbp.comm.world import World

FOLDER = Path("/dev/shm")


def share(world: World, bytes_per_rank: int) -> tuple[Array | None, str]:
    """Map memory that all ranks of this node see.

    The pages are reserved before they are used: a /dev/shm that is too small (64 MB in a
    container) is a refusal here, not a bus error later.

    Returns
    -------
    memory : (local_size, bytes_per_rank) uint8 or None
        None, on all ranks of all nodes, if one of them could not have it.
    reason : str
        Why not.
    """
    page = mmap.PAGESIZE
    each = -(-bytes_per_rank // page) * page
    name = None
    if world.local_rank == 0:
        name = FOLDER / f"ddpbp.{os.getpid()}.{os.urandom(4).hex()}"
    names = world.all_gather_object((world.node, name))
    path = next(found for node, found in names if node == world.node and found)
    memory: Array | None = None
    reason = ""
    file = -1
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(file, world.local_rank * each, each)
    except OSError as error:
        needed = each * world.local_size / 2**20
        reason = f"{FOLDER} on {world.host}: {error.strerror} ({needed:.0f} MiB needed)"
        if error.errno == errno.ENOSPC:
            reason += "; enlarge it, as with docker run --shm-size=1g"
    reasons = [r for r in world.all_gather_object(reason) if r]
    if not reasons:
        mapped = mmap.mmap(file, each * world.local_size)
        memory = np.frombuffer(mapped, np.uint8).reshape(world.local_size, each)
        memory = memory[:, :bytes_per_rank]
    if file >= 0:
        os.close(file)
    world.all_gather_object(None)  # everybody has mapped it
    if world.local_rank == 0:
        path.unlink(missing_ok=True)
    return memory, reasons[0] if reasons else ""


class Shared(Reducer):
    """What the two reducers of one machine have in common: rows that all ranks can read."""

    def __init__(self, world: World, layout: Layout, memory: Array) -> None:
        self._bytes = memory
        super().__init__(world, layout)
        rows = self.sets * self.node_count
        every = memory[:, : rows * layout.row_bytes].reshape(world.local_size, rows, -1)
        self._all_grads, self._all_statistics = self._parts(every)

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
        memory, reason = share(world, cls._rows_bytes(world, layout))
        return (None if memory is None else cls(world, layout, memory)), reason

    def _sum_statistics(self, size: int) -> Any:
        values = [value.copy() for value in self._in_order(self._all_statistics, size)]
        (statistics,) = tree.accumulate(values, self.programs[size][1])
        return statistics


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
        nodes, merges = self._in_order(self._all_grads, size), self.programs[size][1]
        self._sum(nodes, merges, self._grad)
        return Reduced(self._grad, self._sum_statistics(size), is_finite(self._grad))


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
        memory, reason = share(world, -(-cls._rows_bytes(world, layout) // 8) * 8 + 8)
        sums, reason = share(world, pages) if memory is not None else (None, reason)
        if memory is None or sums is None:
            return None, reason
        return cls(world, layout, memory, sums), ""

    def finish(self, size: int) -> Reduced:
        nodes, merges = self._in_order(self._all_grads, size), self.programs[size][1]
        self.world.local_barrier()  # all rows are written
        finite, begin = True, self._begin
        for out in blocks(self._mine):
            end = begin + out.size
            self._sum([node[begin:end] for node in nodes], merges, out)
            finite &= is_finite(out)
            begin = end
        self._flags[self.world.rank] = finite
        statistics = self._sum_statistics(size)
        self.world.local_barrier()  # all slices are summed
        return Reduced(self._grad, statistics, bool(self._flags.all()))
