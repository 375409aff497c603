"""The MPI library of a Python, the mpiexec that fits it, and the command that starts ranks."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import LaunchError
from .train_command import cannot_run
from .values import one_line, shown


class Family(NamedTuple):
    """One MPI as the launcher knows it."""

    name: str
    pattern: str  # in the version that the library and its mpiexec print
    kubernetes: str  # its name in an MPIJob
    suffix: str = ""  # of Debian's mpiexec, where several families are installed


FAMILIES = {
    "mpich": Family("MPICH", r"MPICH|HYDRA", "MPICH", ".mpich"),
    "openmpi": Family("Open MPI", r"Open MPI|OpenRTE|Open-MPI", "OpenMPI", ".openmpi"),
    "intel": Family("Intel MPI", r"Intel\(R\) MPI", "Intel"),
}

# Without MPI_Init, which would already look for a launcher.
_ASK = """
import json, ddpbp, mpi4py
mpi4py.rc(initialize=False, finalize=False)
from mpi4py import MPI
maps = [line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line]
print(json.dumps([MPI.Get_library_version(), maps[0] if maps else ""]))
"""

# Variables that change bits or Python: Open MPI sends to other hosts only those it is asked to.
SENT = re.compile(r"(DDPBP|OPENBLAS|NPY|OMP|MKL|BLIS|PYTHON|MPI4PY|UCX|FI)_?\w*|(LD_LIBRARY_)?PATH")


@dataclass(frozen=True)
class Mpi:
    """An MPI library, and the launcher that belongs to it."""

    family: str
    version: tuple[int, ...]
    mpiexec: Path

    def __str__(self) -> str:
        return f"{FAMILIES[self.family].name} {'.'.join(map(str, self.version))}"


def family(version: str) -> str | None:
    """Return the key in FAMILIES of a library or an mpiexec, by the version that it prints."""
    families = [name for name, mpi in FAMILIES.items() if re.search(mpi.pattern, version)]
    return families[-1] if families else None  # the mpiexec of Intel MPI names Hydra as well


def _version(text: str) -> tuple[int, ...]:
    match = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def find(python: Sequence[str]) -> Mpi:
    """Find the library that this Python's mpi4py loads, and the mpiexec that fits it.

    Parameters
    ----------
    python : sequence of str
        The words that run the ranks' Python: its path, or a container and its Python.

    Raises
    ------
    LaunchError
        If there is no library, or no mpiexec of its family.
    """
    python_line = one_line(shlex.join(python))
    version, library = _library(python)
    kind = family(version)
    if kind is None:
        raise LaunchError(
            f"mpi4py loads an MPI of an unknown family ({shown(version)}); known: "
            f"{', '.join(mpi.name for mpi in FAMILIES.values())}"
        )
    others = []
    for candidate in _candidates(python, kind, library):
        words = [str(candidate), "--version"]
        printed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        if family(printed) == kind:
            return Mpi(kind, _version(printed), candidate)
        other = family(printed)
        others.append(f"{candidate} is of {FAMILIES[other].name if other else 'another MPI'}")
    reason = "; ".join(dict.fromkeys(others)) or "there is none on PATH"
    raise LaunchError(
        f"mpi4py of {python_line} loads {FAMILIES[kind].name} ({library}), but no mpiexec of it "
        f"was found: {reason}; install its launcher, or a library with one: {python_line} -m pip "
        "install mpich"
    )


def _library(python: Sequence[str]) -> tuple[str, str]:
    """Return the version that the library of mpi4py prints, and its file."""
    python_line = one_line(shlex.join(python))
    try:
        asked = subprocess.run(
            [*python, "-c", _ASK],
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise LaunchError(f"{shown(python[0])}: {error.strerror}") from None
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it failed"])[-1]
        if reason.startswith("ModuleNotFoundError"):
            raise cannot_run(python, reason)
        raise LaunchError(
            f"mpi4py of {python_line} finds no MPI library ({one_line(reason)}); install one "
            f"beside it: {python_line} -m pip install mpi4py mpich"
        )
    try:
        version, file = json.loads(asked.stdout)
        return str(version), str(file)
    except (ValueError, TypeError, RecursionError):
        raise LaunchError(
            f"{python_line} does not run Python: it printed {shown(asked.stdout.strip())}"
        ) from None


def _candidates(python: Sequence[str], kind: str, library: str) -> Iterator[Path]:
    """Yield the paths that may be the mpiexec: beside Python, above the library, then on PATH."""
    names = ("mpiexec" + FAMILIES[kind].suffix, "mpiexec")
    folders = [Path(p).parent for p in (python[-1], sys.executable) if Path(p).is_absolute()]
    above = Path(library).resolve().parents[:-1] if library else ()
    folders += [folder / "bin" for folder in above]
    candidates = [folder / name for folder in folders for name in names]
    candidates += [Path(path) for name in names if (path := shutil.which(name))]
    yield from (candidate for candidate in candidates if os.access(candidate, os.X_OK))


def command(
    mpi: Mpi, ranks: Mapping[str, int], ssh: Sequence[str], extra: Sequence[str], system: str
) -> tuple[list[str], dict[str, str]]:
    """Return the words that start a program on all ranks, and the environment that they need.

    Parameters
    ----------
    ranks : mapping
        The ranks of each host; the host "localhost" alone is this machine.
    ssh : sequence of str
        The remote shell and its options.
    extra : sequence of str
        The user's own words for mpiexec or srun.
    system : str
        The batch system; "slurm" uses srun if that has a plugin for this MPI.
    """
    if system == "slurm" and (plugin := _slurm_plugin(mpi)):
        return [*_srun(ranks, plugin), *extra], {}
    n = str(sum(ranks.values()))
    listed = ",".join(f"{host}:{count}" for host, count in ranks.items())
    remote = list(ranks) != ["localhost"]
    shell, options = ssh[0], shlex.join(ssh[1:])
    words, environment = [str(mpi.mpiexec)], {}
    if mpi.family == "openmpi":
        # Open MPI refuses root, and more ranks than cores, unless allowed.
        environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        words += ["--oversubscribe"] if mpi.version < (5,) else ["--map-by", "slot:OVERSUBSCRIBE"]
        words += ["--bind-to", "none"]
        if remote:
            words += ["--prefix", str(mpi.mpiexec.parent.parent), "--host", listed]
            words += [
                w for name in sorted(os.environ) if SENT.fullmatch(name) for w in ("-x", name)
            ]
            old = mpi.version < (5,)
            prefix = "OMPI_MCA_plm_rsh" if old else "PRTE_MCA_plm_ssh"
            environment |= {f"{prefix}_agent": shell} | (
                {f"{prefix}_args": options} if options else {}
            )
    else:
        environment = {"I_MPI_PIN": "off"} if mpi.family == "intel" else {}
        if remote:
            words += ["-launcher", "ssh", "-launcher-exec", shell, "-hosts", listed]
            environment |= {"HYDRA_LAUNCHER_EXTRA_ARGS": options} if options else {}
        else:
            words += ["-launcher", "fork"]
    return [*words, *extra, "-n", n], environment


def _slurm_plugin(mpi: Mpi) -> str | None:
    """Return the plugin of srun for this library, if Slurm has it and can load it."""
    plugin = "pmix" if mpi.family == "openmpi" else "pmi2"
    tried = ["srun", f"--mpi={plugin}", "--overlap", "--nodes=1", "--ntasks=1", "true"]
    try:
        done = subprocess.run(tried, capture_output=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else plugin


def _srun(ranks: Mapping[str, int], plugin: str) -> list[str]:
    n, counts = sum(ranks.values()), set(ranks.values())
    # --overlap: the remains of a step on a lost host must not block the next one.
    words = ["srun", f"--mpi={plugin}", "--kill-on-bad-exit=1", "--overlap", "--cpu-bind=none"]
    words += [f"--ntasks={n}"]
    if len(counts) == 1:
        words += [f"--nodes={len(ranks)}", f"--ntasks-per-node={counts.pop()}"]
        return [*words, "--distribution=block", "--nodelist=" + ",".join(ranks)]
    named = ",".join(",".join([host] * count) for host, count in ranks.items())
    return [*words, "--distribution=arbitrary", "--nodelist=" + named]
