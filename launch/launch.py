"""Start a training on several processes of this machine, or of the hosts in a file.

    python launch/launch.py -n 4 train configs/fashion-mnist.toml
    python launch/launch.py -n 8 --hostfile hosts train ...

It runs `python -m ddpbp ...` under the `mpiexec` that stands beside this Python, so that launcher
and library belong together; without one there, the one on PATH. It knows nothing of training.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path


def mpiexec() -> str:
    """Find the launcher of this Python's MPI; end with one message if there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        sys.exit(
            f"launch: no mpiexec beside {sys.executable} nor on PATH; "
            "install one with: pip install 'ddpbp[mpich]'"
        )
    return found


def command(ranks: int, hostfile: Path | None, arguments: list[str]) -> list[str]:
    """Return the command line that starts `ranks` processes of ddpbp."""
    hosts = ["-hostfile", str(hostfile)] if hostfile else []
    return [mpiexec(), "-n", str(ranks), *hosts, sys.executable, "-m", "ddpbp", *arguments]


def main() -> None:
    """Parse, say what is started, and become it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=os.cpu_count(), help="ranks (default: all cores)")
    parser.add_argument("--hostfile", type=Path, help="hosts, as the MPI library writes them")
    parser.add_argument("--dry-run", action="store_true", help="print the command only")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="train ..., eval ...")
    given = parser.parse_args()
    if given.hostfile and not given.hostfile.is_file():
        parser.error(f"--hostfile {given.hostfile}: no such file")
    line = command(given.n, given.hostfile, given.arguments or ["train"])
    # Open MPI refuses root and more ranks than cores unless told; MPICH does not look at these.
    os.environ.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    if os.geteuid() == 0:
        os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    sys.stderr.write("launch: " + " ".join(line) + "\n")
    sys.stderr.flush()
    if not given.dry_run:
        os.execv(line[0], line)


if __name__ == "__main__":
    main()
