"""The ranks of a run as one of them sees them: the interface of all worlds, and one process alone.

This module does not import NumPy, whose threads and kernel are set only after rank 0 has sent the
settings to all ranks.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from ddpbp.base.phases import Pulse
from ddpbp.errors import DdpbpError

Array = Any  # a C-contiguous NumPy array
Result = TypeVar("Result")


class Request(Protocol):
    """A communication in progress. It may advance only while it is tested."""

    def Test(self) -> bool:
        """Return whether it is complete."""


class Lost(Exception):  # noqa: N818 - an event, not a mistake
    """Another rank died. The remaining ranks must agree on how to continue: `World.settle`."""


class World:
    """One process alone: the ordinary case, and the interface of all worlds.

    Ranks are numbered host by host. Rank j of every host communicates with rank j of the others
    on *lane* j, for as many lanes as the host with the fewest ranks has.

    Attributes
    ----------
    rank, world_size : int
        This rank among all.
    host : str
        The name of this rank's machine.
    host_index, host_count : int
        This rank's machine among all.
    host_sizes : tuple of int
        The number of ranks on each host.
    local_rank, local_size : int
        This rank among those of its host.
    lane, lane_count : int
        Ranks without a lane have lane -1.
    shares_memory : bool
        The ranks of a host are separate processes that can map the same memory.
    survives : bool
        The other ranks continue when one dies; its loss is then raised as `Lost`.
    lost : tuple of int
        The ranks that died, by their numbers before this became the world of the remaining ones.
    pulse : Pulse
        What this rank is doing.
    pulses : list of Pulse
        Those of all ranks that are threads of this process.
    comm : Any
        The MPI communicator of all ranks; None where there is none.
    """

    rank, world_size = 0, 1
    host_index, host_count = 0, 1
    host_sizes: tuple[int, ...] = (1,)
    local_rank, local_size = 0, 1
    lane, lane_count = 0, 1
    shares_memory = False
    survives = False
    lost: tuple[int, ...] = ()
    comm: Any = None

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.pulse = Pulse()
        self.pulses = [self.pulse]

    def all_gather(self, send: Array, receive: Array) -> None:
        """Copy every rank's `send` to `receive[rank]`."""
        receive[0] = send

    def all_to_all(self, send: Array, receive: Array) -> None:
        """Copy `send[r]` of every rank to `receive[rank]` of rank r; all blocks have one size."""
        receive[0] = send[0]

    def local_barrier(self) -> None:
        """Wait until all ranks of this host are here."""

    def start_local_barrier(self) -> Request:
        """Announce this rank to the ranks of its host; complete when all have announced theirs.

        A rank whose request is complete sees all that the others wrote to shared memory before
        they announced themselves. Every rank must test its request repeatedly.
        """
        raise NotImplementedError

    def start_send(self, send: Array, host_index: int, tag: int) -> Request:
        """Begin to send to the rank on the same lane of another host."""
        raise NotImplementedError

    def start_receive(self, receive: Array, host_index: int, tag: int) -> Request:
        """Begin to receive the message of this tag from the rank on this lane of another host."""
        raise NotImplementedError

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        """Return memory that all ranks of this host can read and write.

        Returns
        -------
        memory : (local_size, bytes_per_rank) uint8 or None
            None on all ranks of all hosts if one of them could not map it.
        reason : str
            Why it is None.
        """
        import numpy as np

        return np.zeros((1, bytes_per_rank), np.uint8), ""

    def share_whole(self, bytes_: int, folder: str = "") -> tuple[Array | None, str]:
        """Return memory that the ranks of this host have in common: one piece, not one a rank.

        Parameters
        ----------
        bytes_ : int
        folder : str, optional
            Where a file is mapped; by default in memory.

        Returns
        -------
        memory : (bytes_,) uint8 or None
            None on all ranks of all hosts if one of them could not map it.
        reason : str
            Why it is None.
        """
        import numpy as np

        return np.empty(bytes_, np.uint8), ""

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's small object, in rank order."""
        return [value]

    def gather_object(self, value: Any) -> list[Any] | None:
        """Return every rank's small object on rank 0, in rank order; None on the others."""
        return [value]

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the small object of rank `root`."""
        return value

    def decide(self, value: Any, verdict: Callable[[list[Any]], Result]) -> Result:
        """Return, on all ranks, what rank 0 concludes from every rank's small object.

        What a rank sends and receives does not grow with the number of ranks, as it does with
        `all_gather_object`.

        Parameters
        ----------
        value : Any
        verdict : callable
            Called on rank 0, with the objects in rank order. It must not raise.
        """
        every = self.gather_object(value)
        result: Result = self.broadcast(None if every is None else verdict(every))
        return result

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.decide(None, lambda _: None)

    def wait_idly(self) -> None:
        """Wait until all ranks are here, and leave the cores to those that still work."""

    def settle(self, *, whole: bool) -> bool:
        """Agree with all ranks on how a piece of work ended. Every rank calls this, in any case.

        Parameters
        ----------
        whole : bool
            Whether this rank finished its part and noticed no loss.

        Returns
        -------
        bool
            Whether all ranks are alive and finished theirs. If not, this is now the world of the
            remaining ranks.

        Raises
        ------
        DdpbpError
            On every rank, if MPI failed although no rank died.
        """
        return True

    def abort(self, code: int) -> None:
        """End all ranks at once; does not return where there are others."""
        raise SystemExit(code)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block, then raise an error of one rank on all ranks.

        Raises
        ------
        DdpbpError
            On every rank, with the first failing rank's message and exit code.
        """
        fault: tuple[type[DdpbpError], str] | None = None
        try:
            yield
        except (DdpbpError, OSError) as error:
            fault = fault_of(error)
        first = self.decide(fault and (self.host, *fault), _first_fault)
        if first is not None:
            kind, message = first
            raise kind(message)


def fault_of(error: DdpbpError | OSError) -> tuple[type[DdpbpError], str]:
    """Return what an error becomes on the other ranks: its kind and its message."""
    if isinstance(error, DdpbpError):
        return type(error), str(error)
    where = f": {error.filename}" if error.filename else ""
    return DdpbpError, f"{error.strerror}{where}"


def _first_fault(
    faults: list[tuple[str, type[DdpbpError], str] | None],
) -> tuple[type[DdpbpError], str] | None:
    """Return the first fault in rank order, its message naming the rank unless that is rank 0."""
    for rank, fault in enumerate(faults):
        if fault:
            host, kind, message = fault
            return kind, message if rank == 0 else f"rank {rank} on {host}: {message}"
    return None


def cores(world: World) -> int:
    """Return the number of cores for each process of this host, whether bound to them or not."""

    def by_host(allowed: list[tuple[int, set[int]]]) -> list[int]:
        together = [set[int]() for _ in range(world.host_count)]
        for host, mine in allowed:
            together[host] |= mine
        return [len(cores) for cores in together]

    counts = world.decide((world.host_index, os.sched_getaffinity(0)), by_host)
    return counts[world.host_index] // world.local_size


def outlive(world: World, main: Callable[[World], Result]) -> Result:
    """Return the result of `main`; each time ranks are lost, the remaining ones call it again.

    Raises
    ------
    DdpbpError
        From `main`, which raises it on every rank.
    """
    while True:
        fault: DdpbpError | Lost | None = None
        try:
            result = main(world)
        except (DdpbpError, Lost) as error:
            fault = error
        if world.settle(whole=not isinstance(fault, Lost)):
            if fault:
                raise fault
            return result
