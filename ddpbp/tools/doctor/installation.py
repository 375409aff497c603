"""Checks of the installation: launcher and library, versions, environment."""

import os
from collections import Counter
from typing import Any

from ddpbp.base import blas
from ddpbp.base.version import __version__
from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.world import World
from ddpbp.errors import ConfigError
from ddpbp.tools.doctor.finding import Finding, listed, ranks_text
from ddpbp.tools.launcher import which


def launcher_fault(error: ConfigError) -> Finding:
    """Return the finding for a launcher that does not fit the MPI library."""
    fix = ""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        fix = "srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI (srun --mpi=list shows them)"
    return Finding("fail", "launcher", str(error), fix)


def launcher(world: World) -> Finding:
    """Check that the launcher and the MPI library fit each other."""
    if isinstance(world, MpiWorld):  # it has compared launcher and library already
        return Finding("pass", "launcher", f"{ranks_text(world)} through {world.library}")
    try:
        library, mpiexec = which()
    except ConfigError as error:
        problem, _, fix = str(error).partition("; install ")
        return Finding(
            "warn", "launcher", problem, f"to use several ranks: install {fix}" * bool(fix)
        )
    return Finding("pass", "launcher", f"1 process; {mpiexec} starts more, through {library}")


def versions(world: World) -> Finding:
    """Compare the versions and the BLAS kernel of all ranks."""
    import platform

    import msgspec
    import numpy as np
    from threadpoolctl import threadpool_info

    blas: dict[str, Any] = next((b for b in threadpool_info() if b["user_api"] == "blas"), {})
    mine = {
        "ddpbp": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        str(blas.get("internal_api", "BLAS")): str(blas.get("version", "unknown")),
        "kernel": str(blas.get("architecture", "unknown")),
        "msgspec": msgspec.__version__,
    }
    every = world.all_gather_object((world.host, mine))
    usual = _usual([versions for _, versions in every])
    odd = {
        f"{name} {versions.get(name)} on {host}"
        for host, versions in every
        for name in usual
        if versions.get(name) != usual[name]
    }
    if odd:
        return Finding(
            "warn",
            "versions",
            f"{listed(sorted(odd))}; elsewhere {listed(map(' '.join, usual.items()))}",
            'install the same versions on all hosts; kernel = "haswell" where processors differ',
        )
    return Finding("pass", "versions", listed(map(" ".join, mine.items())))


def _usual(every: list[dict[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for versions in every for name in versions)
    return {n: Counter(v.get(n, "none") for v in every).most_common(1)[0][0] for n in names}


def environment(world: World) -> Finding:
    """Report the settings of the environment that are overridden."""
    every = world.all_gather_object((world.host, blas.overridden()))
    notes = dict.fromkeys(f"{host}: {note}" for host, theirs in every for note in theirs)
    if notes:
        return Finding("warn", "environment", "; ".join(notes), "unset it, or leave it to ddpbp")
    return Finding("pass", "environment", "one BLAS thread, the kernel as configured")
