"""From the name or the path of a source to checked arrays: for training, `eval` and `predict`."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpbp.data import checks
from ddpbp.data.builtin import NAMED
from ddpbp.data.columns import feature_columns, target_columns, targets_present
from ddpbp.data.files import hint, reading
from ddpbp.data.formats.table import format_of
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Columns, Contents, Rows
from ddpbp.errors import DataError


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
    name : str
        The name or the path.
    task : str
        The name of the task.
    columns : tuple of str or None
        The names of the features, where the file has a header.
    target : str or None
        The names of the target columns, likewise.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...] | None
    name: str
    task: str
    columns: tuple[str, ...] | None = None
    target: str | None = None

    def describe(self, training: int, test: int) -> str:
        """Return one line for the log, with the numbers of examples to train and to test on."""
        outputs = f"{self.outputs} {'classes' if self.classes else 'targets'}"
        if self.outputs == 1:
            outputs = "1 target"
        return (
            f"{self.name}: {training} training and {test or 'no'} test examples, "
            f"{self.train.x.shape[1]} features, {outputs} ({self.task})"
        )

    @property
    def description(self) -> str:
        """`describe` for the parts of the source itself."""
        return self.describe(len(self.train), len(self.test) if self.test else 0)

    @property
    def outputs(self) -> int:
        """The number of classes, or of targets."""
        return len(self.classes) if self.classes else int(self.train.y.shape[1])


def open_rows(source: str, options: SourceOptions) -> Contents:
    """Open a named source, or a path in the format that its name or the options give.

    Raises
    ------
    DataError
        If it does not exist, or is of no known format.
    """
    if options.format is None and source in NAMED:
        return NAMED[source](options)
    path = _existing(source, NAMED)
    return format_of(path, options.format).open(path)


def open_source(source: str, options: SourceOptions) -> Source:
    """Read all examples of a source.

    Parameters
    ----------
    source : str
        "digits", "fashion-mnist", "synthetic", or the path of a file or an IDX folder.
    options : SourceOptions

    Returns
    -------
    Source
        The examples, all finite, with targets that fit the task.

    Raises
    ------
    DataError
        For anything missing, damaged or unfit.
    """
    contents = open_rows(source, options)
    if contents.table is not None:
        return _from_table(source, contents, contents.table, options)
    return _from_arrays(source, contents, options)


def read_features(source: str, options: SourceOptions, features: int) -> Array:
    """Read rows to predict from.

    Parameters
    ----------
    source : str
        As in `open_source`; also an IDX file of images, or a .npy file of them.
    options : SourceOptions
        The target columns may be there or not, and are dropped; so is every column that is not
        among the named ones, if the table has names.
    features : int
        The number of features that the model takes.

    Returns
    -------
    (n, features) uint8, float32 or float64
    """
    contents = open_rows(source, options)
    where, table = contents.where, contents.table
    rows: Rows
    if table is not None:
        named = bool(options.columns and table.schema.names)
        targets = [] if named else targets_present(table.schema, where, options.target, features)
        picks = feature_columns(table.schema, targets, options.columns, where)
        others = [column for column in range(table.schema.columns) if column not in picks]
        rows = Columns(table.allow_text(others), picks) if others or named else table
    else:
        held = contents.arrays
        names = [*held] if len(held) == 1 else [name for name in ("x", "x_test") if name in held]
        if not names:
            raise DataError(
                f"{where}: no array 'x' or 'x_test' to predict from; it holds "
                f"{', '.join(held) or 'nothing'}; name a file that has one"
            )
        rows = held[names[0]]()
    if rows.schema.columns != features:
        raise DataError(
            f"{source}: {rows.schema.columns} features in each row where the model takes "
            f"{features}; give rows like those it was trained on"
        )
    return checks.feature_values(rows, f"{where}: features")


def _from_table(source: str, contents: Contents, table: Rows, options: SourceOptions) -> Source:
    """Divide a table into features and targets."""
    where, schema, task = contents.where, table.schema, options.task
    if len(schema.shape) != 1 or schema.columns < 2:
        row = f"rows of shape {schema.shape}" if len(schema.shape) > 1 else "one column only"
        raise DataError(
            f"{where}: {row}; a table is needed, with at least one column of features and one of "
            f"targets{contents.needs}"
        )
    targets = target_columns(schema, where, options.target, task)
    features = feature_columns(schema, targets, options.columns, where)
    dropped = {*range(schema.columns)} - {*targets, *features}
    table = table.allow_text(dropped | {*targets} if task.classes else dropped)
    x = checks.feature_values(Columns(table, features), f"{where}: train features")
    y = checks.target_values(Columns(table, targets), f"{where}: train labels")
    classes = None
    if task.classes and table.words:
        column = f'"{schema.names[targets[0]]}"' if schema.names else str(targets[0])
        y, classes = checks.sort_classes(y, table.words, f"{where}: column {column}")
    return _source(
        source,
        contents,
        options,
        [(x, y)],
        classes=classes,
        columns=tuple(schema.names[c] for c in features) if schema.names else None,
        target=",".join(schema.names[c] for c in targets) if schema.names else None,
    )


def _from_arrays(source: str, contents: Contents, options: SourceOptions) -> Source:
    """Read the arrays x and y, or x_train and y_train, and x_test and y_test if there."""
    where, held = contents.where, contents.arrays
    target = (options.target or "y").removesuffix("_train")

    def pair(part: str) -> tuple[Array, Array]:
        names = [
            f"{name}_{part}" if part == "test" or f"{name}_{part}" in held else name
            for name in ("x", target)
        ]
        for name in names:
            if name not in held:
                raise DataError(
                    f"{where}: no array {name!r}{hint(name, held)}; it holds "
                    f"{', '.join(held) or 'nothing'}; needed: {contents.needs}"
                )
        x, y = (held[name]() for name in names)
        if len(x) != len(y):
            raise DataError(
                f"{where}: {len(x)} rows of features but {len(y)} of labels in the {part} part; "
                "each row needs its label"
            )
        return (
            checks.feature_values(x, f"{where}: {part} features"),
            checks.target_values(y, f"{where}: {part} labels"),
        )

    pairs = [pair("train")]
    if {"x_test", f"{target}_test"} & held.keys():
        pairs.append(pair("test"))
    return _source(source, contents, options, pairs, classes=contents.classes)


def _source(
    source: str,
    contents: Contents,
    options: SourceOptions,
    pairs: list[tuple[Array, Array]],
    *,
    classes: tuple[str, ...] | None,
    columns: tuple[str, ...] | None = None,
    target: str | None = None,
) -> Source:
    """Check the train and the test part against each other and the task."""
    where, task = contents.where, options.task
    known = None if classes is None else np.arange(len(classes))
    if task.classes and known is None:
        known = checks.labels_of(pairs[0][1], f"{where}: train labels")
        classes = tuple(str(int(label)) for label in known)
    parts = []
    for part, (x, raw) in zip(("train", "test"), pairs, strict=False):
        y = checks.targets_of(raw, f"{where}: {part} labels", task, known)
        parts.append(Part(x, y))
    first, last = parts[0], parts[-1]
    if last.x.shape[1] != first.x.shape[1] or last.y.shape[1:] != first.y.shape[1:]:
        raise DataError(
            f"{where}: rows of shape {last.x.shape[1:]} and {last.y.shape[1:]} in the test part, "
            f"{first.x.shape[1:]} and {first.y.shape[1:]} in the train part; they must agree"
        )
    test = last if len(parts) > 1 else None
    names = classes if task.classes else None
    return Source(first, test, names, source, task.name, columns, target)


def _existing(source: str, names: Collection[str]) -> Path:
    """Return an existing path, where a source of one of these names was possible too."""
    with reading(Path(source), "a path"):
        path = Path(source).expanduser()
        if not path.exists():
            place = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise DataError(
                f"{source}: no such file or folder{place}{hint(source, names)}; "
                f"give a path or one of {', '.join(names)}"
            )
    return path
