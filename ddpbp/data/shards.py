"""A rank's shard of every step: which leaves it owns, and which rows of the data they are.

A batch is `batch_size` consecutive positions of the epoch's order, cut by index into leaves of
`micro_batch_size`; the last leaf and the last batch may be shorter. The number of ranks decides
only which of the leaves this rank loads: its places in a full batch, of which a short last batch
may lack some or all.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws, tree
from ddpbp.data.order import Order

Array = npt.NDArray[Any]

POSITIONS_AT_ONCE = 4_096
"""Positions that one call of the order computes for a rank; no part of the arithmetic."""


class Shard(NamedTuple):
    """One rank's part of the batch of one step.

    Attributes
    ----------
    batch_examples : int
        The number of examples of the whole batch, over all ranks.
    leaf_count : int
        The number of leaves of the whole batch.
    leaves : (start, stop)
        The leaves this rank owns.
    first : int
        The position in the batch of this rank's first example.
    shapes : tuple of (count, size)
        This rank's leaves as runs of equal size: the full ones, then a shorter last one.
    indices : (rows,) int64
        The rows of the data set, in order.
    """

    batch_examples: int
    leaf_count: int
    leaves: tree.Span
    first: int
    shapes: tuple[tuple[int, int], ...]
    indices: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """The number of examples this rank loads."""
        return len(self.indices)


def leaf_shapes(
    examples: int, micro_batch_size: int, rank: int, world_size: int, full: int = 0
) -> tuple[tree.Span, int, tuple[tuple[int, int], ...]]:
    """Return the leaves of `rank` in a batch, its first example, and the shapes of its leaves.

    `full` is the number of leaves of a full batch; by default this one is full.
    """
    count = tree.leaf_count(examples, micro_batch_size)
    start, stop = tree.deal(count, rank, world_size, full)
    short = examples - (count - 1) * micro_batch_size
    has_short = stop == count and start < stop and short < micro_batch_size
    full = stop - start - has_short
    shapes = [(full, micro_batch_size)] if full else []
    if has_short:
        shapes.append((1, short))
    return (start, stop), start * micro_batch_size, tuple(shapes)


class Shards:
    """One rank's shards of the batches of all epochs.

    Parameters
    ----------
    examples : int
        The number of examples of the training part.
    batch_size, micro_batch_size, seed, rank, world_size : int
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.micro_batch_size, self.seed = micro_batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = -(-examples // batch_size)

    @property
    def leaf_counts(self) -> tuple[int, ...]:
        """The numbers of leaves a step may have: those of a full batch and of the last one."""
        sizes = {min(self.batch_size, self.examples)}
        if self.examples % self.batch_size:
            sizes.add(self.examples % self.batch_size)
        return tuple(sorted({tree.leaf_count(s, self.micro_batch_size) for s in sizes}))

    @property
    def capacity(self) -> int:
        """The largest number of rows that this rank loads in a step: those of a full batch."""
        _, _, shapes = self._leaves(min(self.batch_size, self.examples))
        return sum(count * size for count, size in shapes)

    @property
    def full_leaf(self) -> int:
        """The examples of a full leaf."""
        return min(self.micro_batch_size, self.examples)

    def _leaves(self, examples: int) -> tuple[tree.Span, int, tuple[tuple[int, int], ...]]:
        """Return what `leaf_shapes` does, for a batch of so many examples."""
        full = tree.leaf_count(min(self.batch_size, self.examples), self.micro_batch_size)
        return leaf_shapes(examples, self.micro_batch_size, self.rank, self.world_size, full)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Shard]:
        """Yield the batches of one epoch, from `first_step` on."""
        order = Order(self.examples, self.seed, draws.EPOCH, epoch)
        at_once = max(1, POSITIONS_AT_ONCE * self.world_size // self.batch_size)  # steps per call
        full, short = divmod(self.examples, self.batch_size)
        for begin in range(first_step, full, at_once):
            yield from self._batches(order, begin, min(begin + at_once, full), self.batch_size)
        if short and first_step <= full:
            yield from self._batches(order, full, full + 1, short)

    def _batches(self, order: Order, begin: int, end: int, examples: int) -> Iterator[Shard]:
        """Yield the batches of steps [begin, end), all of them of so many examples."""
        count = tree.leaf_count(examples, self.micro_batch_size)
        leaves, first, shapes = self._leaves(examples)
        rows = np.arange(first, first + sum(count * size for count, size in shapes))
        starts = self.batch_size * np.arange(begin, end)
        positions = starts[:, np.newaxis] + rows
        for indices in order(positions.reshape(-1)).reshape(positions.shape):
            yield Shard(examples, count, leaves, first, shapes, indices)
