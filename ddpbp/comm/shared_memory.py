"""Memory that the processes of one host share.

It is a file under /dev/shm, deleted as soon as all have mapped it, so that a killed run leaves
nothing behind. A run that is killed before that leaves the file; the next run removes it.
"""

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpbp.comm.world import Array, World

FOLDER = Path("/dev/shm")
YOUNG_SECONDS = 5.0  # younger files may still be about to be mapped
CELL_BYTES = 64  # a cache line for each rank: writing does not slow the readers of another one
# A waiting rank first only reads the counts, then also yields its core after each read, and at last
# sleeps between reads, so that other threads of its process can run.
YIELD_AFTER, SLEEP_AFTER, SLEEP_SECONDS = 100, 1_000, 50e-6


def whole_pages(bytes_: int) -> int:
    """Round up to a multiple of the page size."""
    return -(-bytes_ // mmap.PAGESIZE) * mmap.PAGESIZE


def map_pages(world: World, bytes_per_rank: int) -> tuple[Array | None, str]:
    """Map memory that all processes of this host can read and write.

    The pages are reserved first: a /dev/shm that is too small (64 MB in a container) is a reason
    here, not a bus error later. A rank that is alone on its host needs no file.

    Returns
    -------
    memory : (local_size, bytes_per_rank) uint8 or None
        None on all ranks of all hosts if one of them could not map it.
    reason : str
        Why it is None.
    """
    each = whole_pages(bytes_per_rank)
    alone = world.local_size == 1
    name = None
    if world.local_rank == 0 and not alone:
        remove_orphans()
        name = FOLDER / f"ddpbp.{os.getpid()}.{os.urandom(4).hex()}"
    names = world.all_gather_object((world.host_index, name))
    path = next((own for host, own in names if host == world.host_index and own), FOLDER)
    memory: Array | None = None
    reason = ""
    file = -1
    try:
        if not alone:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(file, world.local_rank * each, each)
    except OSError as error:
        needed = each * world.local_size / 2**20
        reason = f"{FOLDER} on {world.host}: {error.strerror} ({needed:.0f} MiB needed)"
        if error.errno == errno.ENOSPC:
            reason += "; enlarge it, as with docker run --shm-size=1g"
    reasons = [r for r in world.all_gather_object(reason) if r]
    if not reasons:
        mapped = mmap.mmap(file, each * world.local_size)  # file -1 is private memory
        memory = np.frombuffer(mapped, np.uint8).reshape(world.local_size, each)
        memory = memory[:, :bytes_per_rank]
    if file >= 0:
        os.close(file)
    world.all_gather_object(None)  # all have mapped it
    if name is not None:
        name.unlink(missing_ok=True)
    return memory, reasons[0] if reasons else ""


def remove_orphans() -> None:
    """Remove the files of processes that were killed before they could delete them."""
    for path in FOLDER.glob("ddpbp.*"):
        with contextlib.suppress(OSError, ValueError):  # another user's, or already removed
            old = path.stat().st_ctime < time.time() - YOUNG_SECONDS
            if old and not Path(f"/proc/{int(path.name.split('.')[1])}").exists():
                path.unlink()


def make_barrier(world: World) -> Callable[[], None] | None:
    """Return a barrier of the processes of this host, or None where there can be none.

    Each process counts its arrivals and reads the counts of the others. 2 ranks on 2 cores meet in
    0.5 µs (MPICH's barrier: 3 µs), 4 ranks on 2 cores in 36 µs (109 µs). Other processes must see
    stores in the order they were made, which only x86 guarantees.
    """
    if os.uname().machine not in ("x86_64", "AMD64"):
        return None
    memory, _ = map_pages(world, CELL_BYTES)
    if memory is None:
        return None
    counts = memory[:, :8].view(np.int64)[:, 0]
    mine = memoryview(memory[world.local_rank, :8]).cast("q")
    meeting = 0

    def barrier() -> None:
        nonlocal meeting
        meeting += 1
        mine[0] = meeting
        reads = 0
        while min(counts.tolist()) < meeting:
            reads += 1
            if reads > SLEEP_AFTER:
                time.sleep(SLEEP_SECONDS)
            elif reads > YIELD_AFTER:
                os.sched_yield()

    return barrier
