"""The ranks of a world, as those who load data together."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ddpbp.comm.shared_memory import memory_left_bytes
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.work import divide
from ddpbp.comm.world import World
from ddpbp.data.team import Shared
from ddpbp.errors import DataError

Value = TypeVar("Value")
Result = TypeVar("Result")
Float64 = npt.NDArray[np.float64]

MIB = 2**20
MOST_SCRATCH_BYTES = 256 * MIB  # of memory; more is kept in a file while loading
LARGER = "set data.cache to a folder with more space"
FIRST_SECONDS, EVERY_SECONDS = 3.0, 10.0  # until the first line of progress, and between lines


class Team:
    """Implements `data.team.Team`.

    Parameters
    ----------
    world : World
    cache : str or None
        The folder of files that are mapped where memory does not suffice.
    say : callable
        Shows a line; called on rank 0.
    apart : bool
        Every rank reads everything for itself.
    """

    def __init__(
        self,
        world: World,
        cache: str | None = None,
        say: Callable[[str], None] = lambda _: None,
        *,
        apart: bool = False,
    ) -> None:
        self._apart = apart or max(world.host_sizes) == 1
        self._world, self._say = world, say if world.rank == 0 else lambda _: None
        self._cache = cache
        self._next = time.monotonic() + FIRST_SECONDS

    def divide(
        self,
        count: int,
        work: Callable[[range], Value],
        combine: Callable[[list[Value]], Result],
        into: Shared | None = None,
    ) -> Result:
        """Do `count` pieces of work, each rank a run of them."""
        share = (into.run, into.runs) if into else None
        return divide(self._world, count, work, combine, share)

    def tree_sum(self, leaf: Callable[[int], Float64], size: int) -> Float64:
        """Sum the vectors of leaves along the canonical tree."""

        def counted(i: int) -> Float64:
            self._world.pulse.progress += 1
            return leaf(i)

        return tree_sum(self._world, counted, size)

    def meet(self) -> None:
        """Wait for all ranks."""
        self._world.barrier()

    def share(self, bytes_: int, what: str, *, scratch: bool = False) -> Shared:
        """Return memory for one copy on each host: in /dev/shm, in a file, or in each rank."""
        world, size = self._world, f"{what} ({bytes_ / MIB:,.0f} MiB)"
        cache = self._cache or tempfile.gettempdir()
        left = world.decide(memory_left_bytes(), min)
        places = ["", cache] if bytes_ < left else [cache]
        if bytes_ >= left:
            self._say(f"{size}: memory has {left / MIB:,.0f} MiB left; mapping a file in {cache}")
        if scratch and bytes_ > MOST_SCRATCH_BYTES:
            places.reverse()
        if self._apart:
            with world.together():
                return Shared(_private(bytes_, places, size))
        for place in places:
            memory, reason = world.share_whole(bytes_, place)
            if memory is not None:
                return Shared(memory, world.local_rank, world.local_size, common=True)
            self._say(f"{size} cannot be shared: {reason}")
        if bytes_ * max(world.host_sizes) > left:
            raise DataError(f"{size}: neither memory nor {cache} holds it; {LARGER}")
        self._say(f"{size}: every rank keeps a copy of its own; {LARGER}")
        return Shared(np.empty(bytes_, np.uint8))

    def copies(self, values: list[Value], into: Shared) -> list[list[Value]]:
        """Group values of all ranks, in rank order, by the copy they belong to."""
        if not into.common:
            return [[value] for value in values]
        rest = iter(values)
        return [list(islice(rest, size)) for size in self._world.host_sizes]

    def copy_index(self, into: Shared) -> int:
        """Return which of `copies` is this rank's."""
        return self._world.host_index if into.common else self._world.rank

    def tick(self, what: str, done: int, count: int) -> None:
        """Note that `done` of this rank's `count` pieces are read."""
        self._world.pulse.progress += 1
        if (now := time.monotonic()) > self._next:
            self._next = now + EVERY_SECONDS
            self._say(f"{what}: {done / count:.0%} read")


def _private(bytes_: int, places: Sequence[str], what: str) -> npt.NDArray[np.uint8]:
    """Return memory of this process alone, or a mapped file: from the first place that has it.

    Parameters
    ----------
    bytes_ : int
    places : sequence of str
        Folders; "" is memory.
    what : str
        For the message.
    """
    fault = ""
    for place in places:
        if not place:
            return np.empty(bytes_, np.uint8)
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.posix_fallocate(file.fileno(), 0, bytes_)
                return np.memmap(file, np.uint8, "r+", shape=(bytes_,))
        except OSError as error:
            fault = f"{what}: {place}: {error.strerror}; {LARGER}"
    raise DataError(fault)
