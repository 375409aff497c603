"""The ranks of an MPI job. Only this module imports mpi4py, and only when a world is made."""

import os
import re
import signal
import time
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from ddpbp.comm.world import Array, Lost, Request, World
from ddpbp.errors import ConfigError, DdpbpError

Call = TypeVar("Call", bound=Callable[..., Any])


def _waiting(method: Call) -> Call:
    """Mark a method of a world as one in which a rank waits for others."""

    @wraps(method)
    def marked(world: "World", *arguments: Any) -> Any:
        world.pulse.waits += 1
        try:
            return method(world, *arguments)
        except world.losses as loss:
            raise Lost(str(loss)) from None
        finally:
            world.pulse.waits -= 1

    return cast(Call, marked)


class MpiWorld(World):
    """The ranks of an MPI job, through mpi4py.

    Parameters
    ----------
    expected : int or None
        The number of ranks that the launcher's environment speaks of.
    machine : int, optional
        The node this rank shall believe to be on; by default those that can share memory are one.

    Raises
    ------
    ConfigError
        If there is no MPI library, or it is not the launcher's.
    """

    def __init__(self, expected: int | None, machine: int | None = None) -> None:
        super().__init__()
        library = mpi_library()
        from mpi4py import MPI

        another = (
            "mpirun belongs to another MPI than mpi4py's; start with the mpirun of this Python "
            "environment (its bin folder), or install the matching library"
        )
        by_open_mpi = "OMPI_COMM_WORLD_SIZE" in os.environ and "PMI_RANK" not in os.environ
        if by_open_mpi and "Open MPI" not in library:  # its MPI_Init would end the process
            raise ConfigError(f"started by Open MPI's mpirun, but MPI is {library}: {another}")
        fault_tolerant = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112
        if fault_tolerant:  # else MPI_Finalize now and then waits for the dead, for ever
            os.environ.setdefault("OMPI_MCA_async_mpi_finalize", "1")
        if not MPI.Is_initialized():
            # MPICH takes SIGUSR1 for itself; a request that comes meanwhile would be lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            with warnings.catch_warnings(action="ignore"):  # the fault it warns of is told below
                MPI.Init_thread()
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        comm: MPI.Intracomm = MPI.COMM_WORLD
        if expected is not None and expected != comm.size:
            raise ConfigError(
                f"the launcher started {expected} ranks, but MPI ({library}) sees {comm.size}: "
                f"{another}"
            )
        if machine is None:
            local = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
        else:
            local = MPI.Intracomm(comm.Split(machine, comm.rank))
        leader = local.bcast(comm.rank)
        places = comm.allgather((leader, local.rank))
        order = sorted(places)
        if order != places:  # a node's ranks shall follow each other
            comm = MPI.Intracomm(comm.Split(0, order.index(places[comm.rank])))
        self.local_comm, self.library = local, library
        self._take_places(comm, [leader for leader, _ in order])
        self._barrier: Callable[[], object] = local.Barrier
        self._lane_comm = comm.Split(self.lane if self.lane >= 0 else MPI.UNDEFINED, self.node)
        if fault_tolerant:
            self.survives, self.losses = True, (MPI.Exception,)
            self.shares_memory = False  # who waits there would wait for the dead

    shares_memory = True

    def _take_places(self, comm: Any, homes: list[int]) -> None:
        """Take the place that `comm` gives, whose ranks are on the nodes `homes`."""
        self.comm, self._homes = comm, homes
        self.rank, self.world_size = comm.rank, comm.size
        home, nodes = homes[comm.rank], sorted(set(homes))
        self.node, self.node_count = nodes.index(home), len(nodes)
        self.node_sizes = tuple(homes.count(node) for node in nodes)
        self.local_rank, self.local_size = homes[: comm.rank].count(home), homes.count(home)
        self.lane_count = min(self.node_sizes)
        self.lane = self.local_rank if self.local_rank < self.lane_count else -1

    def settle(self, *, whole: bool) -> bool:
        if not self.survives:
            return True
        if not whole:
            self.comm.Revoke()  # nobody shall wait any more for what will not come
        try:
            if self.comm.Agree(int(whole)):
                return True
        except self.losses:  # the same on all ranks
            pass
        comm = self.comm.Shrink()
        ranks = comm.group.Translate_ranks(None, self.comm.group)
        self.lost = tuple(sorted({*range(self.world_size)} - {*ranks}))
        self._take_places(comm, [self._homes[rank] for rank in ranks])
        if not self.lost:
            raise DdpbpError(f"MPI ({self.library}) failed, though no rank is gone; start again")
        self.pulses = [self.pulse]
        self.local_comm, self._barrier = comm, comm.Barrier  # used by a process alone at most
        return False

    def start_local_barrier(self) -> Request:
        return self.local_comm.Ibarrier()

    def start_send(self, send: Array, node: int, tag: int) -> Request:
        return self._lane_comm.Isend(send, node, tag)

    def start_receive(self, receive: Array, node: int, tag: int) -> Request:
        return self._lane_comm.Irecv(receive, node, tag)

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        from ddpbp.comm.shared_memory import make_barrier, map_pages

        memory, reason = map_pages(self, bytes_per_rank)
        if memory is not None and self._barrier == self.local_comm.Barrier:
            self._barrier = make_barrier(self) or self._barrier
        return memory, reason

    @_waiting
    def local_barrier(self) -> None:
        self._barrier()

    @_waiting
    def all_gather(self, send: Array, receive: Array) -> None:
        self.comm.Allgather(send, receive)

    @_waiting
    def all_to_all(self, send: Array, receive: Array) -> None:
        self.comm.Alltoall(send, receive)

    @_waiting
    def all_gather_object(self, value: Any) -> list[Any]:
        return list(self.comm.allgather(value))

    @_waiting
    def broadcast(self, value: Any, root: int = 0) -> Any:
        return self.comm.bcast(value, root)

    def abort(self, code: int) -> None:
        time.sleep(0.2)  # the launcher has to pass on what was said before it hears of the end
        self.comm.Abort(code)


def mpi_library() -> str:
    """Load the MPI library without starting it; return its name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=True)  # first see whose library it is
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"mpi4py finds no MPI library ({error}); install one beside ddpbp: "
            "pip install 'ddpbp[mpich]'"
        ) from None
    name = re.split(r"[,\n]", MPI.Get_library_version())[0]
    return " ".join(name.replace("Version:", "").split())
