"""Probe the host that this runs on: `python - PATH...`, with this file on standard input.

It prints one line of JSON: the number of cores, which of the paths are missing, and the names of
the segments that an earlier job had left in /dev/shm and that were removed. A host needs nothing
but a Python, so this file imports the standard library alone.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# MPICH and its UCX, Open MPI 5 and 4, Intel MPI: left behind when a rank was killed.
LEFTOVERS = ("mpich_shm_*", "ucx_shm_posix_*", "sm_segment.*", "vader_segment.*", "Intel_MPI_*")
YOUNG_SECONDS = 1.0


def sweep(folder: Path = Path("/dev/shm")) -> list[str]:
    """Remove segments of MPI that this user owns and no process maps; return their names.

    A job that starts meanwhile is safe: its segments are mapped, or younger than a second.
    """
    ours = []
    for pattern in LEFTOVERS:
        for file in folder.glob(pattern):
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            if status.st_uid == os.geteuid() and status.st_ctime < time.time() - YOUNG_SECONDS:
                ours.append(file)
    if not ours:
        return []
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped |= {line.split()[-1] for line in maps.read_text().splitlines()}
        except OSError:
            continue  # another user's process, which cannot map this user's segments
    removed = [file for file in ours if str(file) not in mapped]
    for file in removed:
        file.unlink(missing_ok=True)
    return [file.name for file in removed]


def probe(paths: list[str]) -> dict[str, Any]:
    """Sweep this host; return its cores, the missing paths and the removed segments."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "missing": [path for path in paths if not Path(path).exists()],
        "swept": sweep(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(sys.argv[1:])))
