"""Feed the commands input that is damaged or hostile: each must end soon, with one message.

    python -m tests.faults.fuzz --count 2000 --seed 0

Data of every format, models, run folders, settings files and command lines, each made from a good
one by `mutate`. A case is a fork of this process, which has ddpbp loaded, in a folder of its own;
with --on-ranks N, every Nth that ended with code 2 runs again as three ranks under mpiexec, where
code and message must be the same. A case fails if it takes longer than 10 s or 500 MB more than
good input, ends with a code that is not documented, by a signal, or with other than one message
(none after code 0), prints a traceback or characters that drive a terminal, or leaves a temporary,
a half-written file or predictions.
"""

import argparse
import contextlib
import json
import os
import random as random_
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ddpbp.base import blas

blas.limit_threads()
blas.use_kernel("native")

import numpy as np  # noqa: E402 - after the threads are limited

# What a case would else load anew.
import ddpbp.run.training  # noqa: E402
import ddpbp.tools.apply  # noqa: E402
import ddpbp.tools.dry_run  # noqa: E402, F401
from ddpbp.cli.main import run  # noqa: E402
from ddpbp.errors import DdpbpError  # noqa: E402
from ddpbp.store.model_file import read_model  # noqa: E402
from launch import mpi  # noqa: E402
from tests.faults import mutate  # noqa: E402
from tests.faults.mutate import WORDS, mutated, mutated_text, mutated_tree  # noqa: E402

SECONDS = 10.0  # of the processor: on a loaded machine the clock says little
END_SECONDS = 90.0
MORE_BYTES = 500_000_000
MOST_BYTES = 6_000_000_000  # of addresses: a case that wants more is stopped, to spare the machine
MPIEXEC = str(mpi.find([sys.executable]).mpiexec)
CODES = {0, 1, 2, 3, 4, 75}
SMALL = ["epochs=1", "batch_size=8", "model.hidden=[4]", "max_seconds=6", "output=out"]
Random = random_.Random


class Case(NamedTuple):
    """One command with its files.

    Attributes
    ----------
    words : list of str
    files : dict of bytes
        By path, below the folder in which the command runs.
    run_folder : bool
        The folder holds a copy of the good run folder.
    """

    words: list[str]
    files: dict[str, bytes]
    run_folder: bool = False


class Result(NamedTuple):
    """How a case ended; a code below 0 is a signal."""

    code: int
    seconds: float
    bytes: int
    message: str


class Seeds:
    """The good inputs: small files of every format, and a run folder with a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        x = np.arange(120.0).reshape(30, 4) % 7
        y = np.arange(30) % 3
        table = "a,b,c,d,kind\n" + "".join(
            f"{','.join(map(str, row))},{'xyz'[k]}\n" for row, k in zip(x.tolist(), y, strict=True)
        )
        pixels = x.astype(np.uint8).tobytes()
        self.npy = mutate.npy(np.c_[x, y])
        self.members = {"x.npy": mutate.npy(x), "y.npy": mutate.npy(y)}
        self.csv = table.encode()
        self.idx = {
            "train-images": mutate.idx((30, 2, 2), pixels),
            "train-labels": mutate.idx((30,), bytes(y.tolist())),
        }
        self.toml = (Path(__file__).parents[2] / "configs/digits.toml").read_text()
        (folder / "good.csv").write_bytes(self.csv)
        words = [
            "train",
            "data.source=good.csv",
            *SMALL,
            "epochs=2",
            "checkpoint.every_steps=1",
            "max_seconds=0",
        ]
        result = finish(words, folder, folder / "log")
        assert result.code == 0, result
        self.model = (folder / "out/model.safetensors").read_bytes()
        self.records = sorted(
            str(path.relative_to(folder / "out"))
            for path in (folder / "out").rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def copy_run(self, to: Path) -> None:
        shutil.copy(self.folder / "good.csv", to)
        shutil.copytree(self.folder / "out", to / "out", symlinks=True)


# --- families ------------------------------------------------------------------------------------


def _use(file: str, random: Random) -> list[str]:
    """Return a command that reads a data file."""
    return random.choice(
        [
            ["train", f"data.source={file}", *SMALL],
            ["train", f"data.source={file}", *SMALL, "loss.name=squared_error"],
            ["train", f"data.source={file}", *SMALL, "--fast-dev-run"],
            ["train", f"data.source={file}", *SMALL, "--dry-run"],
            ["eval", "out", file],
            ["predict", "out", file, "-o", "p.csv"],
        ]
    )


def csv_case(seeds: Seeds, random: Random) -> Case:
    content = seeds.csv
    if random.randrange(2):
        content = mutated_text(content.decode(), random).encode()
    else:
        content = mutated(content, random, seeds.npy)
    name = random.choice(["d.csv", "d.csv.gz"])
    if name.endswith("gz"):
        content = mutate.packed(content, random)
    return Case(_use(name, random), {name: content}, run_folder=True)


def npy_case(seeds: Seeds, random: Random) -> Case:
    changed = random.choice([mutate.mutated_npy, mutated])
    return Case(_use("d.npy", random), {"d.npy": changed(seeds.npy, random)}, run_folder=True)


def npz_case(seeds: Seeds, random: Random) -> Case:
    content = mutate.mutated_npz(seeds.members, random)
    if not random.randrange(3):
        content = mutated(content, random, seeds.npy)
    return Case(_use("d.npz", random), {"d.npz": content}, run_folder=True)


def idx_case(seeds: Seeds, random: Random) -> Case:
    files = dict(seeds.idx)
    name = random.choice([*files])
    content = files.pop(name)
    changed = random.choice([mutate.mutated_idx, mutated])
    content = changed(content, random)
    if random.randrange(2):
        name, content = f"{name}.gz", mutate.packed(content, random)
    words = _use(random.choice(["idx", "idx", f"idx/{name}"]), random)
    held = {f"idx/{name}": content} | {f"idx/{name}": content for name, content in files.items()}
    return Case(words, held, run_folder=True)


def toml_case(seeds: Seeds, random: Random) -> Case:
    text = seeds.toml
    for _ in range(random.choice([1, 1, 3])):
        text = mutated_text(text, random)
    content = text.encode("utf-8", "surrogateescape")
    if not random.randrange(3):
        content = mutated(content, random, seeds.csv)
    words = random.choice([["--dry-run"], ["--print-config"], ["--fast-dev-run"], []])
    return Case(["train", "c.toml", "max_seconds=6", "output=out", *words], {"c.toml": content})


KEYS = [
    *(
        "seed",
        "epochs",
        "batch_size",
        "micro_batch_size",
        "threads",
        "kernel",
        "wire",
        "data.target",
    ),
    *("bucket_cap_bytes", "log_every_steps", "check_every_steps", "max_seconds", "stall_seconds"),
    *(
        "data.source",
        "data.format",
        "data.folder",
        "data.standardize",
        "data.validation",
        "data.test",
    ),
    *(
        "data.task",
        "data.examples",
        "data.features",
        "data.classes",
        "data.targets",
        "model.hidden",
    ),
    *("model.activation", "model.output", "model.dropout", "model.dtype", "model.initialization"),
    *("loss.name", "loss.label_smoothing", "loss.huber_delta", "optimizer.name", "optimizer.rho"),
    *(
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "optimizer.epsilon",
    ),
    *("optimizer.base_batch_size", "schedule.name", "schedule.warmup_steps", "schedule.gamma"),
    *("schedule.every_epochs", "checkpoint.every_steps", "checkpoint.every_minutes", "output"),
    *("checkpoint.keep_last", "checkpoint.keep_best", "data", "model", "", ".", "model.hidden.x"),
]
FLAGS = [
    *(
        "--ranks",
        "--simulate-ranks",
        "--seed",
        "--epochs",
        "--resume",
        "--output",
        "--json",
        "--mpi",
    ),
    *("--bar", "--force", "--overwrite", "--dry-run", "--print-config", "--fast-dev-run", "--help"),
]


def line_case(seeds: Seeds, random: Random) -> Case:
    hostile = [word for word in WORDS if "\0" not in word]
    numbers = ["[1000000000]", "[99999999,99999999]", "[4]", *map(str, (1, 2, 7, 10**6, 10**12))]
    words = ["train", "data.source=good.csv", *SMALL]
    for _ in range(random.choice([1, 1, 2, 4])):
        value = random.choice(hostile + numbers * 3)
        words.append(f"{random.choice(KEYS)}={value}")
    if not random.randrange(3):
        words += [random.choice(FLAGS), random.choice(hostile + numbers)]
    if not random.randrange(4):
        words = [random.choice(["eval", "predict", "bench", "plan", "config", "gradcheck", "x"])]
        words += random.sample(["out", "good.csv", "show", *hostile, *FLAGS], 3)
    # What a word may do as a folder outside is not tried here.
    words = [word for word in words if not word.startswith("--output")]
    if words[0] == "train":
        words += random.choice([["max_seconds=6"], ["--fast-dev-run"], ["--dry-run"]])
    return Case(words, {}, run_folder=True)


def model_case(seeds: Seeds, random: Random) -> Case:
    content = mutate.mutated_model(seeds.model, random)
    if not random.randrange(6):
        content = mutated(seeds.model, random, seeds.csv)
    words = random.choice([["eval", "m.safetensors"], ["eval", "m.safetensors", "good.csv"]])
    if random.randrange(2):
        words = ["predict", "m.safetensors", "good.csv", "-o", "p.npy"]
    return Case(words, {"m.safetensors": content}, run_folder=True)


def folder_case(seeds: Seeds, random: Random) -> Case:
    name = random.choice(seeds.records)
    content = (seeds.folder / "out" / name).read_bytes()
    if name.endswith(".json") and random.randrange(2):
        content = json.dumps(mutated_tree(json.loads(content), random)).encode()
    else:
        content = mutated(content, random, seeds.csv)
    train = ["train", "data.source=good.csv", *SMALL, "checkpoint.every_steps=1"]
    words = random.choice(
        [
            [*train, "epochs=2", "--resume", "auto"],
            [*train, "epochs=3", "--resume", "auto"],
            [*train, "epochs=2", "--resume", "out"],
            ["eval", "out"],
        ]
    )
    return Case(words, {f"out/{name}": content}, run_folder=True)


FAMILIES: dict[str, Callable[[Seeds, Random], Case]] = {
    "csv": csv_case,
    "npy": npy_case,
    "npz": npz_case,
    "idx": idx_case,
    "toml": toml_case,
    "line": line_case,
    "model": model_case,
    "folder": folder_case,
}


# --- one case ------------------------------------------------------------------------------------


def finish(words: list[str], folder: Path, log: Path) -> Result:
    """Run a command in a fork of this process, in a folder, and see how it ends."""
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = open(1, "w")  # noqa: SIM115 - pytest's may be in place
            sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            code = run(words)
        finally:
            sys.stderr.flush()
            os._exit(code)
    descriptor = os.pidfd_open(pid)
    if not select.select([descriptor], [], [], END_SECONDS)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    message = log.read_bytes().decode("utf-8", "backslashreplace")
    seconds = usage.ru_utime + usage.ru_stime
    if time.monotonic() - began > END_SECONDS:
        seconds = END_SECONDS
    return Result(code, seconds, usage.ru_maxrss * 1024, message)


def faults(
    result: Result, folder: Path, most_bytes: int, given: Collection[str] = ()
) -> Iterator[str]:
    """Yield what is wrong with the end of a case to which these files were given."""
    code, seconds, size, text = result
    if seconds > SECONDS:
        yield f"no end after {seconds:.1f} s"
    if code not in CODES:
        yield f"code {code}"
    if size > most_bytes:
        yield f"{size / 1e6:.0f} MB"
    if "Traceback" in text:
        yield "traceback"
    if any(not (c.isprintable() or c == "\n") for c in text):
        yield "characters that are not printable"
    lines = [line for line in text.splitlines() if not line.startswith("note: ")]
    if len(lines) != bool(code) or not all(line.startswith("ddpbp: ") for line in lines):
        yield f"{len(lines)} messages"
    if max(map(len, lines), default=0) > 2_000:
        yield f"a message of {max(map(len, lines))} characters"
    yield from (f"left {path.name}" for path in folder.rglob(".*.tmp"))
    if (folder / "bang").exists():
        yield "ran a command"
    for path in folder.glob("p.*"):
        if code:
            yield f"wrote {path.name}"
    model = folder / "out/model.safetensors"
    if code == 0 and model.exists() and "out/model.safetensors" not in given:
        with contextlib.suppress(DdpbpError):
            read_model(model)
            return
        yield "left a model that cannot be read"


def write(case: Case, seeds: Seeds, folder: Path) -> None:
    """Make the folder of a case."""
    folder.mkdir()
    if case.run_folder:
        seeds.copy_run(folder)
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    if case.words[0] == "train" and "--resume" not in case.words:
        shutil.rmtree(folder / "out", ignore_errors=True)


def good_bytes(seeds: Seeds, place: Path) -> int:
    """Return the most memory that good input takes."""
    words = ["train", f"data.source={seeds.folder}/good.csv", *SMALL, "max_seconds=0"]
    return finish(words, place, place / "log").bytes


def on_ranks(case: Case, folder: Path, message: str) -> Iterator[str]:
    """Yield what is different if three ranks run a case that ended with code 2."""
    line = [MPIEXEC, "-n", "3", sys.executable, "-m", "ddpbp", *case.words]
    ended = subprocess.run(
        line, cwd=folder, capture_output=True, text=True, timeout=END_SECONDS, check=False
    )
    told = [line for line in ended.stderr.splitlines() if line.startswith("ddpbp: ")]
    if ended.returncode != 2 or told != message.splitlines()[-1:]:
        yield f"on 3 ranks code {ended.returncode} and {told}"


def check(count: int, seed: int, place: Path, every: int = 0) -> tuple[Counter[str], list[str]]:
    """Run cases of all families in turn; return how many ended how, and the faults.

    Parameters
    ----------
    count, seed : int
    place : Path
        An empty folder.
    every : int
        Run every so many cases on three ranks too; 0 runs none.
    """
    (place / "seeds").mkdir()
    (place / "good").mkdir()
    seeds = Seeds(place / "seeds")
    most_bytes = good_bytes(seeds, place / "good") + MORE_BYTES
    ended, wrong = Counter[str](), list[str]()
    for number in range(count):
        family = [*FAMILIES][number % len(FAMILIES)]
        case = FAMILIES[family](seeds, Random(f"{seed} {number}"))
        folder = place / str(number)
        write(case, seeds, folder)
        result = finish(case.words, folder, place / "log")
        ended[f"{family:<8} code {result.code}"] += 1
        found = [*faults(result, folder, most_bytes, case.files)]
        if every and number % every == 0 and result.code == 2:
            found += on_ranks(case, folder, result.message)
            ended["on 3 ranks"] += 1
        if found:
            words = [word[:60] for word in case.words]
            wrong.append(f"case {number}, {family}: {'; '.join(found)}: {words}")
            sys.stdout.write(f"{wrong[-1]}\n{result.message[-1500:]}\n")
            sys.stdout.flush()
        shutil.rmtree(folder)
    return ended, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on-ranks", type=int, default=0, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        ended, wrong = check(options.count, options.seed, Path(place), options.on_ranks)
    for name in sorted(ended):
        sys.stdout.write(f"{name:<18} {ended[name]:>5}\n")
    sys.stdout.write(f"{options.count} cases, {len(wrong)} faults\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
