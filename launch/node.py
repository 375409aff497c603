"""What the launcher asks of a host: `python - WHAT ARGUMENTS...`, this file on standard input.

    probe PATH...   the cores there, and which of the paths are missing
    sweep           remove what MPI left in /dev/shm

The answer is one line of JSON. A host needs nothing but a Python for it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# MPICH, Open MPI 5 and 4, Intel MPI: left behind when a rank was killed.
LEFTOVERS = ("mpich_shm_*", "mpich_shar_tmp*", "sm_segment.*", "vader_segment.*", "Intel_MPI_*")
YOUNG_SECONDS = 1.0


def probe(paths: list[str]) -> dict[str, Any]:
    """Look at this host."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "missing": [path for path in paths if not Path(path).exists()],
    }


def sweep(folder: Path = Path("/dev/shm")) -> list[str]:
    """Remove segments of MPI that are this user's and mapped by no process; return their names.

    A job that starts meanwhile has its own mapped, or made it within the last second.
    """
    ours = []
    for pattern in LEFTOVERS:
        for file in folder.glob(pattern):
            try:
                found = file.stat()
            except FileNotFoundError:
                continue
            if found.st_uid == os.geteuid() and found.st_ctime < time.time() - YOUNG_SECONDS:
                ours.append(file)
    if not ours:
        return []
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped |= {line.split()[-1] for line in maps.read_text().splitlines()}
        except OSError:
            continue  # another user's: it cannot map what is ours alone
    removed = [file for file in ours if str(file) not in mapped]
    for file in removed:
        file.unlink(missing_ok=True)
    return [file.name for file in removed]


if __name__ == "__main__":
    what, arguments = sys.argv[1], sys.argv[2:]
    print(json.dumps(probe(arguments) if what == "probe" else {"swept": sweep()}))  # noqa: T201
