"""Ranks as threads: one process uses several cores by computing several leaves at the same time.

NumPy releases the interpreter's lock in matrix products and long elementwise loops. A thread is a
rank like any other, with leaves of its own; so the bits cannot differ.
"""

import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ddpbp.comm.shared_memory import whole_pages
from ddpbp.comm.world import Array, Request, World

Result = TypeVar("Result")


class _Meeting:
    """The meeting point of the threads of one process."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        # Used in turn, because other threads may still read the round before.
        self.rounds: tuple[list[Any], list[Any]] = ([None] * size, [None] * size)
        self.arrivals = [0] * size
        self.exchanges = [0] * size


class _Arrival:
    """A barrier of all threads of a host. Thread 0 takes part for its process when all arrived."""

    def __init__(self, outer: World, thread: int, meeting: _Meeting) -> None:
        meeting.arrivals[thread] += 1
        self._count = meeting.arrivals[thread]
        self._outer, self._thread, self._meeting = outer, thread, meeting
        self._request: Request | None = None

    def Test(self) -> bool:
        if self._thread:  # has no lane, so nothing of it depends on the others' arrival
            return True
        if self._request is None:
            if min(self._meeting.arrivals) < self._count:
                return False
            self._request = self._outer.start_local_barrier()
        return self._request.Test()


class ThreadWorld(World):
    """One thread of a process that is itself one rank of an outer world.

    In a collective the threads of a process meet first; thread 0 then takes part for all of them.
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
        self.host_index, self.host_count = outer.host_index, outer.host_count
        self.host_sizes = tuple(size * n for n in outer.host_sizes)
        self.lane, self.lane_count = -1 if thread else outer.lane, outer.lane_count
        self.shares_memory = outer.shares_memory or outer.world_size == 1
        if thread == 0:
            self.pulse = outer.pulse

    def _exchange(self, value: Any) -> list[Any]:
        self._count += 1
        values = self._meeting.rounds[self._count % 2]
        values[self._thread] = value
        self._meeting.exchanges[self._thread] = self._count
        self.pulse.waits += 1
        try:
            self._meeting.barrier.wait()
        except threading.BrokenBarrierError:
            # A thread that failed right after this exchange breaks it for those still waking up.
            if min(self._meeting.exchanges) < self._count:
                raise SystemExit(1) from None
        finally:
            self.pulse.waits -= 1
        return list(values)

    def _by_thread_0(self, values: list[Any], call: Callable[[list[Any]], Any]) -> Any:
        """Let thread 0 call the outer world; return the result to all threads."""
        return self._exchange(call(values) if self._thread == 0 else None)[0]

    def local_barrier(self) -> None:
        self._by_thread_0(self._exchange(None), lambda _: self._outer.local_barrier())

    def wait_idly(self) -> None:
        self._by_thread_0(self._exchange(None), lambda _: self._outer.wait_idly())

    def start_local_barrier(self) -> Request:
        return _Arrival(self._outer, self._thread, self._meeting)

    def start_send(self, send: Array, host_index: int, tag: int) -> Request:
        return self._outer.start_send(send, host_index, tag)

    def start_receive(self, receive: Array, host_index: int, tag: int) -> Request:
        return self._outer.start_receive(receive, host_index, tag)

    def all_gather_object(self, value: Any) -> list[Any]:
        message = pickle.dumps(value)  # as with MPI, no rank receives another's own arrays
        gathered = self._by_thread_0(self._exchange(message), self._outer.all_gather_object)
        return [pickle.loads(m) for process in gathered for m in process]

    def gather_object(self, value: Any) -> list[Any] | None:
        message = pickle.dumps(value)
        gathered = self._by_thread_0(self._exchange(message), self._outer.gather_object)
        return [pickle.loads(m) for process in gathered for m in process] if not self.rank else None

    def broadcast(self, value: Any, root: int = 0) -> Any:
        process, thread = divmod(root, self._size)

        def call(messages: list[Any]) -> Any:
            return self._outer.broadcast(messages[thread], process)

        message = pickle.dumps(value) if self.rank == root else None
        return pickle.loads(self._by_thread_0(self._exchange(message), call))

    def all_gather(self, send: Array, receive: Array) -> None:
        def call(values: list[Any]) -> Array:
            mine = np.stack(values)
            every = np.empty((self._outer.world_size, *mine.shape), mine.dtype)
            self._outer.all_gather(mine, every)
            return every

        receive[...] = self._by_thread_0(self._exchange(send), call).reshape(receive.shape)

    def all_to_all(self, send: Array, receive: Array) -> None:
        processes, size = self._outer.world_size, self._size

        def call(values: list[Any]) -> Array:
            # (from, process, to, ...) becomes (process, from, to, ...)
            mine = np.stack(values).reshape(size, processes, size, *send.shape[1:])
            mine = np.ascontiguousarray(mine.swapaxes(0, 1))
            every = np.empty_like(mine)
            self._outer.all_to_all(mine, every)
            return every

        every = self._by_thread_0(self._exchange(send), call)
        receive[...] = every[:, :, self._thread].reshape(receive.shape)

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        each = whole_pages(bytes_per_rank)  # so that no gaps lie between the processes

        def call(_: list[Any]) -> tuple[Array | None, str]:
            return self._outer.share(each * self._size)

        memory, reason = self._by_thread_0(self._exchange(None), call)
        if memory is not None:
            memory = memory.reshape(self.local_size, each)[:, :bytes_per_rank]
        return memory, reason

    def abort(self, code: int) -> None:
        self._meeting.barrier.abort()
        self._outer.abort(code)


def run(world: World, size: int, main: Callable[[World], Result]) -> Result:
    """Run `main` on `size` threads, each a rank of its own; return the result of thread 0.

    The first exception of any thread ends all of them and is raised here.
    """
    if size == 1:
        return main(world)
    meeting = _Meeting(size)
    ranks = [ThreadWorld(world, thread, size, meeting) for thread in range(size)]
    world.pulses = [rank.pulse for rank in ranks]
    results: dict[int, Result] = {}
    faults: list[BaseException] = []

    def body(thread: int) -> None:
        try:
            results[thread] = main(ranks[thread])
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
