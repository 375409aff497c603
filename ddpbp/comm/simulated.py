"""Several ranks in one process, one at a time in turn: for debuggers and tests."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

from ddpbp.comm.world import Array, World
from ddpbp.errors import ConfigError

MAX_RANKS = 1_024


class _Hub:
    """The meeting point of simulated ranks, which run one at a time, in turn."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.failed = False
        # One for each rank, so that passing the turn wakes one thread and not all.
        self._turns = [threading.Lock() for _ in range(world_size)]
        for turn in self._turns:
            turn.acquire()
        # Used in turn, because other ranks may still read the round before.
        self._rounds: tuple[list[Any], list[Any]] = ([None] * world_size, [None] * world_size)

    def wait_for_turn(self, rank: int) -> None:
        self._turns[rank].acquire()
        if self.failed:
            raise SystemExit(1)

    def pass_turn(self, rank: int) -> None:
        self._turns[(rank + 1) % self.world_size].release()

    def fail(self) -> None:
        self.failed = True
        for turn in self._turns:
            if turn.locked():
                turn.release()

    def exchange(self, rank: int, count: int, value: Any) -> list[Any]:
        """Return the values of all ranks; the list is valid until the next exchange."""
        values = self._rounds[count % 2]
        values[rank] = value
        self.pass_turn(rank)
        self.wait_for_turn(rank)
        return values


class SimulatedWorld(World):
    """One of several ranks that live in one process, in lockstep."""

    def __init__(self, rank: int, hub: _Hub) -> None:
        super().__init__()
        self.rank, self.world_size = rank, hub.world_size
        self.local_rank, self.local_size = rank, hub.world_size
        self.host_sizes = (hub.world_size,)
        self._hub, self._count = hub, 0

    def _exchange(self, value: Any) -> list[Any]:
        self._count += 1
        return self._hub.exchange(self.rank, self._count, value)

    def share_whole(self, bytes_: int, folder: str = "") -> tuple[Array | None, str]:
        memory, reason = super().share_whole(bytes_) if self.rank == 0 else (None, "")
        return self._exchange(memory)[0], reason

    # Objects travel pickled: as with MPI, no rank receives another's own arrays.

    def all_gather_object(self, value: Any) -> list[Any]:
        return [pickle.loads(m) for m in self._exchange(pickle.dumps(value))]

    def gather_object(self, value: Any) -> list[Any] | None:
        messages = self._exchange(pickle.dumps(value))
        return [pickle.loads(m) for m in messages] if self.rank == 0 else None

    def broadcast(self, value: Any, root: int = 0) -> Any:
        message = pickle.dumps(value) if self.rank == root else None
        return pickle.loads(self._exchange(message)[root])

    def all_gather(self, send: Array, receive: Array) -> None:
        import numpy as np

        np.concatenate([*self._exchange(send.reshape(-1).copy())], out=receive.reshape(-1))

    def all_to_all(self, send: Array, receive: Array) -> None:
        for rank, value in enumerate(self._exchange(send.copy())):
            receive[rank] = value[self.rank]

    def abort(self, code: int) -> None:
        self._hub.fail()
        raise SystemExit(code)


def simulate(world_size: int, main: Callable[[World], int]) -> int:
    """Run `main` once per rank in this process, in turn; return rank 0's exit code.

    Raises
    ------
    ConfigError
        If it is more ranks than `MAX_RANKS`: each is a thread.
    """
    if world_size > MAX_RANKS:
        raise ConfigError(f"{world_size} simulated ranks: allowed are 1 to {MAX_RANKS:,}")
    hub = _Hub(world_size)
    codes = [1] * world_size

    def run(rank: int) -> None:
        try:
            hub.wait_for_turn(rank)
            codes[rank] = main(SimulatedWorld(rank, hub))
            hub.pass_turn(rank)
        except BaseException:
            hub.fail()
            if rank == 0:
                raise

    others = [threading.Thread(target=run, args=(rank,)) for rank in range(1, world_size)]
    for thread in others:
        thread.start()
    hub.pass_turn(world_size - 1)
    try:
        run(0)
    finally:
        for thread in others:
            thread.join()
    return codes[0]
