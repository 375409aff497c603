"""Can these ranks train? One table: pass, warn or fail, and the fix of what is wrong.

Every check runs on all ranks, in the same order, and finds the same on each; rank 0 prints. NumPy
is imported late: a launcher that does not fit must be told before anything else.
"""

import faulthandler
import os
import select
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ddpbp import __version__
from ddpbp.base import blas, tree
from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.errors import ConfigError, DdpbpError
from ddpbp.tools.launcher import which

if TYPE_CHECKING:
    from ddpbp.data.dataset import Dataset

CLOCK_SECONDS = 1.0  # clocks further apart than this make logs and file times misleading
BALANCE = 0.8  # of the leaves over the ranks, below which it is worth a word
SEEN_SECONDS = 5.0  # a network file system may show a file late
SLOW_LATENCY_SECONDS, SLOW_BYTES_PER_SECOND = 200e-6, 120e6  # about 1 Gbit/s


class Row(NamedTuple):
    """One line of the table: what was looked at, how it is, what was found and how to mend it."""

    status: Literal["pass", "warn", "fail"]
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.status}  {self.what:<13} {self.found}"
        return line + (f"\n{'':<20}→ {self.fix}" if self.fix else "")


def limit(seconds: float, what: str, *, first: bool) -> threading.Timer:
    """Let the process end with exit code 1 after so long, unless cancelled: no check may hang.

    `first` says whether this rank is the one that prints.
    """

    def end() -> None:
        if first:
            _no_end(what, seconds)
        os._exit(1)

    timer = threading.Timer(seconds + (0.0 if first else 2.0), end)
    timer.daemon = True
    timer.start()
    return timer


def _no_end(what: str, seconds: float) -> None:
    fix = (
        "a rank, its host or the network does not answer: try with fewer hosts to find which, or "
        "give it longer with --timeout"
    )
    sys.stdout.write(f"{Row('fail', what, f'no end after {seconds:g} s', fix)}\n")
    sys.stdout.flush()


def limit_joining(seconds: float, *, first: bool) -> Callable[[], None]:
    """Do as `limit` while MPI starts; call what is returned as soon as it has.

    MPI_Init holds the interpreter while it waits. So a process tells, and another clock ends.
    """
    joined, tell = os.pipe()
    teller = os.fork()
    if teller == 0:
        os.close(tell)
        if not select.select([joined], [], [], seconds)[0] and first:
            _no_end("launcher", seconds)
        os._exit(0)
    os.close(joined)
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - until it has rung or is cancelled
    faulthandler.dump_traceback_later(seconds + 1.0, exit=True, file=nowhere)

    def cancel() -> None:
        if not nowhere.closed:
            faulthandler.cancel_dump_traceback_later()
            nowhere.close()
            os.close(tell)
            os.waitpid(teller, 0)

    return cancel


def launcher_fault(error: ConfigError) -> Row:
    """Return the row of a launcher that does not fit the MPI library."""
    fix = ""
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        fix = "srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI (srun --mpi=list shows them)"
    return Row("fail", "launcher", str(error), fix)


def examine(
    config: Config, world: World, say: Callable[[str], None], timeout_seconds: float
) -> int:
    """Check everything, telling each row as it is found; return 1 if one of them failed, else 0."""
    from ddpbp.engine.build import make_trainer
    from ddpbp.engine.data import open_dataset
    from ddpbp.run.ranks import choose_threads

    failed = False

    def check(what: str, of: Callable[[], Row | tuple[Row, Any]]) -> Any:
        nonlocal failed
        timer = limit(timeout_seconds, what, first=world.rank == 0)
        result: Any = None
        try:
            found = of()
            row, result = (found, None) if isinstance(found, Row) else found
        except DdpbpError as error:
            row = Row("fail", what, str(error))
        timer.cancel()
        failed |= row.status == "fail"
        say(str(row))
        return result

    def data() -> tuple[Row, Any]:
        dataset = open_dataset(config, world)
        return Row("pass", "data", dataset.description), dataset

    def canary() -> tuple[Row, Any]:
        trainer = make_trainer(config, dataset, world)
        row = Row("pass", "canary", f"{trainer.canary[:12]}, the same bits on {_ranks(world)}")
        return row, trainer

    check("launcher", lambda: _launcher(world))
    check("versions", lambda: _versions(world))
    check("environment", lambda: _environment(world))
    check("ranks", lambda: _leaves(config, world))
    dataset = check("data", data)
    if dataset is not None:
        trainer = check("canary", canary)
        if trainer is not None:
            check("memory", lambda: _memory(config, dataset, trainer))
            check("shared memory", lambda: _shared_memory(trainer))
            check("reduction", lambda: _reduction(trainer))
            parameters = trainer.network.parameter_count
            check("cores", lambda: _cores(choose_threads(config, parameters, world), world))
    check("clock", lambda: _clock(world))
    check("run folder", lambda: _run_folder(Path(config.output), world))
    check("links", lambda: _links(world))
    return int(failed)


def _ranks(world: World) -> str:
    if world.world_size == 1:
        return "1 rank"
    hosts = "1 host" if world.node_count == 1 else f"{world.node_count} hosts"
    return f"{world.world_size} ranks on {hosts}"


def _launcher(world: World) -> Row:
    if isinstance(world, MpiWorld):  # it has compared launcher and library already
        return Row("pass", "launcher", f"{_ranks(world)} through {world.library}")
    try:
        library, mpiexec = which()
    except ConfigError as error:
        problem, _, fix = str(error).partition("; install ")
        return Row("warn", "launcher", problem, f"to use several ranks: install {fix}" * bool(fix))
    return Row("pass", "launcher", f"1 process; {mpiexec} starts more, through {library}")


def _versions(world: World) -> Row:
    import platform

    import msgspec
    import numpy as np
    from threadpoolctl import threadpool_info

    blas: dict[str, Any] = next((b for b in threadpool_info() if b["user_api"] == "blas"), {})
    mine = {
        "ddpbp": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        str(blas.get("internal_api", "BLAS")): str(blas.get("version", "unknown")),
        "kernel": str(blas.get("architecture", "unknown")),
        "msgspec": msgspec.__version__,
    }
    every = world.all_gather_object((world.host, mine))
    usual = _usual([versions for _, versions in every])
    odd = {
        f"{name} {versions.get(name)} on {host}"
        for host, versions in every
        for name in usual
        if versions.get(name) != usual[name]
    }
    if odd:
        return Row(
            "warn",
            "versions",
            f"{_listed(sorted(odd))}; elsewhere {_listed(map(' '.join, usual.items()))}",
            'install the same versions on all hosts; kernel = "haswell" where processors differ',
        )
    return Row("pass", "versions", _listed(map(" ".join, mine.items())))


def _usual(every: list[dict[str, str]]) -> dict[str, str]:
    names = dict.fromkeys(name for versions in every for name in versions)
    return {n: Counter(v.get(n, "none") for v in every).most_common(1)[0][0] for n in names}


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(map(str, things))


def _environment(world: World) -> Row:
    every = world.all_gather_object((world.host, blas.overridden()))
    notes = dict.fromkeys(f"{host}: {note}" for host, found in every for note in found)
    if notes:
        return Row("warn", "environment", "; ".join(notes), "unset it, or leave it to ddpbp")
    return Row("pass", "environment", "one BLAS thread, the kernel as configured")


def _leaves(config: Config, world: World) -> Row:
    from ddpbp.run.ranks import require_enough_leaves

    require_enough_leaves(config, world.world_size)
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    most = -(-leaves // world.world_size)
    balance = leaves / (world.world_size * most)
    hosts = Counter(world.all_gather_object(world.host))
    places = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    found = f"{places}; {leaves} leaves a step, {most} at most on a rank, balance {balance:.0%}"
    if balance < BALANCE:
        fix = f"{-(-leaves // most)} ranks take as long; or set a smaller micro_batch_size"
        return Row("warn", "ranks", found, fix)
    return Row("pass", "ranks", found)


def _memory(config: Config, dataset: "Dataset", trainer: Any) -> Row:
    from ddpbp.tools.dry_run import rank_bytes

    world = trainer.world
    needed = sum(rank_bytes(config, dataset, trainer.network, world.world_size).values())
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    # The ranks of a host have allocated theirs already; what is left says how near the end is.
    left, host = min(world.all_gather_object((free, world.host)))
    found = f"{needed / 2**20:,.0f} MiB a rank; {left / 2**20:,.0f} MiB left on {host}"
    if left < needed:
        fix = "fewer ranks a host, a smaller batch_size or model.hidden"
        return Row("warn", "memory", found, fix)
    return Row("pass", "memory", found)


def _shared_memory(trainer: Any) -> Row:
    world = trainer.world
    told = [note for found in world.all_gather_object(trainer.notes) for note in found]
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    lowest, host = min(world.all_gather_object((free, world.host)))
    if told:
        return Row("warn", "shared memory", told[0], "enlarge /dev/shm")
    if world.local_size == 1:
        return Row("pass", "shared memory", "1 rank a host: not needed")
    free_mib = f"{lowest / 2**20:,.0f} MiB of /dev/shm left on {host}"
    return Row("pass", "shared memory", f"{type(trainer.reducer).__name__}; {free_mib}")


def _reduction(trainer: Any) -> Row:
    """Sum random vectors of the gradient's length and compare with the tree, bit by bit."""
    import numpy as np

    from ddpbp.base import draws

    world, reducer, layout = trainer.world, trainer.reducer, trainer.reducer.layout

    rounded = reducer.wire.round if reducer.wire else None

    def leaf(i: int) -> Any:  # one leaf's gradient, as a pattern that repeats
        key = draws.key(draws.CANARY, i)
        values = draws.normal(key, np.arange(4_099, dtype=np.uint64)).astype(layout.dtype)
        if rounded:
            rounded(values)
        return values

    seconds = 0.0
    wrong = 0
    for size in layout.leaf_counts:
        start, stop = tree.deal(size, world.rank, world.world_size)
        merges, _ = tree.run_program(size, world.rank, world.world_size)
        rows = reducer.nodes(size)
        nodes = tree.accumulate((leaf(i) for i in range(start, stop)), merges, rounded)
        for row, node in zip(reducer.node_grads[rows], nodes, strict=True):
            row[:] = np.resize(node, layout.length)
        reducer.node_statistics[rows] = 1.0
        world.all_gather_object(None)
        began = time.perf_counter()
        for begin, _, _ in reversed(trainer.network.spans):
            reducer.start(begin)
        found = reducer.finish(size).grad
        seconds = time.perf_counter() - began
        whole, _ = tree.fold(((i, i + 1) for i in range(size)), size)
        (expected,) = tree.accumulate((leaf(i) for i in range(size)), whole, rounded)
        wrong += int(np.count_nonzero(found != np.resize(expected, layout.length)))
    ranks = [rank for rank, bad in enumerate(world.all_gather_object(wrong)) if bad]
    if ranks:
        return Row(
            "fail",
            "reduction",
            f"random vectors do not sum up to what they should on rank {_listed(ranks)}",
            "memory or network fault, or an MPI library that is broken: try another one",
        )
    return Row(
        "pass",
        "reduction",
        f"{layout.length:,} numbers × {max(layout.leaf_counts)} leaves summed to the last bit "
        f"on {_ranks(world)}, {seconds * 1e3:.2f} ms",
    )


def _cores(threads: int, world: World) -> Row:
    mine = (world.host, world.node, frozenset(os.sched_getaffinity(0)), os.cpu_count() or 1)
    every = world.all_gather_object(mine)
    for node in range(world.node_count):
        here = [place for place in every if place[1] == node]
        host, _, _, present = here[0]
        allowed = frozenset().union(*(cores for _, _, cores, _ in here))
        wanted = len(here) * threads
        busy = f"{host}: {len(here)} × {threads} threads on {len(allowed)} cores"
        if wanted > len(allowed):
            fix = f"start at most {max(1, len(allowed) // threads)} ranks there, or set threads=1"
            if len(allowed) < min(present, wanted):
                fix = "the launcher binds them: srun --cpu-bind=none, mpirun --bind-to none"
            return Row("warn", "cores", f"{busy} ({present} in the machine)", fix)
        if any(len(cores) < threads for _, _, cores, _ in here):
            fix = "give a rank as many cores: srun --cpus-per-task, mpirun --map-by slot:pe=N"
            return Row("warn", "cores", f"{busy}, but some rank is bound to fewer", fix)
    fewest = min(len(cores) for _, _, cores, _ in every)
    return Row(
        "pass", "cores", f"{threads} thread(s) a rank, which may use {fewest} core(s) or more"
    )


def _clock(world: World) -> Row:
    if world.node_count == 1:
        return Row("pass", "clock", "1 host, 1 clock")
    offsets = []
    for _ in range(5):
        world.all_gather_object(None)
        times = world.all_gather_object((time.time(), world.host))
        offsets.append((max(times)[0] - min(times)[0], max(times)[1]))
    apart, host = min(offsets)
    if apart > CLOCK_SECONDS:
        fix = "let the hosts keep time (chrony, ntpd): times of files and logs mislead"
        return Row("warn", "clock", f"clocks are {apart:.1f} s apart; {host} is ahead", fix)
    return Row("pass", "clock", f"within {apart * 1e3:.1f} ms")


def _run_folder(output: Path, world: World) -> Row:
    """Look whether all hosts see one run folder, and whether they can rename files in it."""
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
        own, moved = probe / f"{world.node}.tmp", probe / str(world.node)
        try:
            _wait_for(probe)
            own.write_text(world.host)
            own.replace(moved)
        except OSError as error:
            fault = f"{world.host}: {error.strerror}"
    every = world.all_gather_object((world.node, world.host, fault))
    faults = [fault for _, _, fault in every if fault]
    if world.rank == 0:
        for node, host, fault in dict.fromkeys(every):
            try:
                _wait_for(probe / str(node)) if not fault else None
            except OSError:
                faults.append(f"{world.host} does not see what {host} wrote")
        shutil.rmtree(probe, ignore_errors=True)
    faults = world.broadcast(faults)
    if faults:
        return Row(
            "warn",
            "run folder",
            f"{base} is not one folder for all hosts ({'; '.join(faults)})",
            "only rank 0 writes it, but a later run on other hosts will not find it: put output "
            "on a file system that all hosts share",
        )
    free = shutil.disk_usage(base).free / 2**30
    return Row(
        "pass",
        "run folder",
        f"{base}: written and renamed in from {_ranks(world).rpartition(' on ')[2]}, "
        f"{free:,.0f} GiB free",
    )


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(2, f"does not see {path.parent}")
        time.sleep(0.05)


def _links(world: World) -> Row:
    from ddpbp.tools.bench import links

    found = links(world)
    if not found:
        return Row("pass", "links", "1 process: nothing to send")
    latency = max(found, key=lambda link: link.latency_seconds)
    slowest = min(found, key=lambda link: link.bytes_per_second)
    fastest = max(found, key=lambda link: link.bytes_per_second)
    text = (
        f"at most {latency.latency_seconds * 1e6:.0f} µs ({latency.name}), "
        f"at least {slowest.bytes_per_second / 1e6:,.0f} MB/s ({slowest.name})"
    )
    if slowest.bytes_per_second * 2 < fastest.bytes_per_second and world.node_count > 2:
        return Row("warn", "links", text, f"{slowest.name} is slower than the others")
    slow = latency.latency_seconds > SLOW_LATENCY_SECONDS
    if slow or slowest.bytes_per_second < SLOW_BYTES_PER_SECOND:
        return Row("warn", "links", text, "a slow network: ddpbp plan tells what it costs")
    return Row("pass", "links", text)
