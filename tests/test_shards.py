"""Batches: cut by index into leaves, dealt to ranks, entered at any step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpbp.base import draws
from ddpbp.data import shards as module
from ddpbp.data.order import Order
from ddpbp.data.shards import Shards, leaf_shapes

# examples, batch_size, micro_batch_size, ranks
CASES = [
    (23, 7, 2, 3),
    (23, 7, 3, 1),
    (24, 8, 2, 4),
    (17, 16, 3, 5),  # the last batch is one example: four ranks have no leaf
    (5, 8, 2, 3),  # fewer examples than a batch
    (1, 1, 1, 1),
    (101, 10, 1, 7),
    (50, 50, 50, 1),
]


def everyone(
    examples: int, batch_size: int, micro_batch_size: int, ranks: int, seed: int = 3
) -> list[Shards]:
    return [
        Shards(examples, batch_size, micro_batch_size, seed, rank, ranks) for rank in range(ranks)
    ]


@pytest.mark.parametrize("examples", [1, 5, 16, 17])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 17])
@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_leaf_shapes_cut_a_batch_by_index(examples, micro_batch_size, ranks):
    position = leaf = 0
    for rank in range(ranks):
        (start, stop), first, shapes = leaf_shapes(examples, micro_batch_size, rank, ranks)
        sizes = [size for count, size in shapes for _ in range(count)]
        assert start == leaf
        assert len(sizes) == stop - start
        if sizes:
            assert first == position
        for size in sizes:  # full leaves, but for the last one of the batch
            assert size == min(micro_batch_size, examples - position)
            position += size
        leaf = stop
    assert position == examples
    assert leaf == -(-examples // micro_batch_size)


@pytest.mark.parametrize("case", CASES)
def test_the_ranks_together_walk_the_order_once(case):
    examples, batch_size, micro_batch_size, ranks = case
    world = everyone(*case)
    steps = list(zip(*(rank.epoch(2) for rank in world), strict=True))
    assert len(steps) == world[0].steps_per_epoch == -(-examples // batch_size)
    order = Order(examples, 3, draws.EPOCH, 2)(np.arange(examples))
    for step, parts in enumerate(steps):
        whole = order[step * batch_size : (step + 1) * batch_size]
        np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), whole)
        for rank, part in enumerate(parts):
            full = -(-min(batch_size, examples) // micro_batch_size)
            leaves, first, shapes = leaf_shapes(len(whole), micro_batch_size, rank, ranks, full)
            assert (part.leaves, part.first, part.shapes) == (leaves, first, shapes)
            assert part.batch_examples == len(whole)
            assert part.leaf_count == -(-len(whole) // micro_batch_size)
            np.testing.assert_array_equal(part.indices, whole[first : first + part.rows])


def test_in_a_short_last_batch_a_rank_keeps_its_places_and_may_have_none():
    last = [list(rank.epoch(0))[-1] for rank in everyone(17, 16, 3, 5)]
    assert [part.rows for part in last] == [1, 0, 0, 0, 0]
    assert [part.shapes for part in last] == [((1, 1),), (), (), (), ()]
    assert {part.batch_examples for part in last} == {1}


@given(
    examples=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    micro_batch_size=st.integers(1, 64),
    ranks=st.integers(1, 9),
)
def test_a_place_in_any_batch_belongs_to_one_rank(examples, batch_size, micro_batch_size, ranks):
    owner: dict[int, set[int]] = {}
    for rank, shards in enumerate(everyone(examples, batch_size, micro_batch_size, ranks)):
        for part in shards.epoch(0):
            for leaf in range(*part.leaves):
                owner.setdefault(leaf, set()).add(rank)
    full = -(-min(examples, batch_size) // micro_batch_size)
    assert sorted(owner) == [*range(full)]
    assert {len(ranks) for ranks in owner.values()} == {1}


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_from_a_step_on_is_the_tail_of_the_whole(case, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 16)  # several calls an epoch
    for rank in everyone(*case):
        whole = list(rank.epoch(1))
        for first_step in range(rank.steps_per_epoch + 1):
            tail = list(rank.epoch(1, first_step))
            assert len(tail) == len(whole) - first_step
            for found, expected in zip(tail, whole[first_step:], strict=True):
                assert (found.first, found.leaves) == (expected.first, expected.leaves)
                np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("case", CASES)
def test_capacity_and_leaf_counts_foresee_the_epoch(case):
    for rank in everyone(*case):
        epoch = list(rank.epoch(0))
        assert rank.capacity >= max(batch.rows for batch in epoch)
        assert set(rank.leaf_counts) == {batch.leaf_count for batch in epoch}


def test_each_epoch_has_another_order():
    (rank,) = everyone(100, 100, 10, 1)
    (first,), (second,) = (rank.epoch(epoch) for epoch in (0, 1))
    assert np.count_nonzero(first.indices == second.indices) < 10
