"""Damage every file of a run folder: each byte is either harmless, or the damage is named.

    python tests/faults/corrupt.py --count 0 --seed 0

Three run folders are made: of a complete run, of one that ended by a fault, and of one whose files
of weights are large. In each file one bit is flipped, at every byte of a small file (or at
`--count` of them) and at 2,000 random places of a large one; and each file is cut, emptied,
lengthened and removed. After each damage the run is looked at as `--resume auto`, `eval` and
`predict` do, by the functions of ddpbp in this process. Every `--whole`-th time it is resumed to
its end, and every `--processes`-th of those by a command.

harmless  the same weights, metrics and result as of the undamaged folder
named     a message with the name of the file, or of its folder, and exit code 2; or a note
wrong     anything else: other numbers and no word, a traceback, a checkpoint that is lost
"""

import argparse
import contextlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ddpbp
from ddpbp.base.hashing import digest
from ddpbp.cli.main import run
from ddpbp.config.write import dump
from ddpbp.errors import DdpbpError
from ddpbp.run.start import find_start
from ddpbp.store.checkpoint import metrics_of, read_checkpoint, steps_in
from ddpbp.store.model_file import read_model
from ddpbp.store.run_folder import read_result

SETTINGS = [
    *("data.source=synthetic", "data.examples=119", "data.features=5", "data.targets=2"),
    *("loss.name=squared_error", "batch_size=32", "epochs=3", "log_every_steps=1", "threads=1"),
    *("optimizer.name=adam", "checkpoint.every_minutes=0", "checkpoint.every_steps=3"),
    "checkpoint.keep_best=1",
]
FOLDERS = {"complete": [9], "unfinished": [9], "large": [90, 90]}
LARGE_BYTES = 16_000
LARGE_COUNT = 2000


class Case(NamedTuple):
    """A file, what happens to it, and what it holds then; None: it is removed."""

    file: Path
    damage: str
    content: bytes | None


class Expected(NamedTuple):
    """What the undamaged folder holds."""

    newest: Path
    checkpoints: dict[Path, str]
    metrics: dict[Path, bytes]
    models: dict[Path, str]
    result: dict[str, Any] | None


class _Fault(ddpbp.Callback):
    def step(self, run: Any, loss: float) -> None:
        if run.trainer.step == 8:
            raise DdpbpError("a fault")


def make(place: Path, name: str) -> ddpbp.Config:
    """Train a run into `place`; return its configuration."""
    hidden = f"model.hidden={FOLDERS[name]}"
    config = ddpbp.resolve(None, [*SETTINGS, hidden, f"output={place}"])
    callbacks = [_Fault] if name == "unfinished" else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(DdpbpError):
        ddpbp.train(config, callbacks=callbacks)
    return config


def expect(folder: Path) -> Expected:
    """Read what an undamaged folder holds."""
    steps = list(steps_in(folder / "checkpoints").values())
    read = {path: read_checkpoint(path) for path in steps}
    models = {file.parent: _model(file.parent) for file in folder.rglob("model.safetensors")}
    return Expected(
        steps[0],
        {path: _weights(checkpoint) for path, checkpoint in read.items()},
        {path: metrics_of(checkpoint)[0] for path, checkpoint in read.items()},
        models,
        read_result(folder) if (folder / "result.json").exists() else None,
    )


def _weights(checkpoint: Any) -> str:
    state = checkpoint.state
    return digest(list(checkpoint.vectors.values())) + repr((state.progress, state.callbacks))


def _model(path: Path) -> str:
    model = read_model(path)
    scale = model.standardization
    arrays = [model.theta.flat, *([scale.mean, scale.deviation] if scale else [])]
    return digest(arrays) + repr((dump(model.config), model.classes, model.columns, model.target))


def cases(folder: Path, count: int, random_: random.Random) -> Iterator[Case]:
    """Yield the damages of all files of a folder."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        places = range(len(whole))
        most = LARGE_COUNT if len(whole) > LARGE_BYTES else len(whole)
        chosen = random_.sample(places, min(len(whole), count or most, most))
        for place in sorted(chosen):
            bit = random_.randrange(8)
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            yield Case(file, f"bit {bit} of byte {place}", bytes(flipped))
        for length in {0, 1, len(whole) // 2, max(0, len(whole) - 1)}:
            yield Case(file, f"cut to {length} bytes", whole[:length])
        yield Case(file, "lengthened", whole + b"\xff\xfe" * 9)
        yield Case(file, "removed", None)


def look(folder: Path, config: ddpbp.Config, expected: Expected, damaged: Path) -> tuple[str, str]:
    """Look at a folder as a resume, `eval` and `predict` do; return a verdict and its reason."""
    verdict, reason = "harmless", ""
    try:
        start = find_start(config, folder, overwrite=False, resume="auto", force=False)
        notes, checkpoint = list(start.notes), start.checkpoint
        if checkpoint is None:
            return "wrong", "no checkpoint is found"
        lines, told = metrics_of(checkpoint)
        notes = [note for note in notes + told if "continuing from" not in note]
        if expected.checkpoints[checkpoint.path] != _weights(checkpoint):
            return "wrong", "other weights"
        if not notes:
            if checkpoint.path != expected.newest:
                return "wrong", f"{checkpoint.path.name} is taken, and no word"
            if lines != expected.metrics[checkpoint.path]:
                return "wrong", "other metrics"
            rewritten = expected.result and not (folder / "result.json").exists()
            if start.result != expected.result and not rewritten:
                return "wrong", "another result"
        else:
            verdict, reason = "named", notes[0]
    except DdpbpError as error:
        verdict, reason = ("named" if error.code == 2 else "wrong"), str(error)
    if damaged.name == "model.safetensors":
        try:
            if _model(damaged.parent) != expected.models[damaged.parent]:
                return "wrong", "another model"
        except DdpbpError as error:
            verdict, reason = ("named" if error.code == 2 else "wrong"), str(error)
    if verdict == "named" and (str(folder) not in reason or "\n" in reason):
        return "wrong", f"a message that names no file: {reason}"
    if steps_in(folder / "checkpoints").keys() != steps_in(expected.newest.parent).keys():
        return "wrong", "a checkpoint is lost"
    return verdict, reason


def resume(folder: Path, expected: str, *, process: bool) -> tuple[str, str]:
    """Resume a run to its end; return a verdict and its reason."""
    hidden = next(len(x) * [x[0]] for name, x in FOLDERS.items() if folder.name.startswith(name))
    words = ["train", *SETTINGS, f"model.hidden={hidden}", f"output={folder}", "--resume", "auto"]
    before = set(steps_in(folder / "checkpoints"))
    if process:
        command = [sys.executable, "-m", "ddpbp", *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        code, out, err = ended.returncode, ended.stdout, ended.stderr
    else:
        with (
            contextlib.redirect_stdout(io.StringIO()) as stdout,
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            code = run(words)
        out, err = stdout.getvalue(), stderr.getvalue()
    if "Traceback" in out + err:
        return "wrong", err
    if code == 2 and err.count("\n") == 1 and before == set(steps_in(folder / "checkpoints")):
        return "named", err
    if code != 0:
        return "wrong", f"code {code}: {err}"
    if read_result(folder)["theta_sha256"] != expected:
        return "wrong", "other weights at the end"
    if _model(folder) != _model(next(iter(steps_in(folder / "checkpoints").values()))):
        return "wrong", "another model at the end"
    return "harmless", ""


def hunt(
    place: Path, names: list[str], count: int, seed: int, whole: int, processes: int
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damage all files; return how often each verdict was given to each file, and what is wrong."""
    random_, verdicts, wrong, number = (
        random.Random(seed),
        Counter[tuple[str, str]](),
        list[str](),
        0,
    )
    for name in names:
        config, folder = make(place / name, name), place / name
        expected, copy = expect(folder), place / f"{name} copy"
        whole_run = expected.result
        if whole_run is None:
            make(place / "whole", "complete")
            whole_run = read_result(place / "whole")
        end = str(whole_run["theta_sha256"])
        for file, damage, content in cases(folder, count, random_):
            number += 1
            kept = file.read_bytes()
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            try:
                found = [look(folder, config, expected, file)]
                if whole and number % whole == 0:
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(folder, copy)
                    process = bool(processes) and number % (whole * processes) == 0
                    found.append(resume(copy, end, process=process))
            except Exception:
                found = [("wrong", traceback.format_exc())]
            file.write_bytes(kept)
            for verdict, reason in found:
                verdicts[f"{name}/{file.relative_to(folder)}", verdict] += 1
                if verdict == "wrong":
                    wrong.append(f"{file}, {damage}: {reason}")
    return verdicts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=0, help="flipped bits a file; 0: every byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", default=",".join(FOLDERS))
    parser.add_argument("--whole", type=int, default=50)
    parser.add_argument("--processes", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddpbp-corrupt-") as place:
        verdicts, wrong = hunt(
            Path(place),
            options.folders.split(","),
            options.count,
            options.seed,
            options.whole,
            options.processes,
        )
    kinds = ("harmless", "named", "wrong")
    for file in dict.fromkeys(file for file, _ in verdicts):
        counts = "".join(f"{verdicts[file, kind]:>8} {kind}" for kind in kinds)
        sys.stdout.write(f"{file:<58}{counts}\n")
    total = {kind: sum(verdicts[file, k] for file, k in verdicts if k == kind) for kind in kinds}
    sys.stdout.write("".join(f"{number:,} {kind}  " for kind, number in total.items()) + "\n")
    sys.stdout.write("".join(f"  {text}\n" for text in wrong[:30]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
