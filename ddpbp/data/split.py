"""Which examples are held out: a function of seed and row alone, computed block by block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws
from ddpbp.data.order import Order
from ddpbp.data.rows import Array, Rows, Schema, block_rows, block_slice, read_rows
from ddpbp.data.team import Team

VALIDATION, TEST, TRAIN = range(3)
Int64 = npt.NDArray[np.int64]


class Split:
    """The parts of one source: the first positions of an order of its rows are held out.

    Each part keeps the order of the file.

    Parameters
    ----------
    n, columns : int
        The rows and their columns; together they decide the length of a block.
    held_out : sequence of int
        The rows held out for validation and for the test.
    seed : int
    team : Team
        Its ranks count the rows of each part.

    Attributes
    ----------
    sizes : tuple of int
        The rows of validation, test and training.
    block_rows, blocks : int
        The rows of a block, but for a shorter last one, and their number.
    """

    def __init__(
        self, n: int, columns: int, held_out: Sequence[int], seed: int, team: Team
    ) -> None:
        self.n, self.block_rows = n, block_rows(columns)
        self.blocks = -(-n // self.block_rows)
        self._ends = np.cumsum(held_out)
        self.sizes = (*held_out, n - sum(held_out))
        self._order = Order(n, seed, draws.SPLIT) if any(held_out) else None
        counts = self._counts(team) if self._order else None
        self._firsts = None if counts is None else np.cumsum([np.zeros(3, np.int64), *counts], 0)

    def _counts(self, team: Team) -> Int64:
        """Return the rows of each block that belong to each part."""

        def count(run: range) -> list[Int64]:
            return [np.bincount(self.parts(block), minlength=3) for block in run]

        counts = team.divide(self.blocks, count, lambda every: [c for run in every for c in run])
        return np.array(counts, np.int64)

    def rows(self, block: int) -> slice:
        """Return the rows of a block, as a slice of the source."""
        return block_slice(block, self.block_rows, self.n)

    def parts(self, block: int) -> npt.NDArray[np.int64]:
        """Return the part of each row of a block."""
        rows = self.rows(block)
        if self._order is None:
            return np.full(rows.stop - rows.start, TRAIN)
        places = self._order.places(np.arange(rows.start, rows.stop))
        return np.searchsorted(self._ends, places, side="right")

    def first(self, part: int, block: int) -> int:
        """Return the place in its part of the first row of a block that belongs to it."""
        if self._firsts is None:
            return block * self.block_rows
        return int(self._firsts[block, part])

    def block_of(self, part: int, row: int) -> int:
        """Return the block that holds a row of a part."""
        if self._firsts is None:
            return row // self.block_rows
        return int(np.searchsorted(self._firsts[:, part], row, side="right")) - 1


class PartRows(Rows):
    """The rows of one part of a source, in the order of the file.

    The last block that was read is kept: reading from begin to end reads each block once.

    Parameters
    ----------
    rows : Rows
        All rows of the source.
    split : Split
    part : int
    """

    def __init__(self, rows: Rows, split: Split, part: int) -> None:
        self._rows, self._split, self._part = rows, split, part
        self._block, self._held = -1, np.empty(0)

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return self._rows.schema

    def __len__(self) -> int:
        return self._split.sizes[self._part]

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        at = rows.start
        while at < rows.stop:
            block = self._split.block_of(self._part, at)
            held = self._chosen(block)
            begin = at - self._split.first(self._part, block)
            taken = held[begin : begin + rows.stop - at]
            out[at - rows.start : at - rows.start + len(taken)] = taken
            at += len(taken)

    def _chosen(self, block: int) -> Array:
        if block != self._block:
            whole = read_rows(self._rows, self._split.rows(block), self.schema.dtype)
            self._block = block
            self._held = whole[self._split.parts(block) == self._part]
        return self._held
