"""The canonical tree over the leaves of a step: the owner of each leaf, and the order of sums.

Node (level, i) covers leaves [i·2^level, (i+1)·2^level), cut at `size`. Its value is left + right;
without a right child it is left. So the parenthesisation depends on the number of leaves alone. A
rank that owns a run of leaves forms the nodes that lie inside its run, its *cover*. The covers of
all ranks, in order, form the root.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Value = TypeVar("Value", float, npt.NDArray[Any])
Span = tuple[int, int]  # leaves [start, stop)


def leaf_count(examples: int, micro_batch_size: int) -> int:
    """Return the number of leaves of a batch: ceil(examples / micro_batch_size)."""
    return -(-examples // micro_batch_size)


def deal(size: int, rank: int, world_size: int, full: int = 0) -> Span:
    """Return the contiguous run of leaves that `rank` owns; it may be empty.

    Parameters
    ----------
    size : int
        The number of leaves.
    rank, world_size : int
    full : int, optional
        The leaves of a full batch, by default `size`: they are dealt, and those from `size` on are
        missing. So a rank has the same places in every batch.
    """
    start, stop = ((full or size) * r // world_size for r in (rank, rank + 1))
    return min(start, size), min(stop, size)


def fold(spans: Iterable[Span], size: int) -> tuple[list[int], list[Span]]:
    """Combine neighbouring nodes as far as the tree allows.

    Parameters
    ----------
    spans : iterable of (start, stop)
        Nodes of the tree, in order and without gaps: single leaves, or covers of runs.
    size : int
        The number of leaves of the whole tree.

    Returns
    -------
    merges : list of int
        The program of a stack machine: push node j, then `merges[j]` times pop the top of the stack
        and add it to the new top.
    nodes : list of (start, stop)
        The nodes on the stack at the end.
    """
    merges, stack = [], list[Span]()
    for span in spans:
        stack.append(span)
        count = 0
        while len(stack) > 1 and _siblings(stack[-2], stack[-1], size):
            _, stop = stack.pop()
            stack[-1] = (stack[-1][0], stop)
            count += 1
        merges.append(count)
    return merges, stack


def accumulate(
    values: Iterable[Value],
    merges: Sequence[int],
    rounded: Callable[[Value], None] | None = None,
) -> list[Value]:
    """Run the program of `fold` on numbers, or on arrays in place; return the nodes.

    `rounded` is applied to every sum, in place.
    """
    stack: list[Value] = []
    for value, count in zip(values, merges, strict=True):
        stack.append(value)
        for _ in range(count):
            right = stack.pop()
            stack[-1] += right
            if rounded:
                rounded(stack[-1])
    return stack


def rounds(merges: Sequence[int]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Arrange the additions of a program of `fold` in rounds of additions that are independent.

    Returns
    -------
    list of (left, right)
        Numbers of nodes: in each round, `nodes[left] += nodes[right]`. At last node 0 is the sum.
    """
    pairs, stack = list[list[tuple[int, int]]](), list[tuple[int, int]]()  # node, round it is ready
    for node, count in enumerate(merges):
        stack.append((node, 0))
        for _ in range(count):
            right, right_ready = stack.pop()
            left, left_ready = stack.pop()
            ready = max(left_ready, right_ready)
            pairs += [[] for _ in range(ready + 1 - len(pairs))]
            pairs[ready].append((left, right))
            stack.append((left, ready + 1))
    columns = (np.array(pair, np.intp).T for pair in pairs)
    return [(left, right) for left, right in columns]


def _siblings(left: Span, right: Span, size: int) -> bool:
    width = left[1] - left[0]
    full = width & (width - 1) == 0 and left[0] % (2 * width) == 0
    return full and right[1] == min(left[0] + 2 * width, size)


def run_program(
    size: int, rank: int, world_size: int, full: int = 0
) -> tuple[list[int], list[Span]]:
    """Return the merges and the cover of the leaves that `rank` owns, dealt as `deal` does."""
    start, stop = deal(size, rank, world_size, full)
    return fold(((leaf, leaf + 1) for leaf in range(start, stop)), size)


def cover(size: int, rank: int, world_size: int, full: int = 0) -> list[Span]:
    """Return the nodes that `rank` forms of its leaves, in a time that is logarithmic in them."""
    start, stop = deal(size, rank, world_size, full)
    nodes = list[Span]()
    while start < stop:
        width = start & -start or 1 << (size - 1).bit_length()
        while min(start + width, size) > stop:
            width //= 2
        nodes.append((start, min(start + width, size)))
        start += width
    return nodes


class Join(NamedTuple):
    """How neighbouring nodes form a larger one: which nodes, the program of `fold`, the result."""

    parts: slice
    merges: list[int]
    span: Span


def joins(spans: Sequence[Span], size: int) -> list[Join]:
    """Return the largest nodes that neighbouring nodes form, in order."""
    merges, nodes = fold(spans, size)
    joined, first = [], 0
    for node in nodes:
        last = first
        while last < len(spans) and spans[last][1] <= node[1]:
            last += 1
        joined.append(Join(slice(first, last), merges[first:last], node))
        first = last
    return joined


@lru_cache(maxsize=16)
def root_program(size: int, world_size: int, full: int = 0) -> tuple[list[int], list[int]]:
    """Return how many nodes each rank's cover has, and the merges of all of them into the root.

    Do not change the lists: they are made once.
    """
    covers = [cover(size, rank, world_size, full) for rank in range(world_size)]
    merges, nodes = fold(chain.from_iterable(covers), size)
    assert nodes == [(0, size)], "the covers of all ranks form the whole tree"
    return [len(cover) for cover in covers], merges
