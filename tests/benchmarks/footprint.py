"""Memory and start-up: two ranks against a minimal PyTorch DDP script, and many ranks.

    pip install -e '.[mpich]' torch==2.13.0
    python -m tests.benchmarks.footprint
    python -m tests.benchmarks.footprint --simulate 16,64,256,1024 --mpi 16,64
    python -m tests.benchmarks.footprint --files      (needs strace)

Memory is the greatest sum over both processes of PSS, where a page that several share counts once.
Start-up is the time from the command to the end of the first step, with a warm file cache.
"""

import argparse
import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.compare import THREADS, shape, torch_model

CHILDREN = resource.RUSAGE_CHILDREN
LARGE, DIGITS = "784-2500-2000-1500-1000-500-10@256", "64-64-10@64"


def ddp(net: str, steps: int, first_step: Path) -> None:
    """Be one rank of a minimal PyTorch DDP script."""
    import torch
    from torch import distributed, nn

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    model, sizes, batch = torch_model(net)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mine = batch // distributed.get_world_size()
    x, y = torch.rand(shape(net)[2], sizes[0]), torch.randint(sizes[-1], (shape(net)[2],))
    for i in range(steps):
        rows = torch.arange(i * mine, (i + 1) * mine) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(x[rows]), y[rows]).backward()
        optimizer.step()
        if i == 0 and distributed.get_rank() == 0:
            first_step.write_text("done")


def ours(net: str, folder: Path, epochs: int) -> list[list[str]]:
    """Return the command of two ranks of ddpbp."""
    sizes, batch, examples = shape(net)
    settings = [
        f"model.hidden={sizes[1:-1]}", f"batch_size={batch}", "data.source=synthetic",
        f"data.features={sizes[0]}", f"data.classes={sizes[-1]}", f"data.examples={examples}",
        "data.validation=0.0", "data.standardize=false", "optimizer.learning_rate=0.01",
        "log_every_steps=1", f"epochs={epochs}", f"output={folder}",
    ]  # fmt: skip
    mpirun = str(Path(sys.executable).with_name("mpirun"))
    return [[mpirun, "-n", "2", sys.executable, "-m", "ddpbp", "train", *settings]]


def many(ranks: int, folder: Path, *, simulated: bool) -> list[list[str]]:
    """Return the command of this many ranks, each with one leaf or more of the digits."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks)]
    line = [sys.executable, "-m", "ddpbp", "train", "batch_size=1024", "micro_batch_size=1"]
    line += ["epochs=2", "log_every_steps=1", f"output={folder}"]
    return [[*line, "--simulate-ranks", str(ranks)] if simulated else [*mpirun, *line]]


def scale(counts: Sequence[int], *, simulated: bool) -> None:
    """Print for each number of ranks: when the first step ends, processor time, peak memory."""
    for ranks in counts:
        with tempfile.TemporaryDirectory() as folder:
            file, before = Path(folder) / "metrics.jsonl", resource.getrusage(CHILDREN)
            seconds = first_step_seconds(many(ranks, Path(folder), simulated=simulated), file)
            after = resource.getrusage(CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_bytes(many(ranks, Path(folder), simulated=simulated)) / 2**20
        print(
            f"{ranks:>6,} {'simulated' if simulated else 'under mpirun'}: first step after "
            f"{seconds:6.2f} s, {used:6.2f} of a processor ({used / ranks * 1e3:5.1f} ms a rank), "
            f"peak {peak:6,.0f} MiB ({peak / ranks:5.2f} a rank)",
            flush=True,
        )


def files() -> None:
    """Print how often one of two ranks names or opens a file that may lie on a shared disk."""
    with tempfile.TemporaryDirectory() as folder:
        trace = ["strace", "-ff", "-o", f"{folder}/trace", "-e", "trace=%file"]
        (line,) = many(2, Path(folder) / "run", simulated=False)
        place = line.index(sys.executable)
        subprocess.run([*line[:place], *trace, *line[place:]], check=True, capture_output=True)
        text = max(Path(folder).glob("trace.*"), key=lambda path: path.stat().st_size).read_text()
    calls: Counter[str] = Counter()
    for call in text.splitlines():
        named = re.match(r'(\w+)\([^"]*"(/[^"]*)', call)
        if named and not re.match("/(sys|proc|dev|etc|lib|usr/lib|run)/", named[2]):
            calls["named, not found" if "ENOENT" in call else named[1]] += 1
    print(f"a rank, from its start to its end: {calls.total():,} calls: {dict(calls)}")


def theirs(net: str, folder: Path, steps: int) -> list[list[str]]:
    """Return the commands of the two ranks of PyTorch."""
    module = [sys.executable, "-m", "tests.benchmarks.footprint"]
    line = [*module, "--work", net, str(steps), str(folder / "metrics.jsonl")]
    place = ["MASTER_ADDR=127.0.0.1", "MASTER_PORT=29583", "WORLD_SIZE=2"]
    return [["env", *place, f"RANK={rank}", *line] for rank in range(2)]


def run(commands: Sequence[Sequence[str]], watch: Callable[[list[int]], bool]) -> None:
    """Start the commands and call `watch` with their processes until it is content."""
    jobs = [
        subprocess.Popen(
            line, env=os.environ | THREADS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for line in commands
    ]
    try:
        while watch([job.pid for job in jobs]):
            if all(job.poll() is not None for job in jobs):
                break
    finally:
        for job in jobs:
            job.terminate()
            job.wait()


def family(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def peak_bytes(commands: Sequence[Sequence[str]]) -> int:
    """Return the greatest PSS of all Python processes together."""
    peak = 0

    def watch(processes: list[int]) -> bool:
        nonlocal peak
        total = 0
        for pid in [member for process in processes for member in family(process)]:
            with contextlib.suppress(OSError):
                if "python" in os.readlink(f"/proc/{pid}/exe"):  # noqa: PTH115
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    (line,) = [x for x in rollup.splitlines() if x.startswith("Pss:")]
                    total += int(line.split()[1]) * 1024
        peak = max(peak, total)
        time.sleep(0.01)
        return True

    run(commands, watch)
    return peak


def first_step_seconds(commands: Sequence[Sequence[str]], file: Path) -> float:
    """Return the time until `file` is not empty any more."""
    began = time.monotonic()

    def watch(_: list[int]) -> bool:
        time.sleep(0.002)
        return not (file.exists() and file.stat().st_size)

    run(commands, watch)
    return time.monotonic() - began


def main() -> None:
    """Measure in alternation and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", help="Numbers of simulated ranks, as in 16,64.")
    parser.add_argument("--mpi", help="Numbers of ranks under mpirun, as in 16,64.")
    parser.add_argument("--files", action="store_true", help="Count the calls that name a file.")
    given = parser.parse_args()
    if given.files:
        files()
    for counts, simulated in ((given.simulate, True), (given.mpi, False)):
        if counts:
            scale([int(count) for count in counts.split(",")], simulated=simulated)
    if given.files or given.simulate or given.mpi:
        return
    if given.work:
        ddp(given.work[0], int(given.work[1]), Path(given.work[2]))
        return
    seconds: dict[str, list[float]] = {"ddpbp": [], "DDP": []}
    for _ in range(given.rounds):
        for name, line in (("ddpbp", ours), ("DDP", theirs)):
            with tempfile.TemporaryDirectory() as folder:
                commands = line(DIGITS, Path(folder), 10_000)
                seconds[name].append(first_step_seconds(commands, Path(folder) / "metrics.jsonl"))
    a, b = (statistics.median(found) for found in seconds.values())
    print(f"start to end of first step, {DIGITS}: ddpbp {a:.2f} s, DDP {b:.2f} s: {a / b:.2f} ×")
    peaks = {}
    for name, line, count in (("ddpbp", ours, 1), ("DDP", theirs, 20)):
        with tempfile.TemporaryDirectory() as folder:
            peaks[name] = peak_bytes(line(LARGE, Path(folder), count))
    a, b = peaks.values()
    print(
        f"peak memory of both ranks, {LARGE}: ddpbp {a / 2**20:.0f} MiB, DDP {b / 2**20:.0f} MiB: "
        f"{a / b:.2f} ×"
    )


if __name__ == "__main__":
    main()
