"""The ranks of a run: one process, MPI, or several ranks simulated in one process.

Three implementations of one small interface. Only this module imports mpi4py, and only when the
process was started under a launcher; it does not import NumPy, whose threads and kernel are
settled after the configuration has been shared.
"""

import os
import pickle
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from ddpbp.errors import ConfigError, DdpbpError

Array = Any  # any C-contiguous buffer with array syntax
Call = TypeVar("Call", bound=Callable[..., Any])
Result = TypeVar("Result")


class Request(Protocol):
    """Something that goes on by itself, or while it is tested."""

    def Test(self) -> bool:
        """Tell whether it is done."""


class Lost(Exception):  # noqa: N818 - what happened
    """A rank is gone; the others have to agree on how they go on: `World.settle`."""


class Pulse:
    """What a rank is doing, for those who watch it; a change costs a few stores.

    Attributes
    ----------
    step : int
    phase : str
    progress : int
        Grows with all that is done.
    waits : int
        Not 0 while the rank waits for others.
    """

    __slots__ = ("phase", "progress", "step", "waits")

    def __init__(self) -> None:
        self.step, self.phase, self.progress, self.waits = 0, "start", 0, 0


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


class _Hub:
    """Where simulated ranks meet: they run one at a time, in turn."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.failed = False
        self._turn = 0
        self._condition = threading.Condition()
        self._rounds: tuple[list[Any], list[Any]] = ([None] * world_size, [None] * world_size)

    def wait_for_turn(self, rank: int) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._turn == rank or self.failed)
        if self.failed:
            raise SystemExit(1)

    def pass_turn(self, rank: int) -> None:
        with self._condition:
            self._turn = (rank + 1) % self.world_size
            self._condition.notify_all()

    def fail(self) -> None:
        with self._condition:
            self.failed = True
            self._condition.notify_all()

    def exchange(self, rank: int, count: int, value: Any) -> list[Any]:
        values = self._rounds[count % 2]  # the others may still read those of the round before
        values[rank] = value
        self.pass_turn(rank)
        self.wait_for_turn(rank)
        return list(values)


class SimulatedWorld(World):
    """One of several ranks that live in one process, in lockstep: for debuggers and tests."""

    def __init__(self, rank: int, hub: _Hub) -> None:
        super().__init__()
        self.rank, self.world_size = rank, hub.world_size
        self.local_rank, self.local_size = rank, hub.world_size
        self.node_sizes = (hub.world_size,)
        self._hub, self._count = hub, 0

    def all_gather_object(self, value: Any) -> list[Any]:
        self._count += 1
        message = pickle.dumps(value)  # as over MPI: nobody gets hold of another's arrays
        return [pickle.loads(m) for m in self._hub.exchange(self.rank, self._count, message)]

    def all_gather(self, send: Array, receive: Array) -> None:
        for rank, value in enumerate(self.all_gather_object(send)):
            receive[rank] = value

    def all_to_all(self, send: Array, receive: Array) -> None:
        for rank, value in enumerate(self.all_gather_object(send)):
            receive[rank] = value[self.rank]

    def abort(self, code: int) -> None:
        self._hub.fail()
        raise SystemExit(code)


def simulate(world_size: int, main: Callable[[World], int]) -> int:
    """Run `main` once per rank in this process, in turn; return rank 0's exit code."""
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
    try:
        run(0)
    finally:
        for thread in others:
            thread.join()
    return codes[0]


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Tell (rank, ranks) if a launcher started this process; ranks 0 if it does not say.

    A Slurm allocation alone is no launch: its batch shell knows SLURM_NTASKS too, only a step
    (srun) numbers its tasks by SLURM_STEP_NUM_TASKS.
    """
    for rank, size in (
        ("PMI_RANK", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
        ("PMIX_RANK", ""),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ):
        if environment.get(rank, "").isdigit() and (not size or size in environment):
            count = environment.get(size, "0") if size else "0"
            return int(environment[rank]), int(count) if count.isdigit() else 0
    return None


def join(*, mpi: bool | None = None) -> World:
    """Return the world this process belongs to.

    Parameters
    ----------
    mpi : bool, optional
        True asks for MPI, False for one process; None looks whether a launcher started it.
    """
    found = launched()
    if mpi is False or (mpi is None and found is None):
        return World()
    expected = found[1] if found else 0
    return MpiWorld(expected or None)
