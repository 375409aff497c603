"""Compare the ends of faulty runs: exit code and message are equal however many ranks there are.

    python -m tests.faults.messages [--only WORD]

Each fault is run by one process, by ranks of MPI, by threads and by simulated ranks, each time in a
fresh copy of the same files. Standard error and the notes and warnings on standard output must be
the same, without a traceback.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import environment, mpiexec

RUN_SECONDS = 120
WAYS: dict[str, tuple[int, list[str]]] = {  # processes, and words to add
    "1 rank": (1, ["threads=1"]),
    **{f"{n} ranks": (n, ["threads=1"]) for n in (2, 3)},
    **{f"{n} threads": (1, [f"threads={n}"]) for n in (2, 3)},
    **{f"{n} simulated": (1, ["threads=1", "--simulate-ranks", f"{n}"]) for n in (2, 3)},
}
RUN = "output={d}/run batch_size=16 epochs=2"
SYNTHETIC = "data.source=synthetic data.examples=90 data.features=4 data.classes=3"
TRAIN = f"train {SYNTHETIC} {RUN}"
FILE = f"train {RUN} data.source={{d}}"
NUMBERS = "loss.name=squared_error data.standardize=false"
RESUME = "--resume auto checkpoint.every_steps=4"
FULL = "output={d}/small checkpoint.every_steps=1 model.hidden=[200] log_every_steps=1"


def damage(*names: str) -> Callable[[Path], None]:
    """Return a function that flips a bit in the middle of files of a folder."""

    def flip(folder: Path) -> None:
        for file in (file for name in names for file in folder.glob(name)):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

    return flip


def other_data(folder: Path) -> None:
    (folder / "good.csv").write_text((folder / "good.csv").read_text().replace("2,", "9,"))


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    line : str
        The command; {d} is the folder of the files.
    code : int
        The exit code, of all ranks alike.
    says : str
        A part of the message.
    prepare : callable
        Changes the files before.
    run : str or None
        The command that makes a run before.
    counts : bool
        The message names the number of ranks on purpose.
    """

    line: str
    code: int
    says: str
    prepare: Callable[[Path], None] = lambda folder: None
    run: str | None = None
    counts: bool = False


FAULTS = {
    "unknown setting": Fault(f"{TRAIN} optimizer.nme=sgd", 2, "optimizer.name?"),
    "out of range": Fault(f"{TRAIN} model.dropout=1.5", 2, "<= 0.99"),
    "exclusive": Fault(f"{TRAIN} wire=bf16 model.dtype=float64", 2, "wire"),
    "unknown option": Fault(f"{TRAIN} --fast", 2, "--fast"),
    "option without another": Fault(f"{TRAIN} --force", 2, "--force goes with --resume"),
    "no such file": Fault(f"{FILE}/gone.csv", 2, "no such file"),
    "npy cut short": Fault(f"{FILE}/cut.npy", 2, "cut short"),
    "not a number": Fault(f"{FILE}/nan.npy {NUMBERS}", 2, "row 2, column 1"),
    "text": Fault(f"{FILE}/text.csv", 2, "line 3"),
    "ragged": Fault(f"{FILE}/ragged.csv", 2, "line 3"),
    "one class": Fault(f"{FILE}/one.csv", 2, "two classes"),
    "unknown class": Fault(f"{FILE}/good.csv data.test={{d}}/other.csv", 2, "class 'z'"),
    "beyond float32": Fault(f"{FILE}/huge.npy {NUMBERS}", 2, "float64"),
    "beyond a square": Fault(f"{FILE}/vast.npy loss.name=squared_error", 2, "too large"),
    "nothing left": Fault(f"{FILE}/good.csv data.validation=0.99", 2, "none to train on"),
    "below a file": Fault(f"{TRAIN} output={{d}}/good.csv/run", 2, "output="),
    "a run is there": Fault(TRAIN, 2, "already holds a run", run=TRAIN),
    "rate too high": Fault(f"{TRAIN} optimizer.learning_rate=1e30", 3, "is not finite"),
    "rate too high, deep": Fault(
        f"{TRAIN} optimizer.learning_rate=1e9 model.hidden=[9,8,7] model.activation=elu", 3, "z of"
    ),
    "gradient too long": Fault(f"{FILE}/large.npy {NUMBERS}", 3, "gradient"),
    "loss too large": Fault(f"{FILE}/tall.npy {NUMBERS} model.activation=tanh", 3, "the loss"),
    "wire too narrow": Fault(f"{FILE}/wide.npy {NUMBERS} wire=fp16", 3, "not finite"),
    "other settings": Fault(
        f"{TRAIN} {RESUME} optimizer.name=adam", 2, "optimizer.name", run=TRAIN
    ),
    "other network": Fault(
        f"{TRAIN} {RESUME} --force model.hidden=[3]", 2, "this network", run=TRAIN
    ),
    "other data": Fault(f"{FILE}/good.csv {RESUME}", 2, "the data", other_data, f"{FILE}/good.csv"),
    "fewer epochs": Fault(f"{TRAIN} {RESUME} epochs=1", 2, "raise epochs", run=TRAIN),
    "no checkpoint": Fault(f"{TRAIN} --resume {{d}}/gone", 2, "gone"),
    "all damaged": Fault(
        f"{TRAIN} {RESUME}", 2, "whole", damage("run/checkpoints/*/state.json"), f"{TRAIN} {RESUME}"
    ),
    "newest damaged": Fault(
        f"{TRAIN} {RESUME} epochs=3",
        0,
        "is damaged",
        damage("run/checkpoints/step-00000012/model.safetensors"),
        f"{TRAIN} {RESUME}",
    ),
    "out of time": Fault(f"{TRAIN} max_seconds=1e-9", 75, "at step 1"),
    "disk full": Fault(f"{TRAIN} {FULL}", 1, "No space left"),
    "ranks without leaves": Fault(f"{TRAIN} micro_batch_size=16", 2, "leaves", counts=True),
    "eval: no model": Fault("eval {d}/gone", 2, "does not exist"),
    "eval: damaged": Fault("eval {d}/run", 2, "damaged", damage("run/model*"), run=TRAIN),
    "predict: other columns": Fault("predict {d}/run {d}/good.csv", 2, "features", run=TRAIN),
}


def make_files(folder: Path) -> None:
    """Write the data that the faults name."""
    head = "a,b,kind\n"
    texts = {
        "good.csv": head + "1,2,x\n3,4,y\n" * 20,
        "other.csv": head + "1,2,x\n3,4,z\n" * 9,
        "one.csv": head + "1,2,x\n" * 30,
        "text.csv": head + "1,2,x\n3,red,y\n5,6,x\n",
        "ragged.csv": head + "1,2,x\n3,4,5,y\n5,6,x\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    rows = np.random.default_rng(0).standard_normal((60, 4))
    np.save(folder / "nan.npy", np.where(np.arange(240).reshape(60, 4) == 9, np.nan, rows))
    np.save(folder / "cut.npy", rows)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-7])
    scales: dict[str, Any] = {
        "huge": 1e39,
        "vast": 1e200,
        "large": [1e20, 1e20, 1e20, 1e12],
        "tall": [1, 1, 1, 1e25],
        "wide": [1e4, 1e4, 1e4, 1e3],
    }
    for name, scale in scales.items():
        np.save(folder / f"{name}.npy", rows * scale)
    (folder / "small").mkdir()


def end_of(words: list[str], ranks: int, folder: Path) -> tuple[int, str]:
    """Run one command; return its exit code and what it said: errors, notes and warnings."""
    line = [sys.executable, "-m", "ddpbp", *words]
    if ranks > 1:
        line = [*mpiexec(), "-n", str(ranks), *line]
    if f"output={folder}/small" in words:  # a small file system, gone with the process
        mount = f'mount -t tmpfs -o size=60k none {folder}/small && exec "$@"'
        line = ["unshare", "--mount", "sh", "-c", mount, "sh", *line]
    ended = subprocess.run(
        line, capture_output=True, text=True, timeout=RUN_SECONDS, env=environment(), check=False
    )
    marks = ("note: ", "warning: ")
    notes = [line for line in ended.stdout.splitlines() if line.startswith(marks)]
    own = ended.stderr.split("-" * 70)[0].rstrip("\n")  # Open MPI's mpirun adds a box of its own
    return ended.returncode, "\n".join([*notes, own])


def check(name: str, ways: Iterable[str] = tuple(WAYS)) -> list[str]:
    """Run one fault in some ways; return what is wrong."""
    fault, wrong = FAULTS[name], []
    expected: dict[int, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        template, folder = Path(place) / "template", Path(place) / "d"
        template.mkdir()
        make_files(template)

        def words(line: str, more: list[str]) -> list[str]:
            more = more if line.startswith("train") else [w for w in more if "=" not in w]
            return [*line.replace("{d}", str(folder)).split(), *more]

        for way in ways:
            shutil.copytree(template, folder)
            if fault.run and not (template / "run").exists():
                assert end_of(words(fault.run, []), 1, folder)[0] == 0
                shutil.rmtree(template)
                shutil.copytree(folder, template)
            fault.prepare(folder)
            ranks, more = WAYS[way]
            found = end_of(words(fault.line, more), ranks, folder)
            shutil.rmtree(folder)
            code, said = found
            count = int(way[0]) if fault.counts else 0
            if fault.counts and count == 1:
                continue  # no fault
            if (code, fault.says in said, "Traceback" in said) != (fault.code, True, False):
                wrong.append(f"{name}, {way}: {code}: {said}")
            elif found != expected.setdefault(count, found):
                wrong.append(f"{name}, {way}: {said}\ninstead of: {expected[count][1]}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the name of a fault")
    options = parser.parse_args()
    names = [name for name in FAULTS if options.only in name]
    if os.geteuid():
        names.remove("disk full")  # it needs root
    wrong = []
    for name in names:
        wrong += (found := check(name))
        sys.stdout.write("".join(f"{text}\n" for text in found) or f"{name}: the same in all\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(names)} faults, each in {len(WAYS)} ways; {len(wrong)} wrong\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
