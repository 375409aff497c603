"""Checks of the hosts: cores, clocks, the run folder, the links between them."""

import os
import shutil
import time
from pathlib import Path

from ddpbp.comm.world import World
from ddpbp.errors import ConfigError
from ddpbp.tools.doctor.finding import Finding, ranks_text

CLOCK_SECONDS = 1.0  # clocks further apart than this make logs and file times misleading
SEEN_SECONDS = 5.0  # a network file system may show a file late
SLOW_LATENCY_SECONDS, SLOW_BYTES_PER_SECOND = 200e-6, 120e6  # about 1 Gbit/s


def cores(threads: int, world: World) -> Finding:
    """Compare the threads of each host with the cores that its ranks may use."""
    mine = (world.host, world.host_index, frozenset(os.sched_getaffinity(0)), os.cpu_count() or 1)
    every = world.all_gather_object(mine)
    for index in range(world.host_count):
        here = [place for place in every if place[1] == index]
        host, _, _, present = here[0]
        allowed = frozenset().union(*(cores for _, _, cores, _ in here))
        wanted = len(here) * threads
        busy = f"{host}: {len(here)} × {threads} threads on {len(allowed)} cores"
        if wanted > len(allowed):
            fix = f"start at most {max(1, len(allowed) // threads)} ranks there, or set threads=1"
            if len(allowed) < min(present, wanted):
                fix = "the launcher binds them: srun --cpu-bind=none, mpirun --bind-to none"
            return Finding("warn", "cores", f"{busy} ({present} in the machine)", fix)
        if any(len(cores) < threads for _, _, cores, _ in here):
            fix = "give a rank as many cores: srun --cpus-per-task, mpirun --map-by slot:pe=N"
            return Finding("warn", "cores", f"{busy}, but some rank is bound to fewer", fix)
    fewest = min(len(cores) for _, _, cores, _ in every)
    return Finding(
        "pass", "cores", f"{threads} thread(s) a rank, which may use {fewest} core(s) or more"
    )


def clock(world: World) -> Finding:
    """Compare the clocks of the hosts."""
    if world.host_count == 1:
        return Finding("pass", "clock", "1 host, 1 clock")
    offsets = []
    for _ in range(5):
        world.all_gather_object(None)
        times = world.all_gather_object((time.time(), world.host))
        offsets.append((max(times)[0] - min(times)[0], max(times)[1]))
    apart, host = min(offsets)
    if apart > CLOCK_SECONDS:
        fix = "let the hosts keep time (chrony, ntpd): times of files and logs mislead"
        return Finding("warn", "clock", f"clocks are {apart:.1f} s apart; {host} is ahead", fix)
    return Finding("pass", "clock", f"within {apart * 1e3:.1f} ms")


def run_folder(output: Path, world: World) -> Finding:
    """Check that all hosts see one run folder, and can rename files in it."""
    base = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    probe = base / f".ddpbp-doctor.{os.getpid()}.{os.urandom(4).hex()}"
    with world.together():
        if world.rank == 0:
            try:
                probe.mkdir()
            except OSError as error:
                raise ConfigError(
                    f"{base} cannot be written ({error.strerror}); choose another with output=..."
                ) from None
    probe = world.broadcast(probe)
    fault: str | None = None
    if world.local_rank == 0:
        own, moved = probe / f"{world.host_index}.tmp", probe / str(world.host_index)
        try:
            _wait_for(probe)
            own.write_text(world.host)
            own.replace(moved)
        except OSError as error:
            fault = f"{world.host}: {error.strerror}"
    every = world.all_gather_object((world.host_index, world.host, fault))
    faults = [fault for _, _, fault in every if fault]
    if world.rank == 0:
        for index, host, fault in dict.fromkeys(every):
            try:
                _wait_for(probe / str(index)) if not fault else None
            except OSError:
                faults.append(f"{world.host} does not see what {host} wrote")
        shutil.rmtree(probe, ignore_errors=True)
    faults = world.broadcast(faults)
    if faults:
        return Finding(
            "warn",
            "run folder",
            f"{base} is not one folder for all hosts ({'; '.join(faults)})",
            "only rank 0 writes it, but a later run on other hosts will not find it: put output "
            "on a file system that all hosts share",
        )
    free = shutil.disk_usage(base).free / 2**30
    return Finding(
        "pass",
        "run folder",
        f"{base}: written and renamed in from {ranks_text(world).rpartition(' on ')[2]}, "
        f"{free:,.0f} GiB free",
    )


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(2, f"does not see {path.parent}")
        time.sleep(0.05)


def links(world: World) -> Finding:
    """Measure the messages between the hosts."""
    from ddpbp.tools.bench import links as measure_links

    links = measure_links(world)
    if not links:
        return Finding("pass", "links", "1 process: nothing to send")
    latency = max(links, key=lambda link: link.latency_seconds)
    slowest = min(links, key=lambda link: link.bytes_per_second)
    fastest = max(links, key=lambda link: link.bytes_per_second)
    text = (
        f"at most {latency.latency_seconds * 1e6:.0f} µs ({latency.name}), "
        f"at least {slowest.bytes_per_second / 1e6:,.0f} MB/s ({slowest.name})"
    )
    if slowest.bytes_per_second * 2 < fastest.bytes_per_second and world.host_count > 2:
        return Finding("warn", "links", text, f"{slowest.name} is slower than the others")
    slow = latency.latency_seconds > SLOW_LATENCY_SECONDS
    if slow or slowest.bytes_per_second < SLOW_BYTES_PER_SECOND:
        return Finding("warn", "links", text, "a slow network: ddpbp plan shows its cost")
    return Finding("pass", "links", text)
