"""Losses: values against plain formulas, (BP1) against differences, settings, and targets."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ddpbp.data.dataset import Part
from ddpbp.engine.loading import load
from ddpbp.nn.activations import ACTIVATIONS, Array
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.losses import LOSSES, CrossEntropy, Huber, Loss
from ddpbp.nn.network import Network

DELTA = 0.7  # of huber


def huber(r: float) -> float:
    return r * r / 2 if abs(r) <= DELTA else DELTA * (abs(r) - DELTA / 2)


# The share of one output in L, stated over the output a and the target y.
PLAIN: dict[str, Callable[[float, float], float]] = {
    "squared_error": lambda a, y: (a - y) ** 2 / 2,
    "absolute": lambda a, y: abs(a - y),
    "huber": lambda a, y: huber(a - y),
    "binary_cross_entropy": lambda a, y: -y * math.log(a) - (1 - y) * math.log(1 - a),
    "cross_entropy": lambda a, y: -y * math.log(a),
}


def targets_for(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if name == "cross_entropy":
        y = rng.random(shape)
        return np.asarray(y / y.sum(axis=-2, keepdims=True))  # not one-hot: smoothed
    return rng.random(shape) if name == "binary_cross_entropy" else rng.standard_normal(shape)


def case(name: str, dtype: Any = np.float64) -> tuple[Loss, Array, Array, Array]:
    """Return the loss, and z, a, y of 2 leaves of 6 examples with 5 outputs."""
    rng = np.random.default_rng(3)
    z = (2.0 * rng.standard_normal((2, 5, 6))).astype(dtype)
    a = np.empty_like(z)
    ACTIVATIONS[LOSSES[name].output].value(z, a)
    return LOSSES[name].bind(huber_delta=DELTA), z, a, targets_for(name, z.shape, rng).astype(dtype)


def test_every_loss_has_a_plain_formula():
    assert PLAIN.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_the_plain_formula(name):
    loss, z, a, y = case(name)
    out = np.empty_like(a)
    loss.value(z, a, y, out)
    expected = [PLAIN[name](*pair) for pair in zip(a.ravel(), y.ravel(), strict=True)]
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_bp1_d_a_is_the_derivative_of_the_plain_formula(name):
    loss, _, a, y = case(name)
    out, h = np.empty_like(a), 1e-6
    loss.d_a(a, y, out)
    plain = np.vectorize(PLAIN[name])
    difference = (plain(a + h, y) - plain(a - h, y)) / (2 * h)
    np.testing.assert_allclose(out, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.fused])
def test_bp1_fused_delta_is_the_general_equation(name):
    loss, z, a, y = case(name)
    delta = np.empty_like(a)
    loss.d_a(a, y, delta)
    assert loss.fused is not None
    ACTIVATIONS[loss.fused].pull_back(z, a, delta)
    np.testing.assert_allclose(a - y, delta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_far_out_values_and_derivatives_stay_finite(name):
    loss = LOSSES[name]()
    z = np.array([[1e4, -1e4, 1e4, -1e4], [-1e4, 1e4, 1e4, -1e4]], np.float32)
    y = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
    raw, a, out, d_a = z.copy(), np.empty_like(z), np.empty_like(z), np.empty_like(z)
    ACTIVATIONS[loss.output].value(z, a)
    loss.value(z, a, y, out)
    loss.d_a(a, y, d_a)
    assert np.isfinite(out).all()
    assert np.isfinite(d_a).all()
    if name == "cross_entropy":  # sure and right, sure and wrong, undecided twice
        np.testing.assert_allclose(out.sum(axis=0), [0, 2e4, math.log(2), math.log(2)], rtol=1e-6)
    if name == "binary_cross_entropy":
        np.testing.assert_array_equal(out, np.where((raw > 0) == (y > 0), 0.0, 1e4))


def test_huber_delta_moves_the_bend():
    a, y, out = np.array([[3.0]]), np.array([[0.0]]), np.empty((1, 1))
    for delta, expected in ((1.0, 2.5), (2.0, 4.0), (5.0, 4.5)):
        loss = Huber(delta)
        loss.value(a, a, y, out)
        assert out == expected
        loss.d_a(a, y, out)
        assert out == min(delta, 3.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_spreads_a_share_over_all_classes(smoothing):
    network = Network((1, 4), "relu", "softmax", np.dtype(np.float64))
    backprop = Backprop(network, CrossEntropy(smoothing), 3)
    part = Part(np.zeros((3, 1)), np.array([2, 0, 3]))
    load(backprop, part, slice(0, 3), ((1, 2), (1, 1)))
    y = np.concatenate([stack.y[0] for stack in backprop.stacks], axis=1)
    expected = [
        [(1 - smoothing) * (label == c) + smoothing / 4 for label in (2, 0, 3)] for c in range(4)
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-15)
    if not smoothing:
        assert set(y.ravel()) == {0.0, 1.0}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_takes_the_settings_that_it_reads_and_no_others(name):
    everything = {"huber_delta": 0.3, "label_smoothing": 0.2, "of_another_loss": 1.0}
    reads = {"huber": ("huber_delta",), "cross_entropy": ("label_smoothing",)}.get(name, ())
    assert LOSSES[name].settings() == reads
    bound = LOSSES[name].bind(**everything)
    assert vars(bound) == {setting: everything[setting] for setting in reads}
    assert LOSSES[name].bind() == LOSSES[name]()


@pytest.mark.parametrize("name", LOSSES)
def test_class_indices_become_one_hot_and_values_are_copied(name):
    out = np.full((3, 4), np.nan)
    LOSSES[name]().write_targets(np.array([2, 0, 3]), out)
    np.testing.assert_array_equal(out, np.eye(4)[[2, 0, 3]])
    values = np.arange(12.0).reshape(3, 4)
    LOSSES[name].bind(label_smoothing=0.1).write_targets(values, out)
    np.testing.assert_array_equal(out, values)
