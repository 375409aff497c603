"""Which world a process belongs to, according to the environment its launcher gave it."""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

from ddpbp.comm.launcher_pulse import launcher_pulse
from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.world import World
from ddpbp.errors import DdpbpError


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return (rank, number of ranks) if a launcher started this process, else None.

    The number is 0 if the launcher does not state it. A Slurm allocation alone is no launch: its
    batch shell has SLURM_NTASKS too, but only a step (srun) has SLURM_STEP_NUM_TASKS.
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
    """Return the world of this process.

    In a world of MPI, an exception that a script does not catch ends all ranks, with the code of a
    `DdpbpError` or 1: MPI alone would let the others wait for this one forever.

    Parameters
    ----------
    mpi : bool, optional
        True for the ranks of an MPI job, False for one process alone; by default MPI if a
        launcher started this process.

    Raises
    ------
    ConfigError
        If there is no MPI library, or it is not the launcher's.
    """
    place = launched()
    if mpi is False or (mpi is None and place is None):
        return World()
    launcher_pulse().write("here")
    _, expected = place or (0, 0)
    world = MpiWorld(expected or None)
    sys.excepthook = partial(_end_all, world, sys.excepthook)
    return world


def _end_all(
    world: World,
    print_exception: Callable[..., object],
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    print_exception(kind, error, traceback)
    world.abort(error.code if isinstance(error, DdpbpError) else 1)
