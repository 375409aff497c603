"""Kill ranks of a job that survives it, at random moments: the bits must not change.

    python -m tests.faults.survive --runs 24 --seed 0

Needs Open MPI. In every run on 2 to 5 ranks, one or more random ranks are killed after the training
began, never all of them. The run must end with code 0, with the hash of θ and the records in
metrics.jsonl of an undisturbed run, and leave nothing behind.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tests.conftest import environment
from tests.faults.kills import hash_of, leftovers, processes, segments

MPIRUN = str(Path(sys.executable).with_name("mpirun"))
COMMON = ["checkpoint.every_steps=7", "log_every_steps=1", "optimizer.name=adam"]
COMMON += ["optimizer.learning_rate=0.002"]
NETS = {  # few bytes to sum, many, and two ranks in each process
    "digits": ["epochs=60", "threads=1"],
    "digits wide": ["epochs=6", "threads=1", "model.hidden=[600,300]", "checkpoint.keep_best=1"],
    "digits threads": ["epochs=30", "threads=2", "batch_size=128", "micro_batch_size=8"],
}
RUN_SECONDS = 30.0


def start(name: str, folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    train = [sys.executable, "-m", "ddpbp", "train", *COMMON, *NETS[name], f"output={folder}"]
    line = [MPIRUN, "--with-ft", "ulfm", "-n", str(ranks), *train] if ranks > 1 else train
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        return subprocess.Popen(
            line,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment(PYTHONFAULTHANDLER="1"),
        )


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl without times."""
    lines = [msgspec.json.decode(line) for line in (folder / "metrics.jsonl").open()]
    times = ("seconds", "examples_per_second")
    return [{k: v for k, v in record.items() if k not in times} for record in lines]


def kill_some(
    job: subprocess.Popen[bytes], folder: Path, ranks: int, random_: random.Random
) -> str:
    """Kill ranks at random moments; return which, numbered by their start."""
    killed = ""
    while not (folder / "metrics.jsonl").exists() and job.poll() is None:
        time.sleep(0.01)
    order = sorted({*processes(folder)} - {job.pid})  # as mpirun started them
    for victim in random_.sample(order, k=min(len(order), random_.randint(1, ranks - 1))):
        end = time.monotonic() + random_.choice([0.003, 0.1, 1.5]) * random_.random()
        while time.monotonic() < end and job.poll() is None:
            time.sleep(0.001)
        if job.poll() is None and victim in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += f" {order.index(victim)}"
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nets", default=",".join(NETS))
    options = parser.parse_args()
    names = options.nets.split(",")
    random_ = random.Random(options.seed)
    count, wrong = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as place:
        whole = {name: Path(place) / f"{name} undisturbed" for name in NETS}
        for name, folder in whole.items():
            start(name, folder, 1).wait(RUN_SECONDS)
        for run in range(options.runs):
            name, folder = names[run % len(names)], Path(place) / str(run)
            ranks = random_.randint(2, 5)
            job = start(name, folder, ranks)
            killed = kill_some(job, folder, ranks, random_)
            try:
                code = job.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in {*processes(folder)} - {job.pid}:
                    os.kill(pid, signal.SIGABRT)  # prints its stack
                    time.sleep(0.5)
                os.killpg(job.pid, signal.SIGKILL)
                code = job.wait()
            faults = [f"code {code}"] if code else []
            if not (folder / "result.json").exists():
                faults.append("not complete")
            else:
                faults += ["other bits"] if hash_of(folder) != hash_of(whole[name]) else []
                faults += ["other metrics"] if records(folder) != records(whole[name]) else []
            faults += leftovers(folder, complete=not faults)
            if faults:
                sys.stdout.write((Path(place) / f"{run}.log").read_text()[-4000:])
            told = f"run {run} {name}: killed{killed or ' nobody'} of {ranks}; {faults or 'good'}\n"
            sys.stdout.write(told)
            sys.stdout.flush()
            count[name] += len(killed.split())
            wrong += [f"run {run}: {fault}" for fault in faults]
    wrong += [f"segment {path}" for path in segments()]
    for name in NETS:
        sys.stdout.write(f"{name:<14} {count[name]:>4} ranks killed\n")
    sys.stdout.write(f"{options.runs} runs; {len(wrong)} faults\n")
    sys.stdout.write("".join(f"  {text}\n" for text in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
