"""Which world a process belongs to: what its launcher's environment says."""

import os
from collections.abc import Mapping

from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.world import World


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
