"""A world: the ranks of a run as one of them sees them, and the interface of all transports.

This module imports no NumPy: its threads and kernel are settled after the settings were shared.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from ddpbp.base.phases import Pulse
from ddpbp.errors import DdpbpError

Array = Any  # any C-contiguous buffer with array syntax
Result = TypeVar("Result")


class Request(Protocol):
    """Something that goes on by itself, or while it is tested."""

    def Test(self) -> bool:
        """Tell whether it is done."""


class Lost(Exception):  # noqa: N818 - what happened
    """A rank is gone; the others have to agree on how they go on: `World.settle`."""


class World:
    """One process alone: the ordinary case, and the interface of all worlds.

    Attributes
    ----------
    rank, world_size : int
        This process among all, counted in (node, local rank) order.
    node, node_count : int
        The machine this rank runs on.
    local_rank, local_size : int
        This process among those of its node.
    node_sizes : tuple of int
        The number of ranks of each node.
    lane, lane_count : int
        Rank j of every node speaks for its node on lane j, as far as all nodes have a rank j; the
        other ranks have lane -1.
    host : str
        The name of the machine.
    shares_memory : bool
        Whether the ranks of a node are processes that can map the same memory.
    survives : bool
        Whether the other ranks live on when one dies: its loss is then raised as `Lost`.
    lost : tuple of int
        Those that are gone, as they were numbered before it became the world of those left.
    pulse : Pulse
        What this rank is doing.
    pulses : list of Pulse
        Those of all threads of this process that are ranks.
    """

    shares_memory = False
    survives = False
    losses: tuple[type[BaseException], ...] = ()  # what MPI raises then
    lost: tuple[int, ...] = ()
    rank, world_size = 0, 1
    node, node_count = 0, 1
    local_rank, local_size = 0, 1
    node_sizes: tuple[int, ...] = (1,)
    lane, lane_count = 0, 1

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.pulse = Pulse()
        self.pulses = [self.pulse]

    def all_gather(self, send: Array, receive: Array) -> None:
        """Copy every rank's `send` to `receive[rank]`."""
        receive[0] = send

    def all_to_all(self, send: Array, receive: Array) -> None:
        """Copy `send[r]` of every rank to `receive[rank]` of rank r; blocks of equal size."""
        receive[0] = send[0]

    def local_barrier(self) -> None:
        """Wait for all ranks of this node."""

    def start_local_barrier(self) -> Request:
        """Tell the ranks of this node that this one is here; done when all of them are.

        What a rank wrote to shared memory before is seen by those whose request is done. Every
        rank must test its request now and then.
        """
        raise NotImplementedError

    def start_send(self, send: Array, node: int, tag: int) -> Request:
        """Begin to send to the rank with the same lane on another node."""
        raise NotImplementedError

    def start_receive(self, receive: Array, node: int, tag: int) -> Request:
        """Begin to receive what that rank sends with this tag."""
        raise NotImplementedError

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        """Return memory that all ranks of this node see, or None and the reason why not.

        Returns
        -------
        memory : (local_size, bytes_per_rank) uint8 or None
            None on all ranks of all nodes, if one of them could not have it.
        reason : str
        """
        import numpy as np

        return np.zeros((1, bytes_per_rank), np.uint8), ""

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's small object, in rank order."""
        return [value]

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the small object of rank `root`."""
        return self.all_gather_object(value if self.rank == root else None)[root]

    def settle(self, *, whole: bool) -> bool:
        """Agree on how a piece of work ended: all ranks come here, however it ended for them.

        Parameters
        ----------
        whole : bool
            Whether this rank came to the end of it, and missed nobody.

        Returns
        -------
        bool
            Whether all ranks are there and say so; else this is now the world of those left.

        Raises
        ------
        DdpbpError
            On every rank, if MPI failed though nobody is gone.
        """
        return True

    def abort(self, code: int) -> None:
        """End all ranks at once; does not return where there are others."""
        raise SystemExit(code)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make a fault of one rank the fault of all: run the block, then compare.

        Raises
        ------
        DdpbpError
            On every rank, with the first failing rank's message and exit code.
        """
        fault: tuple[type[DdpbpError], str] | None = None
        try:
            yield
        except DdpbpError as error:
            fault = (type(error), str(error))
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fault = (DdpbpError, f"{error.strerror}{where}")
        for rank, (host, found) in enumerate(self.all_gather_object((self.host, fault))):
            if found is not None:
                kind, message = found
                raise kind(message if rank == 0 else f"rank {rank} on {host}: {message}")


def outlive(world: World, main: Callable[[World], Result]) -> Result:
    """Return what `main` does; each time ranks were lost, those who are left do it again.

    Raises
    ------
    DdpbpError
        That of `main`, which has reached every rank.
    """
    while True:
        fault: DdpbpError | Lost | None = None
        try:
            result = main(world)
        except (DdpbpError, Lost) as found:
            fault = found
        if world.settle(whole=not isinstance(fault, Lost)):
            if fault:
                raise fault
            return result
