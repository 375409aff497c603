"""The order of the examples, random bits and dropout masks: functions, for any position alone."""

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddpbp.base import draws
from ddpbp.data.order import Order
from ddpbp.nn.dropout import Dropout


def epoch_order(n: int, seed: int = 0, epoch: int = 0) -> Order:
    return Order(n, seed, draws.EPOCH, epoch)


def shuffled(n: int, seed: int = 0, epoch: int = 0) -> npt.NDArray[Any]:
    return epoch_order(n, seed, epoch)(np.arange(n))


# --- π -------------------------------------------------------------------------------------------

ROOTS = st.integers(1, 60)
SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([2, 3, 5, 7, 97, 101, 251, 997, 1009, 3571]),  # primes
    st.builds(lambda root, around: root * root + around, ROOTS, st.integers(-1, 1)),
    st.builds(lambda root, around: root * (root + 1) + around, ROOTS, st.integers(-1, 1)),
    st.integers(0, 5_000),
)


@settings(deadline=None)
@given(n=SIZES, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
@example(n=0, seed=0, epoch=0)
def test_order_is_a_bijection(n, seed, epoch):
    np.testing.assert_array_equal(np.sort(shuffled(n, seed, epoch)), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1, 3_000), data=st.data())
def test_any_positions_alone_have_their_place_in_the_whole(n, data):
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    np.testing.assert_array_equal(epoch_order(n)(positions), shuffled(n)[positions])


def test_a_position_of_a_billion_examples_is_quick():
    order, positions = epoch_order(10**9), np.array([0, 123_456_789, 10**9 - 1])
    began = time.perf_counter()
    found = order(positions)
    assert time.perf_counter() - began < 1.0
    assert ((found >= 0) & (found < 10**9)).all()
    assert len(set(found.tolist())) == 3


def test_seeds_and_epochs_have_orders_of_their_own():
    n = 1_000
    orders = [shuffled(n, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        assert np.count_nonzero(one == np.arange(n)) < 10  # of a random one: 1 on average
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 10


@pytest.mark.parametrize("n", [10, 97, 100])
def test_every_example_comes_at_every_position_equally_often(n):
    epochs = 1_000
    seen = np.zeros((n, n))
    steps = np.zeros(n)
    for epoch in range(epochs):
        order = shuffled(n, 1, epoch)
        seen[np.arange(n), order] += 1
        steps += np.bincount(np.diff(order) % n, minlength=n)
    for counts, expected, freedom in (
        (seen, epochs / n, (n - 1) ** 2),
        (steps[1:], epochs, n - 2),  # from an example to the next there is no usual distance
    ):
        chi_square = ((counts - expected) ** 2).sum() / expected
        assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


# --- draws ---------------------------------------------------------------------------------------


def test_bits_are_those_of_splitmix64():
    # the published outputs for seed 0, the first four
    counter = np.arange(1, 5, dtype=np.uint64)
    assert [f"{v:016x}" for v in draws.bits(0, counter).tolist()] == [
        "e220a8397b1dcdaf",
        "6e789e6aa1b965f4",
        "06c45d188009454f",
        "f88bb8a8724c81ec",
    ]


def test_draws_never_change():
    key, counter = draws.key(7, draws.EPOCH, 3), np.array([0, 1, 2**63], np.uint64)
    assert key == 15236862905922740744
    assert draws.uniform(key, counter).tolist() == [
        0.91003247489852,
        0.5781097680770209,
        0.16663601096498037,
    ]
    np.testing.assert_allclose(draws.normal(key, counter[:2]), [-1.93563249972, 1.27528856697])
    keep = Dropout(0.5, 7).keep(step=3, l=1, start=2, examples=2, units=6)
    assert keep.astype(int).tolist() == [[0, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0]]


def test_purposes_are_numbered_for_good():
    assert (draws.INITIAL, draws.DROPOUT, draws.EPOCH, draws.SPLIT) == (1, 2, 3, 4)
    assert (draws.FEATURES, draws.TEACHER, draws.CANARY, draws.DIRECTION) == (5, 6, 7, 8)


def test_every_word_of_a_key_and_its_place_count():
    words = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1), (2**63 - 1,)]
    assert len({draws.key(*w) for w in words}) == len(words)


def test_a_draw_depends_on_its_counter_alone():
    key, counter = draws.key(1), np.arange(1_000, dtype=np.uint64)
    for function in (draws.bits, draws.uniform, draws.normal):
        whole = function(key, counter)
        for start, stop in ((0, 1), (3, 20), (999, 1_000), (17, 400)):
            np.testing.assert_array_equal(function(key, counter[start:stop]), whole[start:stop])


def test_uniform_fills_zero_to_one_evenly():
    values = draws.uniform(draws.key(1), np.arange(100_000, dtype=np.uint64))
    assert values.min() >= 0.0
    assert values.max() < 1.0
    counts = np.histogram(values, 100, (0.0, 1.0))[0]
    assert abs(((counts - 1_000) ** 2).sum() / 1_000 - 99) < 5 * math.sqrt(2 * 99)
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.02


def test_normal_has_mean_0_and_deviation_1():
    values = draws.normal(draws.key(2), np.arange(100_000, dtype=np.uint64))
    assert abs(values.mean()) < 0.015
    assert abs(values.std() - 1.0) < 0.015
    assert abs(np.mean(abs(values) < 1.0) - 0.6827) < 0.01


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 3, 4, 5, 64])
def test_masks_are_equal_for_any_split_of_the_examples(units):
    dropout = Dropout(0.3, 5)
    whole = dropout.keep(9, 2, 0, 30, units)
    assert whole.shape == (30, units)
    for edges in ((0, 30), (0, 1, 30), (0, 7, 8, 29, 30), range(31)):
        parts = [dropout.keep(9, 2, start, stop - start, units) for start, stop in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_by_it(rate):
    dropout = Dropout(rate, 5)
    keep = dropout.keep(0, 1, 0, 500, 101)
    assert abs(keep.mean() - (1.0 - rate)) < 0.01
    assert abs(keep.mean(axis=0) - (1.0 - rate)).max() < 0.1  # each unit alone
    assert dropout.scale == pytest.approx(1.0 / (1.0 - rate), rel=1e-4)


def test_seeds_steps_and_layers_have_masks_of_their_own():
    masks = [
        Dropout(0.5, seed).keep(step, l, 0, 10, 100)
        for seed, step, l in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 0.4 < np.mean(one == other) < 0.6


@given(n=st.integers(1, 5_000), seed=st.integers(0, 2**62))
def test_places_are_the_inverse_of_the_order(n, seed):
    order, every = Order(n, seed, 3), np.arange(n)
    np.testing.assert_array_equal(order.places(order(every)), every)
    np.testing.assert_array_equal(order(order.places(every)), every)
