"""Hold random configurations to the law of the bits.

    python -m tests.faults.law --count 1000 --kills 1000 --seed 0 --log law.jsonl

Configurations are drawn in batches. One process computes a batch first. Then it is computed again:
on ranks, hosts, threads and simulated ranks, with other settings on which no number may depend, in
other surroundings, and while its processes are killed or stopped and resumed, each time on other
ranks. Everything that a run says about its numbers must be equal: hashes, losses and metrics,
weights and optimizer state in the checkpoints, scores of `eval`, and the message where it fails.

The log has a line for each batch; the same command continues it. A batch with differences keeps its
folder. `messages.py` compares the messages of known faults.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import msgspec
from safetensors.numpy import load_file

from ddpbp.base import tree
from ddpbp.base.hashing import digest
from ddpbp.config.settings import Config
from ddpbp.config.write import to_toml
from ddpbp.store.checkpoint import steps_in
from tests.conftest import environment
from tests.faults.drawn import HARMLESS, Random, Surroundings, draw_config, draw_surroundings
from tests.faults.kills import MPIEXEC, early, processes

ROOT = Path(__file__).parent.parent.parent
RUN_SECONDS = 300
SLOW_SECONDS = 0.02  # of each step, where signals are to find a run at work
TIMES = ("seconds", "examples_per_second", "world_size", "threads", "sha256")
KINDS = (
    *("SIGKILL one rank", "SIGKILL one rank", "SIGKILL all", "SIGKILL all"),
    *("SIGTERM mpirun", "SIGTERM one rank", "SIGUSR1 one rank"),
)


@dataclass(frozen=True)
class Way:
    """One way of computing a list of configurations."""

    ranks: int = 1
    hosts: str = ""
    threads: int = 1
    simulate: int = 0

    def __str__(self) -> str:
        hosts = f" on hosts {self.hosts}" if self.hosts else ""
        ranks = f"{self.simulate} simulated ranks" if self.simulate else f"{self.ranks} ranks"
        return f"{ranks}{hosts} of {self.threads} threads"

    def command(self, tasks: Path, *options: str) -> list[str]:
        """Return the words that start it."""
        words = [sys.executable, str(ROOT / "tests/faults/in_turn.py"), str(tasks), *options]
        words += ["--threads", str(self.threads), "--simulate", str(self.simulate)]
        words += ["--hosts", self.hosts] * bool(self.hosts)
        return [MPIEXEC, "-n", str(self.ranks), *words] if self.ranks > 1 else words


def draw_way(r: Random, kind: str = "") -> Way:
    """Draw a way of one kind: mpi, threads, simulated or alone."""
    kind = kind or r.choice(["mpi", "mpi", "threads", "simulated", "alone"])
    if kind == "mpi":
        ranks = r.choice([2, 2, 3, 3, 4, 5])
        hosts = ",".join(str(r.randrange(3)) for _ in range(ranks))
        return Way(ranks, r.choice(["", hosts]), r.choice([1, 1, 2]))
    if kind == "threads":
        return Way(threads=r.choice([2, 3, 5]))
    return Way(threads=r.choice([1, 1, 2]), simulate=r.randint(2, 9)) if kind != "alone" else Way()


# --- what a run says about its numbers -----------------------------------------------------------


def numbers(folder: Path) -> dict[str, Any] | None:
    """Return all that must be equal however a run was computed; None if it has not ended."""
    if not (folder / "outcome.json").exists():
        return None
    outcome = json.loads((folder / "outcome.json").read_text())
    found = {
        "code": outcome["code"],
        "message": outcome["err"].replace(str(folder), "RUN"),
        "eval": str(outcome.get("eval")).replace(str(folder), "RUN"),
        "records": [_timeless(record) for record in _records(folder / "metrics.jsonl")],
    }
    if outcome["code"] == 0:
        result = json.loads((folder / "result.json").read_text())
        found |= _timeless(result)
        found["model"] = _tensors(folder / "model.safetensors")
    steps = steps_in(folder / "checkpoints")
    for step, path in steps.items():
        found[f"checkpoint {step}"] = _tensors(path / "model.safetensors")
        state = json.loads((path / "state.json").read_text())
        # Between the last step of an epoch and its end, two runs may have saved at different times.
        kept = ("optimizer_products", "learning_rate", "theta_sha256", "canary_sha256", "seed")
        last = ("progress", "score", "config_sha256", "data_sha256", "environment")
        final = outcome["code"] == 0 and step == max(steps)
        found[f"state {step}"] = {key: state[key] for key in kept + last * final}
    return found


def differing(found: dict[str, Any] | None, expected: dict[str, Any] | None) -> list[str]:
    """List what both say, in different words."""
    assert expected is not None
    if found is None:
        return ["it did not end"]
    one = sorted(expected.keys() ^ found.keys())
    both = sorted(expected.keys() & found.keys())
    return [f"{key}: only one has it" for key in one if not key.startswith(("check", "state"))] + [
        _difference(key, found[key], expected[key]) for key in both if found[key] != expected[key]
    ]


def _difference(where: str, a: Any, b: Any) -> str:
    """Describe the first place at which two values differ."""
    if isinstance(a, list) and isinstance(b, list):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(key for key in [*a, *b] if a.get(key) != b.get(key))
        return _difference(f"{where} {key}", a.get(key), b.get(key))
    return f"{where}: {a} instead of {b}"


def _records(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def _tensors(file: Path) -> dict[str, str]:
    return {name: digest([tensor]) for name, tensor in sorted(load_file(file).items())}


# --- a batch -------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Some configurations, computed in several ways below `place`."""

    place: Path
    r: Random
    configs: list[Config] = field(default_factory=list)
    expected: list[dict[str, Any] | None] = field(default_factory=list)
    ways: int = 0
    compared: int = 0
    resumed: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def draw(self, size: int) -> None:
        """Draw the configurations, write their data, and compute them in one process."""
        kernel = self.r.choice(["native", "native", "haswell"])  # a process has one
        for i in range(size):
            self.configs.append(draw_config(self.r, self.place / f"data {i}", kernel))
            (self.place / f"{i}.toml").write_text(to_toml(self.configs[-1]))
        self.compute(Way(), plain=True)

    def compute(self, way: Way, *, plain: bool = False) -> None:
        """Compute all configurations in one way, undisturbed."""
        name = self._new_way()
        job, log = self._start(way, name, plain=plain)
        code = self._end(job, log)
        if code:
            self.faults.append(f"{way}: exit code {code}, see {log}")
        self._compare(name, way)

    def disturb(self, kills: int) -> None:
        """Compute all while processes are killed or stopped, up to `kills` times."""
        name = self._new_way()
        while True:
            disturbed = self.strikes.total() < kills
            way = draw_way(self.r) if disturbed else Way()
            options = ["--resume"] + ["--slow", str(SLOW_SECONDS)] * disturbed
            job, log = self._start(way, name, *options)
            kind = strike(job, self.place / f"{name}.json", log, self.r) if disturbed else ""
            code = self._end(job, log)
            if kind:
                self.strikes[kind] += 1
            ends = {0, 75, *(end for n in early(kind) for end in (n, -n, 128 + n))} if kind else {0}
            ends |= {1} if "mpirun" in kind else set()  # Open MPI's
            if "KILL" not in kind and code not in ends:
                self.faults.append(f"{way}, {kind or 'undisturbed'}: exit code {code}, see {log}")
                break
            if code == 0 and way.ranks == 1 and not way.simulate:
                break
        self._compare(name, f"{kills} disturbances")

    def _new_way(self) -> str:
        self.ways += 1
        return f"way {self.ways}"

    def _start(
        self, way: Way, name: str, *options: str, plain: bool = False
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start one way; its tasks are new, for the harmless settings are drawn at each start."""
        tasks, log = self.place / f"{name}.json", self.place / f"{name}.log"
        (self.place / name).mkdir(exist_ok=True)
        content = []
        for i, config in enumerate(self.configs):
            drawn = {} if plain else {key: draw(self.r) for key, draw in HARMLESS.items()}
            words = [str(self.place / f"{i}.toml"), *(f"{key}={v}" for key, v in drawn.items())]
            folder = self.place / name / str(i)
            leaves = tree.leaf_count(config.batch_size, config.leaf_size)
            words.append(f"output={folder}")
            content.append({"folder": str(folder), "leaves": leaves, "words": words})
        tasks.write_text(json.dumps(content))
        around = Surroundings(self.place) if plain else draw_surroundings(self.r, self.place)
        with log.open("ab") as file:
            file.write(f"\n{way} {' '.join(options)} {around}\n".encode())
            file.flush()
            variables = environment(PYTHONPATH=str(ROOT), PYTHONFAULTHANDLER="1")
            job = around.start(way.command(tasks, *options), variables, file)
        return job, log

    def _end(self, job: subprocess.Popen[bytes], log: Path) -> int:
        """Wait for the end; a job that has none is ended, and its stacks are in the log."""
        try:
            return job.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            self.faults.append(f"no end, see {log}")
            os.killpg(job.pid, signal.SIGABRT)
            time.sleep(2.0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            return job.wait()

    def _compare(self, name: str, way: object) -> None:
        found = [numbers(self.place / name / str(i)) for i in range(len(self.configs))]
        if not self.expected:
            self.expected = found
            self.faults += [f"{i}: it did not end" for i, each in enumerate(found) if each is None]
            return
        for i, (each, expected) in enumerate(zip(found, self.expected, strict=True)):
            left_out = each is None and isinstance(way, Way)  # it has fewer leaves than ranks
            if expected is not None and not left_out:
                self.compared += 1
                wrong = differing(each, expected)
                self.faults += [f"{name} ({way}), {self.place}/{i}.toml: {w}" for w in wrong]
        outcomes = (self.place / name).glob("*/outcome.json")
        self.resumed += sum(json.loads(path.read_text())["resumed"] for path in outcomes)


def strike(job: subprocess.Popen[bytes], tasks: Path, log: Path, r: Random) -> str:
    """Disturb a job at a random moment; return how, or "" if it had ended."""
    kind, begin = r.choice(KINDS), log.stat().st_size
    steps = r.choice([0, 1, r.randint(1, 10), r.randint(1, 40), r.randint(1, 40)])
    while job.poll() is None and log.stat().st_size < begin + steps:
        time.sleep(0.005)
    deadline = time.monotonic() + r.choice([0.04, 0.04, 0.5]) * r.random()
    while time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.001)
    ranks = processes(tasks)
    if job.poll() is not None or not ranks:
        return ""
    targets = [r.choice(ranks)]
    if kind == "SIGKILL all":
        targets = [*ranks, job.pid]
    elif "mpirun" in kind:
        targets = [job.pid]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[kind.split()[0]])
    return kind


@contextlib.contextmanager
def batch(seed: object, size: int) -> Iterator[Batch]:
    """Make a batch; its folder is kept if there were faults."""
    place = Path(tempfile.mkdtemp(prefix="law-"))
    one = Batch(place, random.Random(f"law {seed}"))
    one.draw(size)
    yield one
    if not one.faults:
        rmtree(place)


def run_batch(seed: object, size: int, kills: int) -> dict[str, Any]:
    """Compute one batch in all ways; return the line for the log."""
    with batch(seed, size) as one:
        for kind in ("mpi", "mpi", one.r.choice(["threads", "simulated"]), "alone"):
            one.compute(draw_way(one.r, kind))
        while one.strikes.total() < kills and not one.faults:
            one.disturb(kills)
    return {
        "batch": seed,
        "configurations": size,
        "codes": Counter(str(e["code"]) for e in one.expected if e),
        "compared": one.compared,
        "resumed": one.resumed,
        "strikes": one.strikes,
        "faults": one.faults,
    }


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="configurations")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--batch", type=int, default=25, help="configurations of one batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--log", type=Path, help="is continued if it is there")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60.0 * options.minutes
    lines = _records(options.log) if options.log else []
    total = Counter[str]()
    for i in range(-(-options.count // options.batch)):
        seed = f"{options.seed}.{i}"
        line = next((line for line in lines if line["batch"] == seed), None)
        if line is None and time.monotonic() < end:
            first = i * options.batch
            size = min(options.batch, options.count - first)
            kills = max(0, options.kills * (first + size) // options.count - total["kills"])
            began = time.monotonic()
            line = run_batch(seed, size, kills)
            write(f"{seed}: {time.monotonic() - began:.0f} s, {json.dumps(line)}")
            if options.log:
                with options.log.open("ab") as file:
                    file.write(msgspec.json.encode(line) + b"\n")
        if line:
            total["kills"] += sum(line["strikes"].values())
            total.update({key: line[key] for key in ("configurations", "compared", "resumed")})
            total["faults"] += len(line["faults"])
            total.update({f"exit code {code}": n for code, n in line["codes"].items()})
            total.update(line["strikes"])
    write("".join(f"{key:<20} {count:>6}\n" for key, count in total.items()))
    sys.exit(bool(total["faults"]))


if __name__ == "__main__":
    main()
