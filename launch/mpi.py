"""Which MPI this is, and how its launcher is told what to start."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hosts import LaunchError

# What the library and its mpiexec say of themselves.
FAMILIES = {
    "mpich": r"MPICH|HYDRA",
    "openmpi": r"Open MPI|OpenRTE|Open-MPI",
    "intel": r"Intel\(R\) MPI",
}
NAMES = {"mpich": "MPICH", "openmpi": "Open MPI", "intel": "Intel MPI"}

# See whose library it is without MPI_Init, which would already look for a launcher.
_ASK = """
import json, mpi4py
mpi4py.rc(initialize=False, finalize=False)
from mpi4py import MPI
maps = [line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line]
print(json.dumps([MPI.Get_library_version(), maps[0] if maps else ""]))
"""

# Settings of the bits and of Python, which Open MPI has to be told to send.
SENT = re.compile(r"(DDPBP|OPENBLAS|NPY|OMP|MKL|BLIS|PYTHON|MPI4PY|UCX|FI)_?\w*|(LD_LIBRARY_)?PATH")


@dataclass(frozen=True)
class Mpi:
    """An MPI library, and the launcher that belongs to it."""

    family: str
    version: tuple[int, ...]
    mpiexec: Path

    def __str__(self) -> str:
        return f"{NAMES[self.family]} {'.'.join(map(str, self.version))}"


def _family(text: str) -> str | None:
    """Name the MPI that a text speaks of; Intel's is Hydra too."""
    found = [name for name, pattern in FAMILIES.items() if re.search(pattern, text)]
    return found[-1] if found else None


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def find(python: Sequence[str]) -> Mpi:
    """Find the library that this Python's mpi4py loads, and the mpiexec that belongs to it.

    Parameters
    ----------
    python : sequence of str
        How the ranks' Python is called: its path, or a container and its Python.

    Raises
    ------
    LaunchError
        If there is no library or no such mpiexec.
    """
    called = shlex.join(python)
    try:
        asked = subprocess.run([*python, "-c", _ASK], capture_output=True, text=True, check=False)
    except OSError as error:
        raise LaunchError(f"{python[0]}: {error.strerror}") from None
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it failed"])[-1]
        raise LaunchError(
            f"mpi4py of {called} finds no MPI library ({reason}); install one beside it: "
            f"{called} -m pip install mpich"
        )
    said, library = json.loads(asked.stdout)
    family = _family(said)
    if family is None:
        raise LaunchError(f"mpi4py loads an MPI that is not known here: {said.splitlines()[0]}")
    suffix = {"mpich": ".mpich", "openmpi": ".openmpi"}.get(family, "")  # as Debian names them
    folders = [Path(p).parent for p in (python[-1], sys.executable) if Path(p).is_absolute()]
    above = Path(library).resolve().parents[:-1] if library else ()
    folders += [folder / "bin" for folder in above]
    candidates = [folder / name for folder in folders for name in ("mpiexec" + suffix, "mpiexec")]
    candidates += [
        Path(found) for name in ("mpiexec" + suffix, "mpiexec") if (found := shutil.which(name))
    ]
    others = []
    for candidate in candidates:
        if not os.access(candidate, os.X_OK):
            continue
        words = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, check=False
        ).stdout
        if _family(words) == family:
            return Mpi(family, _version(words), candidate)
        others.append(f"{candidate} is of {NAMES.get(_family(words) or '', 'another MPI')}")
    found = "; ".join(dict.fromkeys(others)) or "there is none on PATH"
    raise LaunchError(
        f"mpi4py of {called} loads {NAMES[family]} ({library}), but no mpiexec of it was found: "
        f"{found}; install its launcher, or a library with one: {called} -m pip install mpich"
    )


def command(
    mpi: Mpi, ranks: Mapping[str, int], ssh: Sequence[str], extra: Sequence[str], system: str
) -> tuple[list[str], dict[str, str]]:
    """Return the words that start a program on all ranks, and what they need in the environment.

    Parameters
    ----------
    ranks : mapping
        The ranks of each host; the host "localhost" alone is this machine.
    ssh : sequence of str
        The remote shell and its options.
    extra : sequence of str
        Words of the user's for mpiexec or srun.
    system : str
        "slurm" starts them by srun, if its own plugin for this MPI is there.
    """
    if system == "slurm" and (plugin := _slurm_plugin(mpi)):
        return [*_srun(ranks, plugin), *extra], {}
    n = str(sum(ranks.values()))
    listed = ",".join(f"{host}:{count}" for host, count in ranks.items())
    remote = list(ranks) != ["localhost"]
    shell, options = ssh[0], shlex.join(ssh[1:])
    words, environment = [str(mpi.mpiexec)], {}
    if mpi.family == "openmpi":
        # Root, and more ranks than cores, are meant if they are asked for.
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
    """Return srun's plugin that this library understands, if Slurm has it and can load it."""
    plugin = "pmix" if mpi.family == "openmpi" else "pmi2"
    tried = ["srun", f"--mpi={plugin}", "--overlap", "--nodes=1", "--ntasks=1", "true"]
    try:
        done = subprocess.run(tried, capture_output=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else plugin


def _srun(ranks: Mapping[str, int], plugin: str) -> list[str]:
    n, counts = sum(ranks.values()), set(ranks.values())
    words = ["srun", f"--mpi={plugin}", "--kill-on-bad-exit=1", "--cpu-bind=none", f"--ntasks={n}"]
    if len(counts) == 1:
        words += [f"--nodes={len(ranks)}", f"--ntasks-per-node={counts.pop()}"]
        return [*words, "--distribution=block", "--nodelist=" + ",".join(ranks)]
    named = ",".join(",".join([host] * count) for host, count in ranks.items())
    return [*words, "--distribution=arbitrary", "--nodelist=" + named]
