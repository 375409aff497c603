"""The ranks of an MPI job. Only this module imports mpi4py, and only when it is called."""

import os
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from ddpbp.comm.world import Array, Lost, Request, World
from ddpbp.errors import ConfigError, DdpbpError

Call = TypeVar("Call", bound=Callable[..., Any])

IDLE_AFTER, IDLE_SECONDS = 100, 1e-3  # an idle wait sleeps between reads after so many

ANOTHER_MPI = (
    "mpirun belongs to another MPI than mpi4py's; start with the mpirun of this Python "
    "environment (its bin folder), or install the matching library"
)


def _waiting(method: Call) -> Call:
    """Mark a method in which a rank waits for others: its pulse shows it, a death is `Lost`."""

    @wraps(method)
    def marked(world: "MpiWorld", *arguments: Any) -> Any:
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
        The number of ranks according to the launcher's environment.
    as_host : int, optional
        Act as if this rank were on the host of this number; by default the ranks that can share
        memory are on one host.

    Attributes
    ----------
    library : str
        The name and version of the MPI library.
    local_comm : Any
        The MPI communicator of the ranks of this host.
    losses : tuple of exception types
        What MPI raises when another rank died; none unless the world survives.

    Raises
    ------
    ConfigError
        If there is no MPI library, or it is not the launcher's.
    """

    shares_memory = True
    losses: tuple[type[BaseException], ...] = ()

    def __init__(self, expected: int | None, as_host: int | None = None) -> None:
        super().__init__()
        self.library = mpi_library()
        from mpi4py import MPI

        fault_tolerant = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112
        self._start_library(fault_tolerant=fault_tolerant)
        comm: MPI.Intracomm = MPI.COMM_WORLD
        if expected is not None and expected != comm.size:
            raise ConfigError(
                f"the launcher started {expected} ranks, but MPI ({self.library}) sees "
                f"{comm.size}: {ANOTHER_MPI}"
            )
        if as_host is None:
            local = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
        else:
            local = MPI.Intracomm(comm.Split(as_host, comm.rank))
        leader = local.bcast(comm.rank)
        places = comm.allgather((leader, local.rank))
        order = sorted(places)
        if order != places:  # number the ranks host by host
            comm = MPI.Intracomm(comm.Split(0, order.index(places[comm.rank])))
        self.local_comm = local
        self._take_places(comm, [leader for leader, _ in order])
        self._barrier: Callable[[], object] = local.Barrier
        lane = self.lane if self.lane >= 0 else MPI.UNDEFINED
        self._lane_comm = comm.Split(lane, self.host_index)
        if fault_tolerant:
            self.survives, self.losses = True, (MPI.Exception,)
            self.shares_memory = False  # a barrier in memory would wait for the dead forever

    def _start_library(self, *, fault_tolerant: bool) -> None:
        """Initialize MPI, unless it is already; refuse the launcher of another library."""
        from mpi4py import MPI

        by_open_mpi = "OMPI_COMM_WORLD_SIZE" in os.environ and "PMI_RANK" not in os.environ
        if by_open_mpi and "Open MPI" not in self.library:  # its MPI_Init would end the process
            raise ConfigError(
                f"started by Open MPI's mpirun, but MPI is {self.library}: {ANOTHER_MPI}"
            )
        if fault_tolerant:  # otherwise MPI_Finalize sometimes waits for the dead forever
            os.environ.setdefault("OMPI_MCA_async_mpi_finalize", "1")
        if MPI.Is_initialized():
            return
        # MPICH installs handlers for these. A signal that arrives meanwhile must have its effect,
        # so it is held back until the disposition is again that of before.
        before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGHUP)}
        signal.pthread_sigmask(signal.SIG_BLOCK, before)
        with warnings.catch_warnings(action="ignore"):  # the number of ranks is checked by us
            MPI.Init_thread()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, before)

    def _take_places(self, comm: Any, homes: list[int]) -> None:
        """Take this rank's place in `comm`; `homes` has a number for the host of each rank."""
        self.comm, self._homes = comm, homes
        self.rank, self.world_size = comm.rank, comm.size
        home, ranks = homes[comm.rank], Counter(homes)
        hosts = sorted(ranks)
        self.host_index, self.host_count = hosts.index(home), len(hosts)
        self.host_sizes = tuple(ranks[host] for host in hosts)
        self.local_rank, self.local_size = homes[: comm.rank].count(home), homes.count(home)
        self.lane_count = min(self.host_sizes)
        self.lane = self.local_rank if self.local_rank < self.lane_count else -1

    def settle(self, *, whole: bool) -> bool:
        if not self.survives:
            return True
        if not whole:
            self.comm.Revoke()  # ends every wait of another rank for a message that cannot come
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
            raise DdpbpError(f"MPI ({self.library}) failed although no rank died; start again")
        self.pulses = [self.pulse]
        # Used only by the threads of a process that is the last one: others share no memory.
        self.local_comm, self._barrier = comm, comm.Barrier
        return False

    def start_local_barrier(self) -> Request:
        return self.local_comm.Ibarrier()

    def start_send(self, send: Array, host_index: int, tag: int) -> Request:
        return self._lane_comm.Isend(send, host_index, tag)

    def start_receive(self, receive: Array, host_index: int, tag: int) -> Request:
        return self._lane_comm.Irecv(receive, host_index, tag)

    def share(self, bytes_per_rank: int) -> tuple[Array | None, str]:
        from ddpbp.comm.shared_memory import make_barrier, map_pages

        memory, reason = map_pages(self, bytes_per_rank)
        if memory is not None and self._barrier == self.local_comm.Barrier:
            self._barrier = make_barrier(self) or self._barrier
        return memory, reason

    def share_whole(self, bytes_: int, folder: str = "") -> tuple[Array | None, str]:
        from ddpbp.comm.shared_memory import map_whole

        return map_whole(self, bytes_, folder)

    @_waiting
    def local_barrier(self) -> None:
        self._barrier()

    @_waiting
    def wait_idly(self) -> None:
        request, reads = self.comm.Ibarrier(), 0
        while not request.Test():
            reads += 1
            if reads > IDLE_AFTER:
                time.sleep(IDLE_SECONDS)

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
    def gather_object(self, value: Any) -> list[Any] | None:
        every: list[Any] | None = self.comm.gather(value)
        return every

    @_waiting
    def broadcast(self, value: Any, root: int = 0) -> Any:
        return self.comm.bcast(value, root)

    def abort(self, code: int) -> None:
        time.sleep(0.2)  # the launcher needs time to forward our output before it ends the job
        self.comm.Abort(code)


def mpi_library() -> str:
    """Load the MPI library without initializing it; return its name and version.

    Raises
    ------
    ConfigError
        If there is none.
    """
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=True)  # first check whose library it is
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"mpi4py finds no MPI library ({error}); install one beside ddpbp: "
            "pip install 'ddpbp[mpich]'"
        ) from None
    name = re.split(r"[,\n]", MPI.Get_library_version())[0]
    return " ".join(name.replace("Version:", "").split())
