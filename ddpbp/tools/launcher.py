"""Run the launcher as a process: which mpiexec fits, and a command on several ranks of this host.

ddpbp imports no `launch`, so that finding the mpiexec and calling it have one home there.
"""

import subprocess
import sys

from ddpbp.errors import ConfigError


def launch(*words: str) -> str:
    """Run `ddpbp launch` with these words; return what it prints.

    Raises
    ------
    ConfigError
        With its own message, if it does not end with exit code 0.
    """
    line = [sys.executable, "-m", "ddpbp", "launch", *words]
    ended = subprocess.run(line, capture_output=True, text=True)
    if ended.returncode:
        raise ConfigError(ended.stderr.strip().removeprefix("launch: ").removeprefix("ddpbp: "))
    return ended.stdout


def which() -> tuple[str, str]:
    """Return the MPI library of mpi4py and the mpiexec that fits it, as in ("MPICH 5.0.2", PATH).

    Raises
    ------
    ConfigError
        If there is no library, or no mpiexec of it.
    """
    library, mpiexec = launch("--which").splitlines()
    return library, mpiexec


def run_on_ranks(ranks: int, *arguments: str) -> None:
    """Run a command of ddpbp on several ranks of this host.

    Raises
    ------
    ConfigError
        If it fails, or there is no MPI.
    """
    here = ("--quiet", "-n", str(ranks), "--hosts", f"localhost:{ranks}", "--ppn", str(ranks))
    try:
        launch(*here, *arguments)
    except ConfigError as error:
        raise ConfigError(f"{' '.join(arguments[:1])} on {ranks} ranks failed: {error}") from None
