"""Probe the host that this runs on: `python - JOB PATH...`, with this file on standard input.

It kills what is left of the job, removes what an earlier one has left in /dev/shm, and prints one
line of JSON: the number of cores, and which of the paths are missing. A host needs nothing but a
Python, so this file imports the standard library alone.
"""

import contextlib
import json
import os
import signal
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


def kill_job(job: str) -> None:
    """Kill all processes of a job on this host, also those that are stopped; "" is no job.

    Its rank.py has the job among its words, and takes its rank along; what starts them has it in
    the environment.
    """
    marks = {"cmdline": f"\0--job\0{job}\0".encode(), "environ": f"\0LAUNCH_JOB={job}\0".encode()}
    for process in Path("/proc").glob("[0-9]*") if job else ():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(mark in b"\0" + (process / name).read_bytes() for name, mark in marks.items()):
                os.kill(int(process.name), signal.SIGKILL)


def probe(job: str, *paths: str) -> dict[str, Any]:
    """End a job on this host and sweep it; return its cores and the missing paths."""
    kill_job(job)
    sweep()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "missing": [path for path in paths if not Path(path).exists()],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(*sys.argv[1:])))
