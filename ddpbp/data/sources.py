"""From the name or the path of a source to its examples: for training, `eval` and `predict`.

Nothing is read here but headers.
"""

from collections.abc import Collection
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from ddpbp.base.tasks import Task
from ddpbp.data import checks
from ddpbp.data.builtin import NAMED
from ddpbp.data.columns import feature_columns, target_columns, targets_present
from ddpbp.data.files import hint, reading
from ddpbp.data.formats.join import join
from ddpbp.data.formats.table import format_of, is_format
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Contents, Rows, read_rows
from ddpbp.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Examples where they are stored; they are read by ranges of rows.

    Attributes
    ----------
    x : Finite
        The features, of type uint8, float32 or float64.
    y : Finite
        The targets as they are stored.
    where : str
        The part of a source, for messages.
    table : Rows or None
        The columns of x, then those of y, where both stand in one table.
    """

    x: checks.Finite
    y: checks.Finite
    where: str
    table: Rows | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def features(self) -> int:
        """The number of features."""
        return self.x.schema.columns

    @property
    def targets(self) -> int:
        """The number of columns of targets."""
        return self.y.schema.columns

    def read(self, rows: slice) -> tuple[Array, Array]:
        """Read consecutive examples: (rows, features) and (rows, targets) as x and y have them."""
        dtypes = self.x.schema.dtype, self.y.schema.dtype
        if self.table is None:
            return read_rows(self.x, rows, dtypes[0]), read_rows(self.y, rows, dtypes[1])
        whole = read_rows(self.table, rows, self.table.schema.dtype)
        x, y = (
            part.astype(dtype)
            for part, dtype in zip(np.split(whole, [self.features], 1), dtypes, strict=True)
        )
        self.x.require_finite(x, rows.start)
        self.y.require_finite(y, rows.start)
        return x, y


@dataclass(frozen=True)
class Source:
    """All examples of one source.

    Attributes
    ----------
    train : Examples
        The examples to learn from.
    test : Examples or None
        The source's own test part, where it has one.
    classes : tuple of str or None
        The names of the classes 0, 1, ..., where the source has them; others are found by reading.
    name : str
        The name or the path.
    task : Task
    columns : tuple of str or None
        The names of the features, where the file has a header.
    target : str or None
        The names of the target columns, likewise.
    label_column : str
        Where the labels stand, for messages.
    """

    train: Examples
    test: Examples | None
    classes: tuple[str, ...] | None
    name: str
    task: Task
    columns: tuple[str, ...] | None = None
    target: str | None = None
    label_column: str = ""


def open_rows(source: str, options: SourceOptions) -> Contents:
    """Open a named source, or a path in the format that its name or the options give.

    Raises
    ------
    DataError
        If it does not exist, or is of no known format.
    """
    if options.format is None and source in NAMED:
        return NAMED[source](options)
    paths = _existing(source, NAMED)
    if len(paths) == 1:
        return format_of(paths[0], options.format).open(paths[0], options)
    return join(source, [(path, format_of(path, options.format)) for path in paths], options)


def open_source(source: str, options: SourceOptions) -> Source:
    """Open the examples of a source.

    Parameters
    ----------
    source : str
        "digits", "fashion-mnist", "synthetic", or the path of a file or an IDX folder.
    options : SourceOptions

    Returns
    -------
    Source
        The examples, not read yet.

    Raises
    ------
    DataError
        For anything missing or damaged, as far as headers show it.
    """
    contents = open_rows(source, options)
    if contents.table is not None:
        return _from_table(source, contents, contents.table, options)
    return _from_arrays(source, contents, options)


def open_features(source: str, options: SourceOptions, features: int) -> checks.Finite:
    """Open rows to predict from.

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
    Finite
        Rows of type uint8, float32 or float64.
    """
    contents = open_rows(source, options)
    where, table = contents.where, contents.table
    rows: Rows
    if table is not None:
        named = bool(options.columns and table.schema.names)
        targets = [] if named else targets_present(table.schema, where, options.target, features)
        picks = feature_columns(table.schema, targets, where, options)
        others = [column for column in range(table.schema.columns) if column not in picks]
        rows = table.allow_text(others).pick(picks) if others or named else table
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
    return checks.features(rows, f"{where}: features")


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
    features = feature_columns(schema, targets, where, options)
    dropped = {*range(schema.columns)} - {*targets, *features}
    table = table.allow_text(dropped | {*targets} if task.classes else dropped)
    column = f'"{schema.names[targets[0]]}"' if schema.names else str(targets[0])
    train = Examples(
        checks.features(table.pick(features), f"{where}: train features"),
        checks.targets(table.pick(targets), f"{where}: train labels"),
        f"{where}: train",
        None if table.by_column else table.pick([*features, *targets]),
    )
    return Source(
        train,
        None,
        None,
        source,
        task,
        columns=tuple(schema.names[c] for c in features) if schema.names else None,
        target=",".join(schema.names[c] for c in targets) if schema.names else None,
        label_column=f"{where}: column {column}",
    )


def _from_arrays(source: str, contents: Contents, options: SourceOptions) -> Source:
    """Open the arrays x and y, or x_train and y_train, and x_test and y_test if there."""
    where, held, task = contents.where, contents.arrays, options.task
    target = (options.target or "y").removesuffix("_train")

    def examples(part: str) -> Examples:
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
        return Examples(
            checks.features(x, f"{where}: {part} features"),
            checks.targets(y, f"{where}: {part} labels"),
            f"{where}: {part}",
        )

    train, test = examples("train"), None
    if {"x_test", f"{target}_test"} & held.keys():
        test = examples("test")
        shapes = [(part.features, part.targets) for part in (test, train)]
        if shapes[0] != shapes[1]:
            (features, targets), (expected_features, expected) = shapes
            raise DataError(
                f"{where}: {features} features and {targets} targets in each row of the test part, "
                f"{expected_features} and {expected} in the train part; they must agree"
            )
    if task.single and train.targets != 1:
        raise DataError(
            f"{where}: train labels are of shape {(len(train), train.targets)}; {task.name} takes "
            "one number for each example (for one-hot rows take argmax(1), for many 0/1 targets "
            "task multilabel)"
        )
    return Source(train, test, contents.classes if task.classes else None, source, task)


def files_of(source: str) -> list[Path]:
    """Return the files of a source; there are none where its name is all there is to it."""
    if source in NAMED:
        return []
    paths = _existing(source, NAMED)
    return sorted(file for path in paths for file in (path.iterdir() if path.is_dir() else (path,)))


def _existing(source: str, names: Collection[str]) -> list[Path]:
    """Return existing paths, where a source of one of these names was possible too.

    A folder of files, unless it is of a format of its own, and a pattern mean all files, in the
    order of their names; several paths may stand between commas.
    """
    with reading(Path(source), "a path"):
        path = Path(source).expanduser()
        if path.is_dir() and not is_format(path):
            held = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] not in "._")
            if held:
                return held
        if path.exists():
            return [path]
        if any(letter in source for letter in "*?["):
            found = sorted(Path(name) for name in glob(str(path)))  # noqa: PTH207 - any path
            if found:
                return found
        parts = [part.strip() for part in source.split(",")]
        if len(parts) > 1 and all(parts):
            return [path for part in parts for path in _existing(part, names)]
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"{source}: no such file or folder{place}{hint(source, names)}; "
            f"give a path or one of {', '.join(names)}"
        )
