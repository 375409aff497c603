"""Where the examples come from: each source opens one format and reads rows."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpbp.data.checks import features_of, labels_of, targets_of
from ddpbp.data.formats import (
    Array,
    columns,
    csv_layout,
    hint,
    npz_names,
    number,
    read_csv,
    read_idx,
    read_npy,
    read_npz,
    reading,
)
from ddpbp.data.synthetic import draw
from ddpbp.errors import DataError

TASKS = ("classification", "binary", "multilabel", "regression")

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
# fmt: off
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on


@dataclass(frozen=True)
class Part:
    """Examples as rows.

    Attributes
    ----------
    x : (n, features) uint8, float32 or float64
        The features, C-contiguous.
    y : (n,) int64 or (n, targets) float64
        For classification the index of the class, otherwise the targets.
    """

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Source:
    """All examples of one source.

    Attributes
    ----------
    train : Part
        The examples to learn from.
    test : Part or None
        The source's own test part, where it has one.
    classes : tuple of str or None
        The names of the classes; None unless the task is classification.
    description : str
        One line for the log.
    columns : tuple of str or None
        The names of the features, where the file has a header.
    target : str or None
        The names of the target columns, likewise.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...] | None
    description: str
    columns: tuple[str, ...] | None = None
    target: str | None = None


@dataclass(frozen=True)
class Request:
    """What is asked of a source: the arguments of `open_source`."""

    source: str
    task: str
    target: str | None
    folder: str | None
    examples: int
    features: int
    classes: int
    targets: int
    seed: int


def open_source(
    source: str,
    *,
    format: str | None = None,
    task: str,
    target: str | None = None,
    folder: str | None = None,
    examples: int = 0,
    features: int = 0,
    classes: int = 0,
    targets: int = 0,
    seed: int = 0,
) -> Source:
    """Read a source.

    Parameters
    ----------
    source : str
        "digits", "fashion-mnist", "synthetic", or the path of a file or an IDX folder.
    format : str, optional
        The format of the path, "idx", "npy", "npz" or "csv"; by default told from its name.
    task : str
        "classification", "binary", "multilabel" or "regression".
    target : str, optional
        The target column of a CSV file (name or index) or .npy file (index), by default the last;
        several, separated by commas, for multilabel and regression. In a .npz file the name of
        the array, by default "y".
    folder : str, optional
        Where the four files of fashion-mnist lie.
    examples, features, classes, targets, seed : int
        The shape and the seed of synthetic data.

    Returns
    -------
    Source
        The examples, all finite, with targets that fit the task.

    Raises
    ------
    DataError
        For anything missing, damaged or unfit.
    """
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}{hint(task, TASKS)}; allowed: {', '.join(TASKS)}")
    request = Request(source, task, target, folder, examples, features, classes, targets, seed)
    if format is None and source in NAMED:
        return NAMED[source](request)
    return FORMATS[_format(_path(source, NAMED), format)](request)


def read_features(
    path: str | Path,
    *,
    format: str | None = None,
    features: int,
    target: str | None = None,
    names: Sequence[str] | None = None,
) -> Array:
    """Read rows to predict from.

    Parameters
    ----------
    path : str or Path
        A CSV, .npy or .npz file or an IDX file of images.
    format : str, optional
        As in `open_source`.
    features : int
        The number of features that the model takes.
    target : str, optional
        As in `open_source`; target columns may be there or not, and are dropped.
    names : sequence of str, optional
        The names of the features: from a CSV file with a header these columns are taken, in this
        order, whatever else it holds.

    Returns
    -------
    (n, features) uint8, float32 or float64
        The rows.
    """
    path = _path(str(path))
    kind = _format(path, format)
    if kind == "idx":
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name the file of images in it")
        x = features_of(read_idx(path), f"{path}: images")
    elif kind == "npz":
        names = npz_names(path)
        only = names[0] if len(names) == 1 else "x"
        name = next((name for name in ("x", "x_test") if name in names), only)
        x = features_of(read_npz(path, _array(path, names, name)), f"{path}: {name}")
    else:
        table = _without_target(path, kind, features, target, names)
        x = features_of(table, f"{path}: features")
    if x.shape[1] != features:
        raise DataError(
            f"{path}: {x.shape[1]} features in each row where the model takes {features}; give "
            "rows like those it was trained on"
        )
    return x


def _without_target(
    path: Path, kind: str, features: int, target: str | None, names: Sequence[str] | None
) -> Array:
    words = [] if target is None else target.split(",")
    whole = features + max(1, len(words))
    if kind == "npy":
        table = read_npy(path)
        there = table.ndim == 2 and table.shape[1] == whole
        return np.delete(table, columns(path, target, None, whole), 1) if there else table
    layout = csv_layout(path)
    if names and layout.names:
        order = column_order(names, layout.names, str(path))
        others = [column for column in range(layout.columns) if column not in order]
        return read_csv(path, layout, others)[0][:, order]
    there = layout.columns == whole or any(word in (layout.names or ()) for word in words)
    picks = columns(path, target, layout.names, layout.columns) if there else []
    return np.delete(read_csv(path, layout, picks)[0], picks, 1)


def column_order(wanted: Sequence[str], found: Sequence[str], where: str) -> list[int]:
    """Return where the wanted columns stand among the found ones.

    Raises
    ------
    DataError
        Names the columns that are missing.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{where}: no column {missing[0]!r} among {', '.join(found[:12])}; the model was "
            f"trained on {', '.join(wanted[:12])}"
        )
    return [found.index(name) for name in wanted]


def _path(source: str, names: Collection[str] = ()) -> Path:
    """Find a path, where a source of one of these names was possible too."""
    with reading(Path(source), "a path"):
        path = Path(source).expanduser()
        if not path.exists():
            known = f"give a path or one of {', '.join(names)}" if names else "check the path"
            place = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise DataError(
                f"{source}: no such file or folder{place}{hint(source, names)}; {known}"
            )
    return path


def _format(path: Path, format: str | None) -> str:
    """Tell the format of a path: the one given, or the one its name speaks of."""
    if format is not None:
        if format not in FORMATS:
            raise DataError(
                f"{path}: unknown data.format {format!r}{hint(format, FORMATS)}; "
                f"allowed: {', '.join(FORMATS)}"
            )
        return format
    endings = {".npy": "npy", ".npz": "npz", ".csv": "csv", ".tsv": "csv", ".txt": "csv"}
    name = path.name.lower().removesuffix(".gz")
    if path.is_dir() or "-idx" in name or name.endswith(".idx"):
        return "idx"
    if Path(name).suffix not in endings:
        raise DataError(
            f"{path}: cannot tell its format from its name; "
            f"set data.format to one of {', '.join(FORMATS)}"
        )
    return endings[Path(name).suffix]


def _digits(request: Request) -> Source:
    """Read the 1,797 digits of the package; see digits/README.md."""
    path = Path(__file__).parent / "digits" / "digits.npz"
    x, y, test = (read_npz(path, name) for name in ("x", "y", "test"))
    names = [str(digit) for digit in range(10)]
    return _source(request, path, (x[~test], y[~test]), (x[test], y[test]), names)


def _fashion(request: Request) -> Source:
    """Read Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) as the Debian package holds it."""
    folder = Path(request.folder or FASHION_FOLDER).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder, so no fashion-mnist; run `apt-get install "
            "dataset-fashion-mnist`, or set data.folder to where its four IDX files are"
        )
    return _idx_folder(request, folder, FASHION_CLASSES)


def _idx(request: Request) -> Source:
    return _idx_folder(request, Path(request.source).expanduser())


def _idx_folder(request: Request, folder: Path, names: Sequence[str] | None = None) -> Source:
    """Read a folder of IDX files: train-images*, train-labels*, and t10k-* or test-* if there."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; an IDX source is a folder of files")
    with reading(folder, "a folder"):
        held = sorted(file.name for file in folder.iterdir())

    def pair(prefix: str) -> tuple[Array, Array]:
        found = []
        for kind in ("images", "labels"):
            name = next((name for name in held if name.startswith(f"{prefix}-{kind}")), None)
            if name is None:
                raise DataError(
                    f"{folder}: no file {prefix}-{kind}*; found {', '.join(held[:8]) or 'nothing'}"
                )
            found.append(read_idx(folder / name))
        return found[0], found[1]

    test = next((p for p in ("t10k", "test") if any(h.startswith(f"{p}-") for h in held)), None)
    return _source(request, folder, pair("train"), pair(test) if test else None, names)


def _npz(request: Request) -> Source:
    """Read the arrays x and y, or x_train and y_train, and x_test and y_test if there."""
    path = Path(request.source).expanduser()
    names = npz_names(path)
    y = (request.target or "y").removesuffix("_train")

    def pair(part: str) -> tuple[Array, Array]:
        x_name, y_name = (
            f"{name}_{part}" if part == "test" or f"{name}_{part}" in names else name
            for name in ("x", y)
        )
        return (
            read_npz(path, _array(path, names, x_name)),
            read_npz(path, _array(path, names, y_name)),
        )

    test = pair("test") if {"x_test", f"{y}_test"} & set(names) else None
    return _source(request, path, pair("train"), test)


def _array(path: Path, names: list[str], name: str) -> str:
    if name not in names:
        raise DataError(
            f"{path}: no array {name!r}{hint(name, names)}; it holds "
            f"{', '.join(names) or 'nothing'}; needed are x and y, or x_train and y_train "
            "(data.target may name y)"
        )
    return name


def _npy(request: Request) -> Source:
    """Read one table of numbers, target columns among them."""
    path = Path(request.source).expanduser()
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] < 2:
        raise DataError(
            f"{path}: an array of shape {table.shape}; a table of rows is needed, with at least "
            "one column of features and one of targets (or use .npz with x and y)"
        )
    picks = columns(path, request.target, None, table.shape[1], request.task)
    return _source(request, path, (np.delete(table, picks, 1), table[:, picks]))


def _csv(request: Request) -> Source:
    """Read a CSV file, target columns among the others; class labels may be text."""
    path = Path(request.source).expanduser()
    layout = csv_layout(path)
    if layout.columns < 2:
        raise DataError(
            f"{path}: one column only; at least one of features and one of targets are needed, "
            "separated by comma, semicolon or tab"
        )
    picks = columns(path, request.target, layout.names, layout.columns, request.task)
    classify = request.task == "classification"
    table, words = read_csv(path, layout, picks if classify else ())
    y: Array = table[:, picks]
    names = None
    if classify:
        y, names = _named_classes(path, layout.name(picks[0]), y[:, 0], words)
    source = _source(request, path, (np.delete(table, picks, 1), y), names=names)
    if layout.names is None:
        return source
    features = [name for column, name in enumerate(layout.names) if column not in picks]
    target = ",".join(layout.names[column] for column in picks)
    return replace(source, columns=tuple(features), target=target)


def _named_classes(path: Path, column: str, y: Array, words: list[str]) -> tuple[Array, list[str]]:
    """Sort the labels, as integers if all are, else as text, and number them in that order."""
    numbers = [number(word) for word in words]
    numeric = None not in numbers
    for code, word in enumerate(words):
        if not word or (numeric and not float(word).is_integer()):
            raise DataError(
                f"{path}: column {column} holds {word!r}, first in row {np.argmax(y == code)} "
                "(from 0); a class label is text or an integer; a number to predict is regression"
            )
    labels: list[Any] = [int(float(word)) for word in words] if numeric else words
    ranks = {label: rank for rank, label in enumerate(sorted(set(labels)))}
    return np.array([ranks[label] for label in labels])[y.astype(np.int64)], [*map(str, ranks)]


def _synthetic(request: Request) -> Source:
    """Draw examples and label them by a random linear teacher; see `synthetic`."""
    classify, binary = request.task == "classification", request.task == "binary"
    outputs = request.classes if classify else 1 if binary else request.targets
    for key, found, least, example in (
        ("data.examples", request.examples, 1, 10_000),
        ("data.features", request.features, 1, 20),
        ("data.classes" if classify else "data.targets", outputs, 2 if classify else 1, 3),
    ):
        if found < least:
            raise DataError(
                f"synthetic: {key} is {found}; at least {least} is needed for {request.task}, "
                f"e.g. {key}={example}"
            )
    x, scores = draw(request.seed, request.examples, request.features, outputs)
    if classify:
        names = [str(label) for label in range(outputs)]
        return _source(request, "synthetic", (x, scores.argmax(1)), names=names)
    y = scores / np.sqrt(request.features) if request.task == "regression" else scores > 0
    return _source(request, "synthetic", (x, y))


def _source(
    request: Request,
    path: Path | str,
    train: tuple[Array, Array],
    test: tuple[Array, Array] | None = None,
    names: Sequence[str] | None = None,
) -> Source:
    """Check both parts against each other and the task; `names` are those of labels 0, 1, ..."""
    task, known = request.task, None if names is None else np.arange(len(names))
    if task == "classification" and known is None:
        known = labels_of(train[1], f"{path}: train labels")
        names = [str(int(label)) for label in known]
    parts = []
    for part, (raw_x, raw_y) in [("train", train)] + ([("test", test)] if test else []):
        x = features_of(raw_x, f"{path}: {part} features")
        y = targets_of(raw_y, f"{path}: {part} labels", task, known)
        if len(x) != len(y):
            raise DataError(
                f"{path}: {len(x)} rows of features but {len(y)} of labels in the {part} part; "
                "each row needs its label"
            )
        parts.append(Part(x, y))
    first, last = parts[0], parts[-1]
    if last.x.shape[1] != first.x.shape[1] or last.y.shape[1:] != first.y.shape[1:]:
        raise DataError(
            f"{path}: rows of shape {last.x.shape[1:]} and {last.y.shape[1:]} in the test part, "
            f"{first.x.shape[1:]} and {first.y.shape[1:]} in the train part; they must agree"
        )
    classes = tuple(names) if names is not None and task == "classification" else None
    outputs = f"{len(classes)} classes" if classes else f"{first.y.shape[1]} targets"
    return Source(
        first,
        last if test else None,
        classes,
        f"{request.source}: {len(first)} training and {len(last) if test else 'no'} test examples, "
        f"{first.x.shape[1]} features, {outputs} ({task})",
    )


Opener = Callable[[Request], Source]
NAMED: dict[str, Opener] = {"digits": _digits, "fashion-mnist": _fashion, "synthetic": _synthetic}
FORMATS: dict[str, Opener] = {"idx": _idx, "npy": _npy, "npz": _npz, "csv": _csv}
SOURCES: dict[str, Opener] = NAMED | FORMATS
