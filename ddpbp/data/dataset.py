"""The examples of a run as the network takes them: split, standardised, in the model's dtype."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.data.checks import require_range
from ddpbp.data.fill import Copy, Feed, Filled
from ddpbp.data.labels import Labels, find_labels
from ddpbp.data.rows import Array, ArrayRows, Rows
from ddpbp.data.sources import Examples, Source
from ddpbp.data.split import TEST, TRAIN, VALIDATION, PartRows, Split
from ddpbp.data.spool import spooled
from ddpbp.data.standardization import Standardization, fit_standardization
from ddpbp.data.team import Team
from ddpbp.errors import DataError


@dataclass(frozen=True)
class Part:
    """Examples as rows in memory.

    Attributes
    ----------
    x : (n, features) array
        The features, C-contiguous, as the network takes them.
    y : (n,) int64 or (n, targets) float64
        For classification the index of the class, otherwise the targets.
    scale : Standardization or None
        What is still to be applied to x.
    """

    x: Array
    y: Array
    scale: Standardization | None = None

    def __len__(self) -> int:
        return len(self.x)

    def leaf(self, rows: slice) -> "Part":
        """Return consecutive examples."""
        return Part(self.x[rows], self.y[rows], self.scale)


@dataclass(frozen=True)
class StoredPart:
    """Examples that stay where they are stored; leaf by leaf they become as the network takes them.

    Attributes
    ----------
    examples : Examples
    labels : Labels
    scale : Standardization or None
    dtype : numpy.dtype
        Of the model.
    """

    examples: Examples
    labels: Labels
    scale: Standardization | None
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.examples)

    def leaf(self, rows: slice) -> Part:
        """Read consecutive examples.

        Raises
        ------
        DataError
            If they do not fit the model.
        """
        where = self.examples.where
        x, raw = self.examples.read(rows)
        y = self.labels.targets(raw, self.examples.y.words, f"{where} labels", rows.start)
        return Part(scaled(x, self.scale, self.dtype, where), y)


def scaled(x: Array, scale: Standardization | None, dtype: np.dtype[Any], where: str) -> Array:
    """Return features as the network takes them.

    Raises
    ------
    DataError
        If they are beyond the range of `dtype`; `where` is for the message.
    """
    with np.errstate(over="ignore"):
        out = scale.apply(x, dtype) if scale else x.astype(dtype, copy=False)
    require_range(out, dtype, f"{where}: a feature")
    return out


@dataclass(frozen=True)
class Dataset:
    """The parts of a run.

    Attributes
    ----------
    train, validation, test : Part
    classes : tuple of str or None
        The names of the classes of a classification.
    outputs : int
        The number of units of the last layer.
    standardization : Standardization or None
    description : str
        One line for the log: the source, the numbers of examples, features and outputs.
    columns : tuple of str or None
    target : str or None
        The names of the features and of the targets, as `Source` has them.
    sha256 : str
        The hash of everything that was read into this rank's copy.
    """

    train: Part
    validation: Part | None
    test: Part | None
    classes: tuple[str, ...] | None
    outputs: int
    standardization: Standardization | None
    description: str
    columns: tuple[str, ...] | None = None
    target: str | None = None
    sha256: str = ""


def make_dataset(
    source: Source,
    *,
    validation: float | Source,
    test: float | Source | None,
    standardize: bool,
    keep_type: bool,
    dtype: npt.DTypeLike,
    seed: int,
    team: Team,
) -> Dataset:
    """Read a source: split it, and bring its features into the form the network takes.

    Parameters
    ----------
    source : Source
    validation, test : float or Source
        A fraction of the rows, or the source to take instead; None takes the source's own test.
    standardize : bool
        Fit on the training part, apply to all.
    keep_type : bool
        Keep the features in the type of the source; they are standardised when they are used.
    dtype : numpy.dtype
        Of the model.
    seed : int
    team : Team

    Raises
    ------
    DataError
        If a value is not finite, the parts do not fit each other, or their values the dtype.
    """
    dtype = np.dtype(dtype)
    feeds = _feeds(source, validation, test, seed, team)
    main, classes = feeds[0], feeds[0].labels.classes
    copy, filled, scale = _copy(
        feeds, standardize=standardize, keep_type=keep_type, dtype=dtype, team=team
    )
    if classes and filled.least == filled.most:
        raise DataError(
            f"{source.name}: all {main.size(TRAIN)} training examples are of class "
            f"{classes[int(filled.least)]!r}; at least two classes are needed"
        )
    later = scale if keep_type else None
    parts = [Part(pair[0], pair[1], later) if pair else None for pair in copy.parts]
    training_part = parts[TRAIN]
    assert training_part is not None
    outputs = len(classes) if classes else main.examples.targets
    test_rows = len(parts[TEST] or ())
    training_rows = len(main.examples) - (test_rows if isinstance(test, float) else 0)
    return Dataset(
        training_part,
        parts[VALIDATION],
        parts[TEST],
        classes,
        outputs,
        scale,
        describe(source, training_rows, test_rows, outputs),
        source.columns,
        source.target,
        filled.sha256,
    )


def _copy(
    feeds: list[Feed], *, standardize: bool, keep_type: bool, dtype: np.dtype[Any], team: Team
) -> tuple[Copy, Filled, Standardization | None]:
    """Fill the copy of each host; numbers that the model holds exactly are read only once."""
    kept = np.result_type(*(feed.examples.x.schema.dtype for feed in feeds))
    exact = keep_type or np.can_cast(kept, dtype)
    name, scale = feeds[0].name, None

    def ready(x: Array, out: Array) -> None:
        """Write features as the network takes them."""
        with np.errstate(over="ignore"):
            if scale:
                scale.apply_to(x, out)
            else:
                out[...] = x
        require_range(out, dtype, f"{name}: a feature")

    if not exact or any(feed.examples.x.whole for feed in feeds):
        feeds = [feed._replace(examples=spooled(feed.examples, team)) for feed in feeds]
    if exact:
        copy = Copy(feeds, kept if keep_type else dtype, dtype, team)
        filled = copy.fill(lambda x, out: np.copyto(out, x))
        train = copy.parts[TRAIN]
        assert train is not None
        if standardize:
            scale = fit_standardization(ArrayRows(train[0], name), team)
        if scale or keep_type:
            copy.scale(ready, store=not keep_type)
        return copy, filled, scale
    training: Rows = feeds[0].examples.x
    if feeds[0].size(TRAIN) < len(training):
        training = PartRows(training, feeds[0].split, TRAIN)
    if standardize:
        scale = fit_standardization(training, team)
    copy = Copy(feeds, dtype, dtype, team)
    return copy, copy.fill(ready), scale


def describe(source: Source, training: int, test: int, outputs: int) -> str:
    """Return one line for the log, with the numbers of examples to train and to test on."""
    what = "classes" if source.task.classes else "targets"
    counted = "1 target" if outputs == 1 else f"{outputs} {what}"
    return (
        f"{source.name}: {training} training and {test or 'no'} test examples, "
        f"{source.train.features} features, {counted} ({source.task.name})"
    )


def _feeds(
    source: Source,
    validation: float | Source,
    test: float | Source | None,
    seed: int,
    team: Team,
) -> list[Feed]:
    """Return where the examples of all parts come from, the source itself first."""
    n = len(source.train)
    held_out = [round(v * n) if isinstance(v, float) else 0 for v in (validation, test)]
    if sum(held_out) >= n:
        raise DataError(
            f"{source.name}: holding {sum(held_out)} of {n} examples out leaves "
            "none to train on; lower data.validation or data.test"
        )
    train = source.train
    labels, train = labels_of(source, train, team)
    split = Split(n, train.features, held_out, seed, team)
    feeds = [Feed(train, labels, split, source.name)]
    others = [(TEST, source.test, source)] if test is None and source.test else []
    others += [
        (part, other.train, other)
        for part, other in ((VALIDATION, validation), (TEST, test))
        if isinstance(other, Source)
    ]
    for part, examples, other in others:
        key = "validation" if part == VALIDATION else "test"
        for what, mine, its in (
            ("features", train.features, examples.features),
            ("targets", train.targets, examples.targets),
        ):
            if mine != its:
                raise DataError(
                    f"data.{key} has {its} {what}, the training part {mine}; "
                    "both need the same columns"
                )
        same = labels
        if other is not source:
            same, examples = labels_of(other, examples, team)
        same = same.translated(labels.classes, other.name)
        everything = Split(len(examples), examples.features, (0, 0), seed, team)
        feeds.append(Feed(examples, same, everything, source.name, part))
    return feeds


def labels_of(source: Source, examples: Examples, team: Team) -> tuple[Labels, Examples]:
    """Find the classes of a source among its training examples.

    Returns
    -------
    labels : Labels
    examples : Examples
        Where reading them is slow, with the targets in memory.
    """
    if source.task.classes and source.classes is None:
        examples = spooled(examples, team, only_y=True)
    where = f"{examples.where} labels"
    column = source.label_column or where
    return find_labels(source.task, examples.y, source.classes, where, column, team), examples
