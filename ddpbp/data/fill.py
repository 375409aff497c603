"""Filling the copies of the examples: each block of each source is read once, and put in its part.

The blocks are of a fixed number of rows; each rank reads its run of them. The hash of the data is
formed of the hashes of the blocks, so no number of ranks changes it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ddpbp.base.hashing import digest
from ddpbp.data.checks import require_range
from ddpbp.data.labels import Labels
from ddpbp.data.rows import Array, block_rows
from ddpbp.data.sources import Examples
from ddpbp.data.split import TEST, TRAIN, VALIDATION, Split
from ddpbp.data.team import Team

LINE_BYTES = 64  # every array begins at a cache line


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


class Filled(NamedTuple):
    """What filling found: the hash of this rank's copy, the least and the greatest label."""

    sha256: str
    least: float
    most: float


class Copy:
    """The parts in memory, one copy for the ranks of a host, which fill it together.

    Parameters
    ----------
    feeds : sequence of Feed
        Where the examples come from; the first one has training examples.
    kept, dtype : numpy.dtype
        The type of x in memory, and that of the model.
    team : Team

    Attributes
    ----------
    parts : list of (x, y) or None
        In the order of the parts.
    """

    def __init__(
        self, feeds: Sequence[Feed], kept: np.dtype[Any], dtype: np.dtype[Any], team: Team
    ) -> None:
        self._feeds, self._dtype, self._team = feeds, dtype, team
        main = feeds[0]
        layout: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for part in (VALIDATION, TEST, TRAIN):
            n = sum(feed.size(part) for feed in feeds)
            layout.append(((n, main.examples.features), kept))
            y_shape = main.labels.shape(n, main.examples.targets)
            layout.append((y_shape, np.dtype(main.labels.dtype)))
        ends = np.cumsum([-(-prod(shape) * kind.itemsize // LINE_BYTES) for shape, kind in layout])
        self._shared = team.share(int(ends[-1]) * LINE_BYTES, "the examples")
        arrays = [
            self._shared.memory[int(end) * LINE_BYTES :][: prod(shape) * kind.itemsize]
            .view(kind)
            .reshape(shape)
            for end, (shape, kind) in zip([0, *ends[:-1]], layout, strict=True)
        ]
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        self.parts = [pair if len(pair[0]) else None for pair in pairs]

    def fill(self, write: Callable[[Array, Array], None]) -> Filled:
        """Read all blocks of all feeds once, this rank its run of them.

        Parameters
        ----------
        write : callable
            Takes rows as they were read, and where to write them.
        """
        blocks = [(feed, block) for feed in self._feeds for block in range(feed.split.blocks)]
        labels = [np.inf, -np.inf]

        def work(run: range) -> tuple[list[bytes], float, float]:
            digests = []
            for done, i in enumerate(run):
                self._team.tick(self._feeds[0].name, done, len(run))
                digests.append(self._fill_block(*blocks[i], write, labels))
            return digests, labels[0], labels[1]

        def combine(every: list[tuple[list[bytes], float, float]]) -> list[Filled]:
            least, most = min(v[1] for v in every), max(v[2] for v in every)
            copies = self._team.copies([v[0] for v in every], self._shared)
            return [Filled(_sha256(copy), least, most) for copy in copies]

        found = self._team.divide(len(blocks), work, combine, self._shared)
        return found[self._team.copy_index(self._shared)]

    def _fill_block(
        self, feed: Feed, block: int, write: Callable[[Array, Array], None], labels: list[float]
    ) -> bytes:
        """Read a block, write its rows to their parts, and return its hash."""
        rows = feed.split.rows(block)
        x, raw = feed.examples.read(rows)
        where = f"{feed.examples.where} labels"
        y = feed.labels.targets(raw, feed.examples.y.words, where, rows.start)
        require_range(y, self._dtype, f"{feed.name}: a target")
        for part, first, chosen in feed.places(block):
            pair = self.parts[part]
            assert pair is not None
            mine = y[chosen]
            pair[1][first : first + len(mine)] = mine
            write(x[chosen], pair[0][first : first + len(mine)])
            if part == TRAIN and feed.labels.classes:
                labels[:] = min(labels[0], mine.min()), max(labels[1], mine.max())
        return bytes.fromhex(digest([x, y]))

    def scale(self, apply: Callable[[Array, Array], None], *, store: bool) -> None:
        """Bring all features into their final form, in place, or see that the model can do it.

        Parameters
        ----------
        apply : callable
            Takes rows in memory and where to write what the network takes; may be the same rows.
        store : bool
            Keep the result.
        """
        blocks = []
        for pair in filter(None, self.parts):
            x = pair[0]
            size = block_rows(x.shape[1])
            blocks += [x[start : start + size] for start in range(0, len(x), size)]

        def work(run: range) -> None:
            for i in run:
                out = blocks[i] if store else np.empty(blocks[i].shape, self._dtype)
                apply(blocks[i], out)

        self._team.divide(len(blocks), work, lambda _: None, self._shared)


def _sha256(runs: list[list[bytes]]) -> str:
    """Return the hash over the hashes of all blocks, in their order."""
    h = hashlib.sha256()
    for run in runs:
        for block in run:
            h.update(block)
    return h.hexdigest()
