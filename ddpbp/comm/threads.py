"""Ranks as threads: one process uses its cores by running whole leaf chains side by side.

NumPy lets go of the interpreter's lock inside matrix products and long elementwise loops. A thread
is a rank like any other, with leaves of its own; so the bits cannot differ.
"""

import mmap
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ddpbp.comm.world import Array, Request, World

Result = TypeVar("Result")


class _Meeting:
    """Where the threads of one process meet."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        # Two rounds in turn: the others may still read the round before.
        self.rounds: tuple[list[Any], list[Any]] = ([None] * size, [None] * size)
        self.arrivals = [0] * size


class _Arrival:
    """A barrier of all threads of a node: thread 0 hears of the others, and speaks for them."""

    def __init__(self, outer: World, thread: int, meeting: _Meeting) -> None:
        meeting.arrivals[thread] += 1
        self._count = meeting.arrivals[thread]
        self._outer, self._thread, self._meeting = outer, thread, meeting
        self._request: Request | None = None

    def Test(self) -> bool:
        if self._thread:  # those that have no lane need not know
            return True
        if self._request is None:
            if min(self._meeting.arrivals) < self._count:
                return False
            self._request = self._outer.start_local_barrier()
        return self._request.Test()


class ThreadWorld(World):
    """One thread of a process that is itself one rank of an outer world.

    Collectives meet inside the process first; thread 0 then speaks for all of them.
    """

    shares_memory = True

    def __init__(self, outer: World, thread: int, size: int, meeting: _Meeting) -> None:
        super().__init__()
        self._outer, self._thread, self._size, self._meeting = outer, thread, size, meeting
        self._count = 0
        self.rank = outer.rank * size + thread
        self.world_size = outer.world_size * size
        self.local_rank = outer.local_rank * size + thread
        self.local_size = outer.local_size * size
        self.node, self.node_count = outer.node, outer.node_count
        self.node_sizes = tuple(size * n for n in outer.node_sizes)
        self.lane, self.lane_count = -1 if thread else outer.lane, outer.lane_count
        self.shares_memory = outer.shares_memory or outer.world_size == 1
        if thread == 0:
            self.pulse = outer.pulse

    def _exchange(self, value: Any) -> list[Any]:
        self._count += 1
        values = self._meeting.rounds[self._count % 2]
        values[self._thread] = value
        self.pulse.waits += 1
        try:
            self._meeting.barrier.wait()
        except threading.BrokenBarrierError:
            raise SystemExit(1) from None
        finally:
            self.pulse.waits -= 1
        return list(values)

    def _speak(self, values: list[Any], say: Callable[[list[Any]], Any]) -> Any:
        """Let thread 0 say something to the outer world; return the answer to all threads."""
        return self._exchange(say(values) if self._thread == 0 else None)[0]

    def local_barrier(self) -> None:
        self._speak(self._exchange(None), lambda _: self._outer.local_barrier())

    def start_local_barrier(self) -> Request:
        return _Arrival(self._outer, self._thread, self._meeting)

    def start_send(self, send: Array, node: int, tag: int) -> Request:
        return self._outer.start_send(send, node, tag)

    def start_receive(self, receive: Array, node: int, tag: int) -> Request:
        return self._outer.start_receive(receive, node, tag)

    def all_gather_object(self, value: Any) -> list[Any]:
        message = pickle.dumps(value)  # as over MPI: nobody gets hold of another's arrays
        said = self._speak(self._exchange(message), self._outer.all_gather_object)
        return [pickle.loads(m) for process in said for m in process]

    def all_gather(self, send: Array, receive: Array) -> None:
        def say(values: list[Any]) -> Array:
            mine = np.stack(values)
            every = np.empty((self._outer.world_size, *mine.shape), mine.dtype)
            self._outer.all_gather(mine, every)
            return every

        receive[...] = self._speak(self._exchange(send), say).reshape(receive.shape)

    def all_to_all(self, send: Array, receive: Array) -> None:
        processes, size = self._outer.world_size, self._size

        def say(values: list[Any]) -> Array:
            # (from, process, to, ...) becomes (process, from, to, ...)
            mine = np.stack(values).reshape(size, processes, size, *send.shape[1:])
            mine = np.ascontiguousarray(mine.swapaxes(0, 1))
            every = np.empty_like(mine)
            self._outer.all_to_all(mine, every)
            return every

        every = self._speak(self._exchange(send), say)
        receive[...] = every[:, :, self._thread].reshape(receive.shape)

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        each = -(-bytes_per_rank // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages leave no gaps

        def say(_: list[Any]) -> tuple[Array | None, str]:
            return self._outer.share(each * self._size)

        memory, reason = self._speak(self._exchange(None), say)
        if memory is not None:
            memory = memory.reshape(self.local_size, each)[:, :bytes_per_rank]
        return memory, reason

    def abort(self, code: int) -> None:
        self._meeting.barrier.abort()
        self._outer.abort(code)


def run(world: World, size: int, main: Callable[[World], Result]) -> Result:
    """Run `main` on `size` threads at once, each a rank of its own; return what thread 0 returns.

    The first exception of any thread ends all of them and is raised here.
    """
    if size == 1:
        return main(world)
    meeting = _Meeting(size)
    teams = [ThreadWorld(world, thread, size, meeting) for thread in range(size)]
    world.pulses = [team.pulse for team in teams]
    results: dict[int, Result] = {}
    faults: list[BaseException] = []

    def body(thread: int) -> None:
        try:
            results[thread] = main(teams[thread])
        except BaseException as fault:
            if not (meeting.barrier.broken and isinstance(fault, SystemExit)):
                faults.append(fault)
            meeting.barrier.abort()

    others = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(1, size)]
    for other in others:
        other.start()
    body(0)
    for other in others:
        other.join()
    if faults:
        raise faults[0]
    return results[0]


def cores(world: World) -> int:
    """Return the cores there are for each process of this node, bound to its own or sharing all."""
    seen = world.all_gather_object((world.node, os.sched_getaffinity(0)))
    together = set().union(*(cores for node, cores in seen if node == world.node))
    return len(together) // world.local_size
