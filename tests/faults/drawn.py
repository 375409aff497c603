"""Random configurations, their data, and the surroundings that a run is started in.

Names are drawn from the tables of the program itself, so that a new optimizer or loss is drawn
without an edit; a setting that nothing here draws is refused by `draw_config`.
"""

import gzip
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from ddpbp.base.tasks import TASKS, Task
from ddpbp.config.read import parse
from ddpbp.config.settings import Config, hints
from ddpbp.nn.activations import hidden_activations
from ddpbp.nn.initializations import INITIALIZATIONS
from ddpbp.nn.losses import LOSSES
from ddpbp.nn.optimizers import OPTIMIZERS
from ddpbp.nn.schedules import SCHEDULES

Array = Any
Random = random.Random

MAX_STEPS = 60


def log_uniform(low: float, high: float) -> Callable[[Random], float]:
    """Return a draw from 10**low to 10**high."""
    return lambda r: float(f"{10 ** r.uniform(low, high):.3g}")


def one_of(*values: Any) -> Callable[[Random], Any]:
    return lambda r: r.choice(values)


# The settings that depend on no other; None keeps the default.
DRAWS: dict[str, Callable[[Random], Any]] = {
    "seed": lambda r: r.choice([0, 1, r.getrandbits(16), r.getrandbits(63)]),
    "log_every_steps": one_of(0, 1, 3),
    "data.standardize": one_of(True, True, False),
    "data.validation": one_of(0.0, 0.1, 0.35),
    "data.test": one_of(None, None, 0.2),
    "model.hidden": lambda r: [
        r.choice([1, 2, 7, 16, 33, 50, 50, 130]) for _ in range(r.choice([0, 1, 1, 2, 2, 3]))
    ],
    "model.activation": lambda r: r.choice(hidden_activations()),
    "model.dropout": one_of(0.0, 0.0, 0.1, 0.5, 0.9),
    "model.initialization": lambda r: r.choice([*INITIALIZATIONS]),
    "loss.huber_delta": log_uniform(-1, 0.5),
    "optimizer.name": lambda r: r.choice([*OPTIMIZERS]),
    "optimizer.learning_rate": log_uniform(-3, -0.5),
    "optimizer.weight_decay": one_of(0.0, 0.0, 0.01, 0.3),
    "optimizer.decay_biases": one_of(True, False),
    "optimizer.clip_norm": one_of(0.0, 0.0, 0.05, 1.0),
    "optimizer.momentum": one_of(0.0, 0.5, 0.9),
    "optimizer.beta1": one_of(0.0, 0.5, 0.9),
    "optimizer.beta2": one_of(0.9, 0.99, 0.999),
    "optimizer.rho": one_of(0.0, 0.9, 0.99),
    "optimizer.epsilon": log_uniform(-8, -3),
    "optimizer.trust_coefficient": log_uniform(-3, -1),
    "optimizer.base_batch_size": one_of(0, 0, 16, 64),
    "schedule.name": lambda r: r.choice([*SCHEDULES]),
    "schedule.warmup_steps": one_of(0, 0, 5, 30),
    "schedule.every_epochs": log_uniform(-0.5, 1),
    "schedule.gamma": one_of(0.1, 0.5, 0.97, 1.0),
    "schedule.final_factor": one_of(0.0, 0.1, 1.0),
}
# Those that follow from the task, the data or the size of a run.
DEPENDENT = {
    *("epochs", "batch_size", "micro_batch_size", "wire", "model.dtype", "model.output"),
    *("loss.name", "loss.label_smoothing", "data.source", "data.format", "data.target"),
    *("data.task", "data.examples", "data.features", "data.classes", "data.targets", "kernel"),
}
# Settings on which no number depends: drawn for each way of running a configuration.
HARMLESS: dict[str, Callable[[Random], Any]] = {
    "bucket_cap_bytes": one_of(4, 1_000, 20_000, 500_000),
    "check_every_steps": one_of(0, 1, 7),
    "stall_seconds": one_of(0.0, 100.0),
    "optimizer.shard": one_of("auto", "none", "host", "host"),
    "data.keep_type": one_of("false", "true"),
    "checkpoint.every_steps": one_of(0, 1, 1, 2, 5),
    "checkpoint.every_minutes": one_of(0.0, 0.001),
    "checkpoint.keep_last": one_of(1, 2, 3),
    "checkpoint.keep_best": one_of(0, 1, 2),
}
# A way of running sets them, or they are of files that are not drawn.
ELSEWHERE = {"output", "threads", "max_seconds", "data.folder", "data.cache"}
ELSEWHERE |= {"data.exclude", "data.rows", "data.tree"}
ELSEWHERE |= {"data.separator", "data.decimal", "data.encoding"}


def draw_config(r: Random, folder: Path, kernel: str) -> Config:
    """Draw one configuration, and write its data below `folder`.

    Raises
    ------
    AssertionError
        If a setting is drawn nowhere.
    """
    keys = {key: hint for key, hint in hints()}
    drawn = {*DRAWS, *DEPENDENT, *HARMLESS, *ELSEWHERE}
    assert keys.keys() == drawn, f"drawn nowhere, or gone: {keys.keys() ^ drawn}"
    values = {key: draw(r) for key, draw in DRAWS.items()} | {"kernel": kernel}
    loss = LOSSES[values.setdefault("loss.name", r.choice([*LOSSES]))]
    task = TASKS[values.setdefault("data.task", r.choice(loss.tasks))]
    if "label_smoothing" in loss.settings():
        values["loss.label_smoothing"] = r.choice([0.0, 0.1])
    values["model.output"] = r.choice([None, *(loss.outputs or hidden_activations())])
    values["model.dtype"] = r.choice(get_args(keys["model.dtype"]))
    if values["model.dtype"] == "float32":
        values["wire"] = r.choice(["none", *get_args(keys["wire"])])
    examples = r.choice([5, 40, r.randint(20, 700), r.randint(20, 700)])
    values |= draw_source(r, folder, task, examples)
    if values["data.source"] == "digits":
        examples = 1438
    values |= draw_batches(r, examples)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return parse(tree)


def draw_batches(r: Random, examples: int) -> dict[str, Any]:
    """Draw sizes of batches and leaves that seldom divide, and a number of epochs."""
    steps = r.choice([1, 2, 3, 5, 9, 20])  # of an epoch
    batch = max(1, examples // steps + r.randint(-1, 3))
    most = max(1, MAX_STEPS // (examples // batch + 1))
    least = batch // 50  # each leaf costs time
    leaf = r.choice(["auto", "auto", max(1, least), r.randint(1 + least, 1 + least + batch // 2)])
    epochs = min(most, r.choice([1, 2, 3, 4, 6]))
    return {"epochs": epochs, "batch_size": batch, "micro_batch_size": leaf}


# --- data ----------------------------------------------------------------------------------------


def draw_source(r: Random, folder: Path, task: Task, examples: int) -> dict[str, Any]:
    """Draw where the data come from; a file is written to `folder`."""
    features, outputs = r.choice([1, 2, 5, 11, 40]), 1 if task.single else r.choice([1, 2, 3])
    classes = r.choice([2, 3, 6]) if task.classes else 0
    kind = r.choice(["synthetic", "synthetic", "csv", "npy", "npz", "idx", "digits"])
    if kind == "digits" and not task.classes:
        kind = "synthetic"
    if kind == "digits":
        return {"data.source": "digits"}
    if kind == "synthetic":
        sizes = {"examples": examples, "features": features, "classes": classes, "targets": outputs}
        return {"data.source": kind} | {f"data.{name}": size for name, size in sizes.items()}
    folder.mkdir(parents=True)
    random_ = np.random.default_rng(r.getrandbits(32))
    x = random_.standard_normal((examples, features)) * 10 ** r.uniform(-1, 3)
    if r.random() < 0.2:
        x[:, 0] = 7.1  # a constant
    y = x @ random_.standard_normal((features, outputs)) / np.abs(x).max()
    if task.classes:
        y = np.digitize(x[:, 0], np.quantile(x[:, 0], np.arange(1, classes) / classes))[:, None]
    elif task.zero_or_one:
        y = (y > 0) * 1
    return WRITERS[kind](r, folder, x, y, task)


def _csv(r: Random, folder: Path, x: Array, y: Array, task: Task) -> dict[str, Any]:
    mark, named = r.choice([",", ";", "\t"]), r.random() < 0.7
    names = [f"f {i}" for i in range(x.shape[1])] + [f"t{i}" for i in range(y.shape[1])]
    words = task.classes and r.random() < 0.5
    lines = [mark.join(names)] * named
    for row, targets in zip(x.tolist(), y.tolist(), strict=True):
        cells = [f"kind {t}" if words else repr(t) for t in targets]
        lines.append(mark.join([*map(repr, row), *cells]))
    text = "\n".join(lines) + "\n" * r.randint(0, 1)
    path = folder / r.choice(["rows.csv", "rows.csv.gz", "rows.tsv"])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    picks = names[-y.shape[1] :] if named else range(-y.shape[1], 0)
    target = None if y.shape[1] == 1 else ",".join(map(str, picks))
    return {"data.source": str(path), "data.target": target}


def _npy(r: Random, folder: Path, x: Array, y: Array, task: Task) -> dict[str, Any]:
    table = np.c_[x, y].astype(r.choice(["f4", "f8", ">f8"]))
    np.save(folder / "rows.npy", np.asfortranarray(table) if r.random() < 0.5 else table)
    target = ",".join(str(i) for i in range(-y.shape[1], 0))
    source = folder / "rows.npy"
    if r.random() < 0.2:
        source = source.rename(folder / "rows.bin")
        return {"data.source": str(source), "data.format": "npy", "data.target": target}
    return {"data.source": str(source), "data.target": target}


def _npz(r: Random, folder: Path, x: Array, y: Array, task: Task) -> dict[str, Any]:
    dtype = r.choice(["f2", "f4", "f8", "i4", "u1"])
    x = (np.abs(x) % 200 if dtype == "u1" else x).astype(dtype)
    y = y[:, 0] if task.single and r.random() < 0.5 else y
    name = r.choice(["y", "label"])
    arrays = {"x": x, name: y}
    if r.random() < 0.3:
        arrays = {"x_train": x, f"{name}_train": y, "x_test": x[::3], f"{name}_test": y[::3]}
    save = r.choice([np.savez, np.savez_compressed])
    save(folder / "rows.npz", **arrays)
    return {"data.source": str(folder / "rows.npz"), "data.target": None if name == "y" else name}


def _idx(r: Random, folder: Path, x: Array, y: Array, task: Task) -> dict[str, Any]:
    pixels = (np.abs(x) % 256).astype("u1")
    code, labels = (
        (8, y.astype("u1")) if task.classes or task.zero_or_one else (14, y.astype(">f8"))
    )
    for name, kind, array in (("images", 8, pixels[:, :, None]), ("labels", code, labels)):
        if task.single and name == "labels":
            array = array[:, 0]
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        raw = bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()
        (folder / f"train-{name}.gz").write_bytes(gzip.compress(raw))
    return {"data.source": str(folder)}


WRITERS = {"csv": _csv, "npy": _npy, "npz": _npz, "idx": _idx}


# --- surroundings --------------------------------------------------------------------------------

# Values of the environment; None removes the variable. The runs must give the same bits in all.
ENVIRONMENT: dict[str, tuple[str | None, ...]] = {
    "OMP_NUM_THREADS": (None, "3"),
    "OPENBLAS_NUM_THREADS": (None, "2"),
    "MKL_NUM_THREADS": (None, "4"),
    "OPENBLAS_CORETYPE": (None, "Haswell", "Sandybridge", "nonsense"),
    "NPY_DISABLE_CPU_FEATURES": (None, "AVX2"),
    "MALLOC_PERTURB_": (None, "165"),  # fresh memory is not zero
    "PYTHONMALLOC": (None, "malloc"),
    "PYTHONHASHSEED": (None, "0", "4321"),
    "PYTHONOPTIMIZE": (None, "1", "2"),
    "PYTHONUNBUFFERED": (None, "1"),
    "PYTHONUTF8": (None, "0", "1"),
    "LC_ALL": (None, "C", "POSIX", "C.utf8", "de_DE.UTF-8"),
    "TZ": (None, "Asia/Kathmandu"),
    "TERM": (None, "dumb", "xterm-256color"),
    "COLUMNS": (None, "20"),
    "HOME": ("/nonexistent", str(Path.home())),  # Open MPI needs one
    "TMPDIR": (None, "/var/tmp"),
}


@dataclass(frozen=True)
class Surroundings:
    """What a command is started in.

    Attributes
    ----------
    place : Path
        The working directory.
    before : list of str
        Words before the command.
    variables : dict of str
        Of the environment; None removes one.
    umask : int
    """

    place: Path
    before: list[str] = field(default_factory=list)
    variables: dict[str, str | None] = field(default_factory=dict)
    umask: int = 0o022

    def start(
        self, command: list[str], environment: dict[str, str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; both its outputs go to `log`."""
        env = environment | {name: v for name, v in self.variables.items() if v is not None}
        for name in (name for name, value in self.variables.items() if value is None):
            env.pop(name, None)
        return subprocess.Popen(
            [*self.before, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            umask=self.umask,
            cwd=self.place,
            start_new_session=True,
        )


def draw_surroundings(r: Random, folder: Path) -> Surroundings:
    return Surroundings(
        before=r.choice([[], [], ["nice", "-n", "5"], ["taskset", "-c", "0"]]),
        variables={name: r.choice(values) for name, values in ENVIRONMENT.items()},
        umask=r.choice([0o000, 0o022, 0o077]),
        place=r.choice([folder, Path("/")]),
    )
