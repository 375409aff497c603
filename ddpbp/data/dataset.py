"""The examples of a run as the network takes them, one copy for the ranks of a host.

The ranks read each source in blocks of a fixed number of rows, each rank its run of blocks, and
write them where they belong: split, standardised, in the model's dtype. Statistics and hashes are
formed of the same blocks, so no number of ranks changes a bit.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.base.hashing import digest
from ddpbp.data.checks import require_range
from ddpbp.data.labels import Labels, find_labels
from ddpbp.data.rows import Array, Rows
from ddpbp.data.sources import Examples, Source
from ddpbp.data.split import TEST, TRAIN, VALIDATION, PartRows, Split
from ddpbp.data.spool import spooled
from ddpbp.data.standardization import Standardization, fit_standardization
from ddpbp.data.team import Shared, Team
from ddpbp.errors import DataError

LINE_BYTES = 64  # every array begins at a cache line


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


class Feed(NamedTuple):
    """One source of rows, and the part to which each of them belongs.

    Attributes
    ----------
    examples : Examples
    labels : Labels
    split : Split
    name : str
        The source, for messages.
    all_of : int
        The part that takes all rows, or -1: the split decides.
    """

    examples: Examples
    labels: Labels
    split: Split
    name: str
    all_of: int = -1

    def size(self, part: int) -> int:
        """Return the number of rows that belong to a part."""
        if self.all_of >= 0:
            return len(self.examples) if part == self.all_of else 0
        return self.split.sizes[part]

    def places(self, block: int) -> Iterator[tuple[int, int, Array | slice]]:
        """Yield (part, place of its first row there, which rows) of a block."""
        if self.all_of >= 0:
            yield self.all_of, self.split.first(TRAIN, block), slice(None)
            return
        parts = self.split.parts(block)
        for part in (VALIDATION, TEST, TRAIN):
            if (chosen := parts == part).any():
                yield part, self.split.first(part, block), chosen


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
    feeds, classes = _feeds(source, validation, test, seed, team)
    main = feeds[0]
    training: Rows = main.examples.x
    if main.split.sizes[TRAIN] < len(training):
        training = PartRows(training, main.split, TRAIN)
    scale = fit_standardization(training, team) if standardize else None
    kept = main.examples.x.schema.dtype if keep_type else dtype
    shared, parts = _allocate(feeds, kept, team)
    later = scale if keep_type else None
    filled = _Filling(feeds, parts, scale, dtype, shared, team, raw=keep_type).run()
    if classes and filled.least == filled.most:
        raise DataError(
            f"{source.name}: all {main.size(TRAIN)} training examples are of class "
            f"{classes[int(filled.least)]!r}; at least two classes are needed"
        )
    ready = [None if part is None else Part(*part, later) for part in parts]
    train = ready[TRAIN]
    assert train is not None
    outputs = len(classes) if classes else main.examples.targets
    test_rows = len(ready[TEST] or ())
    training_rows = len(main.examples) - (test_rows if isinstance(test, float) else 0)
    return Dataset(
        train,
        ready[VALIDATION],
        ready[TEST],
        classes,
        outputs,
        scale,
        describe(source, training_rows, test_rows, outputs),
        source.columns,
        source.target,
        filled.sha256,
    )


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
) -> tuple[list[Feed], tuple[str, ...] | None]:
    """Return where the examples of all parts come from, the source itself first."""
    n = len(source.train)
    held_out = [round(v * n) if isinstance(v, float) else 0 for v in (validation, test)]
    if sum(held_out) >= n:
        raise DataError(
            f"{source.name}: holding {sum(held_out)} of {n} examples out leaves "
            "none to train on; lower data.validation or data.test"
        )
    train = spooled(source.train, team)
    labels = labels_of(source, train, team)
    split = Split(n, train.features, held_out, seed, team)
    feeds = [Feed(train, labels, split, source.name)]
    others = [(TEST, source.test, source)] if test is None and source.test else []
    others += [
        (part, other.train, other)
        for part, other in ((VALIDATION, validation), (TEST, test))
        if isinstance(other, Source)
    ]
    for part, stored, other in others:
        key = "validation" if part == VALIDATION else "test"
        if stored.features != train.features:
            raise DataError(
                f"data.{key} has {stored.features} features, the training part "
                f"{train.features}; both need the same columns"
            )
        if stored.targets != train.targets:
            raise DataError(
                f"data.{key} has {stored.targets} targets, the training part "
                f"{train.targets}; both need the same columns"
            )
        examples = spooled(stored, team)
        its = labels if other is source else labels_of(other, examples, team)
        its = its.translated(labels.classes, other.name)
        everything = Split(len(examples), examples.features, (0, 0), seed, team)
        feeds.append(Feed(examples, its, everything, source.name, part))
    return feeds, labels.classes


def labels_of(source: Source, examples: Examples, team: Team) -> Labels:
    """Find the classes of a source among its training examples."""
    where = f"{examples.where} labels"
    return find_labels(
        source.task, examples.y, source.classes, where, source.label_column or where, team
    )


def _allocate(
    feeds: Sequence[Feed], dtype: np.dtype[Any], team: Team
) -> tuple[Shared, list[tuple[Array, Array] | None]]:
    """Return memory for x and y of each part, in the order of the parts, one copy for a host."""
    main = feeds[0].examples
    labels = feeds[0].labels
    layout: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
    for part in (VALIDATION, TEST, TRAIN):
        n = sum(feed.size(part) for feed in feeds)
        layout.append(((n, main.features), dtype))
        layout.append((labels.shape(n, main.targets), np.dtype(labels.dtype)))
    ends = np.cumsum([-(-prod(shape) * kind.itemsize // LINE_BYTES) for shape, kind in layout])
    shared = team.share(int(ends[-1]) * LINE_BYTES, "the examples")
    arrays = [
        shared.memory[int(end) * LINE_BYTES :][: prod(shape) * kind.itemsize]
        .view(kind)
        .reshape(shape)
        for end, (shape, kind) in zip([0, *ends[:-1]], layout, strict=True)
    ]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    return shared, [pair if len(pair[0]) else None for pair in pairs]


class Filled(NamedTuple):
    """What the filling found: the hash of this rank's copy, the least and the greatest label."""

    sha256: str
    least: float
    most: float


class _Filling:
    """Reads all blocks of all feeds once, this rank its run of them, and writes the parts."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        parts: Sequence[tuple[Array, Array] | None],
        scale: Standardization | None,
        dtype: np.dtype[Any],
        shared: Shared,
        team: Team,
        *,
        raw: bool,
    ) -> None:
        self._raw = raw
        self._feeds, self._parts, self._scale = feeds, parts, scale
        self._dtype, self._shared, self._team = dtype, shared, team
        self._blocks = [(feed, b) for feed in feeds for b in range(feed.split.blocks)]
        self._least, self._most = np.inf, -np.inf

    def run(self) -> Filled:
        """Fill the parts of every host's copy."""

        def combine(every: list[tuple[list[bytes], float, float]]) -> list[Filled]:
            least, most = min(v[1] for v in every), max(v[2] for v in every)
            return [
                Filled(_sha256(copy), least, most)
                for copy in self._team.copies([v[0] for v in every], self._shared)
            ]

        copies = self._team.divide(len(self._blocks), self._work, combine, self._shared)
        return copies[self._team.copy_index(self._shared)]

    def _work(self, run: range) -> tuple[list[bytes], float, float]:
        digests = []
        for done, i in enumerate(run):
            self._team.tick(self._feeds[0].name, done, len(run))
            digests.append(self._block(*self._blocks[i]))
        return digests, self._least, self._most

    def _block(self, feed: Feed, block: int) -> bytes:
        """Read a block, write its rows to their parts, and return its hash."""
        rows = feed.split.rows(block)
        x, raw = feed.examples.read(rows)
        y = feed.labels.targets(
            raw, feed.examples.y.words, f"{feed.examples.where} labels", rows.start
        )
        with np.errstate(over="ignore"):
            scaled = self._scale.apply(x, self._dtype) if self._scale else x.astype(self._dtype)
        for what, values in (("feature", scaled), ("target", y)):
            require_range(values, self._dtype, f"{feed.name}: a {what}")
        for part, first, chosen in feed.places(block):
            target = self._parts[part]
            assert target is not None
            mine, mine_y = (x if self._raw else scaled)[chosen], y[chosen]
            target[0][first : first + len(mine)] = mine
            target[1][first : first + len(mine)] = mine_y
            if part == TRAIN and feed.labels.classes:
                self._least = min(self._least, mine_y.min())
                self._most = max(self._most, mine_y.max())
        return bytes.fromhex(digest([x, y]))


def _sha256(runs: list[list[bytes]]) -> str:
    """Return the hash over the hashes of all blocks, in their order."""
    h = hashlib.sha256()
    for run in runs:
        for block in run:
            h.update(block)
    return h.hexdigest()
