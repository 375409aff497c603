"""Kill runs at random moments and resume them: the bits must be those of an undisturbed run.

    python tests/faults/kills.py --kills 200 --seed 0

Each run is started, disturbed and resumed, each time on a random number of ranks from 1 to 5, until
it is complete; then its hash of θ is compared with that of the undisturbed run. After every end,
leftovers are searched: processes, temporary files, segments in /dev/shm, checkpoints that cannot
be read. The table at the end has a row for each kind of disturbance.
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
from pathlib import Path

from ddpbp.errors import DataError
from ddpbp.store.checkpoint import read_checkpoint, steps_in
from launch import mpi

SETTINGS = {
    "digits": ["epochs=120", "optimizer.name=adam", "optimizer.learning_rate=0.002"],
    "fashion-mnist": [
        *("data.source=fashion-mnist", "epochs=15", "model.hidden=[32]", "model.dropout=0.1"),
        *("batch_size=512", "optimizer.name=momentum", "optimizer.learning_rate=0.05"),
    ],
}
EVERY = ["checkpoint.every_steps=7", "checkpoint.every_minutes=0", "log_every_steps=1", "threads=1"]
KINDS = (
    "SIGKILL one rank",
    "SIGKILL all",
    "SIGKILL while writing",
    "SIGTERM mpirun",
    "SIGTERM one rank",
    "SIGUSR1 one rank",
)
MPIEXEC = str(mpi.find([sys.executable]).mpiexec)
RUN_SECONDS = 120


def start(name: str, folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    train = [sys.executable, "-m", "ddpbp", "train", *SETTINGS[name], *EVERY, f"output={folder}"]
    line = [MPIEXEC, "-n", str(ranks), *train, "--resume", "auto"]
    with (folder.parent / "log").open("ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)


def processes(path: Path) -> list[int]:
    """Return the process ids of the ranks of a run: a word of theirs ends with its path."""
    ids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if f"{path}\0".encode() in line and b"mpiexec" not in line and b"hydra" not in line:
                ids.append(int(process.name))
    return ids


def disturb(kind: str, job: subprocess.Popen[bytes], folder: Path, random_: random.Random) -> bool:
    """Wait for a random moment and strike; return whether the run had not ended before."""
    checkpoints = folder / "checkpoints"
    deadline = time.monotonic() + 0.4 + 2.6 * random_.random()
    while time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.002)
    while kind == "SIGKILL while writing" and job.poll() is None:
        if list(checkpoints.glob(".*.tmp")):
            break
    ranks = processes(folder)
    if job.poll() is not None or not ranks:
        return False
    number = signal.SIGKILL if "KILL" in kind else signal.Signals[kind.split()[0]]
    targets = [random_.choice(ranks)]
    if kind == "SIGKILL all":
        targets = [*ranks, job.pid]
    elif "mpirun" in kind:
        targets = [job.pid]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return True


def leftovers(folder: Path, *, complete: bool) -> list[str]:
    """Return what must not be there after an end."""
    left = []
    deadline = time.monotonic() + 5
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    left += [f"process {pid}" for pid in processes(folder)]
    for path in steps_in(folder / "checkpoints").values():
        try:
            read_checkpoint(path)
        except DataError as error:
            left.append(f"unreadable: {error}")
    if complete:
        left += [f"file {path}" for path in folder.rglob(".*.tmp")]
    return left


def early(kind: str) -> set[int]:
    """Return the exit codes of a job of which a rank was signalled before it installed its handler.

    MPICH's mpiexec then kills the others by signal 9 and combines the codes by "or".
    """
    number = int(signal.Signals[kind.split()[0]])
    return {number, number | signal.SIGKILL}


def segments() -> set[Path]:
    return set(Path("/dev/shm").glob("ddpbp.*"))


def hash_of(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["theta_sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="digits,fashion-mnist")
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    count, wrong = Counter[tuple[str, str]](), list[str]()
    names = options.data.split(",")
    with tempfile.TemporaryDirectory() as place:
        expected = {}
        for name in names:
            start(name, Path(place) / f"undisturbed-{name}", 1).wait(RUN_SECONDS)
            expected[name] = hash_of(Path(place) / f"undisturbed-{name}")
        run = kills = 0
        while kills < options.kills:
            name, run = names[run % len(names)], run + 1
            folder, times = Path(place) / str(run) / "run", 0
            folder.parent.mkdir()
            while True:
                ranks, kind = random_.randint(1, 5), random_.choice(KINDS)
                job = start(name, folder, ranks)
                struck = times < 8 and disturb(kind, job, folder, random_)
                try:
                    code = job.wait(RUN_SECONDS)
                except subprocess.TimeoutExpired:
                    wrong.append(f"run {run}: no end after {kind} on {ranks} ranks")
                    os.killpg(job.pid, signal.SIGKILL)
                    job.wait()
                    code = -9
                complete = (folder / "result.json").exists()
                if struck:
                    kills, times = kills + 1, times + 1
                    count[name, kind] += 1
                    if "KILL" not in kind and code not in {75, 0, *early(kind)}:
                        wrong.append(f"run {run}: code {code} after {kind} on {ranks} ranks")
                elif not complete:
                    wrong.append(f"run {run}: code {code} on {ranks} ranks, undisturbed")
                wrong += [f"run {run}, {kind}: {x}" for x in leftovers(folder, complete=complete)]
                if complete or len(wrong) > 20:
                    break
            if not complete or hash_of(folder) != expected[name]:
                wrong.append(f"run {run} ({name}) ended with other bits, or did not end")
                sys.stdout.write((folder.parent / "log").read_text()[-3000:])
            told = f"run {run} {name}: {times} disturbances, {kills} in all, {len(wrong)} faults\n"
            sys.stdout.write(told)
            sys.stdout.flush()
            if len(wrong) > 20:
                break
        left = segments()
        if left:  # a run was killed while it mapped one: the next start removes it
            time.sleep(6.0)
            start(names[0], Path(place) / "last", 2).wait(RUN_SECONDS)
            wrong += [f"segment {path}" for path in left & segments()]
    for name in names:
        for kind in KINDS:
            sys.stdout.write(f"{name:<14} {kind:<22} {count[name, kind]:>4}\n")
    sys.stdout.write(f"{kills} disturbances in {run} runs; {len(wrong)} faults\n")
    sys.stdout.write("".join(f"  {text}\n" for text in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
