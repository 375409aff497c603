"""Memory that the processes of one host share.

It is a file under /dev/shm, deleted as soon as all have mapped it, so that a killed run leaves
nothing behind. A run that is killed before that leaves the file; the next run removes it.

Anybody may put files under /dev/shm. So the name cannot be guessed, one rank alone creates the
file, and the others check that it is the one which they open.
"""

import contextlib
import errno
import mmap
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpbp.comm.world import Array, World, cores

FOLDER = Path("/dev/shm")
NAME = re.compile(r"ddpbp\.([0-9]{1,10})\.[0-9a-f]{8,32}")  # the process that creates it
YOUNG_SECONDS = 5.0  # younger files may still be about to be mapped
CELL_BYTES = 64  # a cache line for each rank: writing does not slow the readers of another one
# A waiting rank first only reads the counts, then also yields its core after so many reads, and at
# last sleeps between reads, so that other threads of its process can run. Where the ranks are more
# than the cores, one for which it waits may need its core: on a machine with other work, steps take
# half the time if it sleeps soon.
YIELD_AFTER, SLEEP_AFTER, SLEEP_SECONDS = 100, 1_000, 50e-6
CROWDED_YIELD_AFTER, CROWDED_SLEEP_AFTER = 1, 50


def memory_left_bytes() -> int:
    """Return the memory that this machine, or the control group of this process, has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max"
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        left = min(left, max(0, most - used))
    return left


def whole_pages(bytes_: int) -> int:
    """Round up to a multiple of the page size."""
    return -(-bytes_ // mmap.PAGESIZE) * mmap.PAGESIZE


def map_whole(world: World, bytes_: int, folder: str) -> tuple[Array | None, str]:
    """Map one piece of memory that all processes of this host have in common.

    Parameters
    ----------
    world : World
    bytes_ : int
    folder : str
        Where the file is; "" is `FOLDER`.

    Returns
    -------
    memory, reason
        As `World.share_whole` has them.
    """
    each = whole_pages(max(1, -(-bytes_ // world.local_size)))
    memory, reason = map_pages(world, each, Path(folder) if folder else None)
    return memory if memory is None else memory.reshape(-1)[:bytes_], reason


def map_pages(
    world: World, bytes_per_rank: int, folder: Path | None = None
) -> tuple[Array | None, str]:
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
    folder = folder or FOLDER
    each = whole_pages(bytes_per_rank)
    alone = world.local_size == 1
    creates = world.local_rank == 0 and not alone
    path, file, reason = folder, -1, ""
    if creates:
        remove_orphans(folder)
        path = folder / f"ddpbp.{os.getpid()}.{os.urandom(16).hex()}"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            os.ftruncate(file, each * world.local_size)
        except OSError as error:
            reason = _reason(world, error, folder, each)
    paths = world.decide((world.host_index, path) if creates else None, _by_host)
    memory: Array | None = None
    try:
        if not (alone or creates):
            path = paths[world.host_index]
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            _require_own(file, path, each * world.local_size)
        if file >= 0:
            os.posix_fallocate(file, world.local_rank * each, each)
    except OSError as error:
        reason = reason or _reason(world, error, folder, each)
    world.wait_idly()
    reason = world.decide(reason, lambda reasons: next(filter(None, reasons), ""))
    if not reason:
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if alone else mmap.MAP_SHARED
        mapped = mmap.mmap(file, each * world.local_size, kind)
        if alone:
            with contextlib.suppress(OSError):  # a kernel without large pages
                mapped.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(mapped, np.uint8).reshape(world.local_size, each)
        memory = memory[:, :bytes_per_rank]
    if file >= 0:
        os.close(file)
    world.barrier()  # all have mapped it
    if creates:
        path.unlink(missing_ok=True)
    return memory, reason


def _by_host(created: list[tuple[int, Path] | None]) -> dict[int, Path]:
    """Return the path of the file of each host that has one."""
    return dict(filter(None, created))


def _require_own(file: int, path: Path, size_bytes: int) -> None:
    """Refuse a file that is not the one which a process of this user has just created.

    Raises
    ------
    PermissionError
    """
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or (status.st_uid, status.st_size) != (
        os.geteuid(),
        size_bytes,
    ):
        raise PermissionError(errno.EPERM, f"{path.name} is not the file of this run")


def _reason(world: World, error: OSError, folder: Path, each: int) -> str:
    needed = each * world.local_size / 2**20
    reason = f"{folder} on {world.host}: {error.strerror} ({needed:.0f} MiB needed)"
    if error.errno == errno.ENOSPC and folder == FOLDER:
        reason += "; enlarge it, as with docker run --shm-size=1g"
    return reason


def remove_orphans(folder: Path) -> None:
    """Remove the files of processes that were killed before they could delete them."""
    for path in folder.glob("ddpbp.*"):
        name = NAME.fullmatch(path.name)
        with contextlib.suppress(OSError):  # another user's, or already removed
            status = path.lstat()
            old = status.st_ctime < time.time() - YOUNG_SECONDS
            own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if name and old and own and not _runs(int(name[1])):
                path.unlink()


def _runs(pid: int) -> bool:
    """Return whether this is a process of this user."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def make_barrier(world: World) -> Callable[[], None] | None:
    """Return a barrier of the processes of this host, or None where there can be none.

    Each process counts its arrivals and reads the counts of the others. 2 ranks on 2 cores meet in
    1 µs (MPICH's barrier: 3 µs), 4 ranks on 2 cores in 8 µs (109 µs). Other processes must see
    stores in the order they were made, which only x86 guarantees.
    """
    if os.uname().machine not in ("x86_64", "AMD64"):
        return None
    memory, _ = map_pages(world, CELL_BYTES)
    if memory is None:
        return None
    yield_after, sleep_after = YIELD_AFTER, SLEEP_AFTER
    if cores(world) < 1:
        yield_after, sleep_after = CROWDED_YIELD_AFTER, CROWDED_SLEEP_AFTER
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
            if reads > sleep_after:
                time.sleep(SLEEP_SECONDS)
            elif reads > yield_after:
                os.sched_yield()

    return barrier
