"""The canonical tree: which sums form, in which order, on any number of ranks."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest

from ddpbp.base import tree

SIZES = range(1, 41)


def by_definition(start: int, stop: int) -> str:
    """Return the sum of leaves [start, stop), a node of the tree, as a parenthesised text.

    The left child is the largest aligned node that does not fill the whole.
    """
    if stop - start == 1:
        return str(start)
    width = 1
    while 2 * width < stop - start:
        width *= 2
    return f"({by_definition(start, start + width)}+{by_definition(start + width, stop)})"


def run(values: Iterable[str], merges: Iterable[int]) -> list[str]:
    """Run a program of `fold` on texts."""
    stack: list[str] = []
    for value, count in zip(values, merges, strict=True):
        stack.append(value)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = f"({stack[-1]}+{right})"
    return stack


def leaves(start: int, stop: int) -> list[tree.Span]:
    return [(leaf, leaf + 1) for leaf in range(start, stop)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8])
def test_the_definition_itself(size):
    assert (
        by_definition(0, size)
        == {
            1: "0",
            2: "(0+1)",
            3: "((0+1)+2)",
            5: "(((0+1)+(2+3))+4)",
            6: "(((0+1)+(2+3))+(4+5))",
            7: "(((0+1)+(2+3))+((4+5)+6))",
            8: "(((0+1)+(2+3))+((4+5)+(6+7)))",
        }[size]
    )


def test_cover_is_what_a_rank_forms_of_its_leaves():
    for size in SIZES:
        for ranks in (1, 2, 3, 5, 8, 50):
            for rank in range(ranks):
                _, formed = tree.run_program(size, rank, ranks)
                assert tree.cover(size, rank, ranks) == formed


def test_rounds_add_what_the_program_adds():
    for size in SIZES:
        for ranks in (1, 2, 3, 8):
            covers = [tree.cover(size, rank, ranks) for rank in range(ranks)]
            nodes = np.array([by_definition(*node) for cover in covers for node in cover], object)
            for left, right in tree.rounds(tree.root_program(size, ranks)[1]):
                nodes[left] = "(" + nodes[left] + "+" + nodes[right] + ")"
            assert nodes[0] == by_definition(0, size)


def test_fold_forms_the_sum_of_the_definition():
    for size in SIZES:
        merges, nodes = tree.fold(leaves(0, size), size)
        assert nodes == [(0, size)]
        assert run(map(str, range(size)), merges) == [by_definition(0, size)]


def test_a_rank_forms_whole_nodes_and_as_few_as_there_are():
    for size in SIZES:
        for world_size in range(1, size + 3):
            for rank in range(world_size):
                start, stop = tree.deal(size, rank, world_size)
                merges, nodes = tree.run_program(size, rank, world_size)
                sums = run(map(str, range(start, stop)), merges)
                assert sums == [by_definition(*node) for node in nodes]
                assert [leaf for node in nodes for leaf in range(*node)] == [*range(start, stop)]
                for (a, b), (c, d) in pairwise(nodes):
                    assert f"({by_definition(a, b)}+{by_definition(c, d)})" not in by_definition(
                        0, size
                    ), "siblings inside a run are added"


def test_any_number_of_ranks_forms_the_sum_of_the_definition():
    for size, full in [(size, size + more) for size in SIZES for more in (0, 1, 5)]:
        for world_size in range(1, size + 3):
            covers = []
            for rank in range(world_size):
                merges, nodes = tree.run_program(size, rank, world_size, full)
                start, stop = tree.deal(size, rank, world_size, full)
                assert (
                    range(start, stop) == range(*tree.deal(full, rank, world_size))[: stop - start]
                )
                covers.append(run(map(str, range(start, stop)), merges))
                assert len(covers[-1]) == len(nodes)
            counts, root = tree.root_program(size, world_size, full)
            assert counts == [len(cover) for cover in covers]
            everything = [node for cover in covers for node in cover]
            assert run(everything, root) == [by_definition(0, size)]


class Text:
    """A text whose sum is parenthesised: what `accumulate` adds shows its order."""

    def __init__(self, text: object) -> None:
        self.text = str(text)

    def __add__(self, other: "Text") -> "Text":
        return Text(f"({self.text}+{other.text})")


def test_accumulate_runs_the_program():
    for size in SIZES:
        merges, _ = tree.fold(leaves(0, size), size)
        values = [np.array([Text(leaf)], object) for leaf in range(size)]
        ((actual,),) = tree.accumulate(values, merges)
        assert actual.text == by_definition(0, size)


def test_leaves_are_dealt_in_order_and_evenly():
    for size in SIZES:
        for world_size in range(1, size + 3):
            runs = [tree.deal(size, rank, world_size) for rank in range(world_size)]
            assert [leaf for run in runs for leaf in range(*run)] == list(range(size))
            counts = [stop - start for start, stop in runs]
            assert max(counts) - min(counts) <= 1


def test_leaf_count_rounds_up():
    actual = [tree.leaf_count(examples, 4) for examples in (1, 3, 4, 5, 8, 9)]
    assert actual == [1, 1, 1, 2, 2, 3]
