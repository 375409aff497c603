"""Toy entries from outside the package: each is one assignment into its table, and works."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ddpbp.base import tree
from ddpbp.nn.activations import ACTIVATIONS, Activation, Array
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.initializations import INITIALIZATIONS, Initialization
from ddpbp.nn.layers.layer import Calls, Layer
from ddpbp.nn.layers.table import LAYERS
from ddpbp.nn.losses import LOSSES, Loss
from ddpbp.nn.network import Network, initialize
from ddpbp.nn.optimizers import OPTIMIZERS, Elementwise, Hyperparameters, Step
from ddpbp.nn.schedules import SCHEDULES, Schedule, ScheduleSettings, factor

# --- nn ------------------------------------------------------------------------------------------


def _problem(
    *,
    hidden: str = "tanh",
    loss: str = "squared_error",
    kinds: tuple[str, ...] = (),
    **settings: Any,
) -> tuple[Network, Backprop]:
    """Return a network of layers 4-5-5-3, with three leaves of 2 examples and one of 1."""
    network = Network((4, 5, 5, 3), hidden, "identity", np.dtype(np.float64), kinds=kinds)
    backprop = Backprop(network, LOSSES[loss].bind(**settings), 7)
    backprop.arrange(((3, 2), (1, 1)))
    rng = np.random.default_rng(1)
    backprop.x[...] = rng.standard_normal(backprop.x.shape)
    backprop.loss.write_targets(rng.standard_normal(backprop.y.shape), backprop.y)
    return network, backprop


def _mean_loss(backprop: Backprop, network: Network, flat: Array) -> float:
    backprop.forward(network.views(flat))
    return sum(backprop.losses()) / 7


def _assert_gradient_is_right(
    network: Network, backprop: Backprop, rule: str = "he_normal"
) -> None:
    """Compare ∂L/∂θ with central differences, element by element."""
    theta, h = initialize(network, rule, 3), 1e-6
    theta.flat[:] += 0.1  # biases too
    merges, nodes = tree.fold([(i, i + 1) for i in range(4)], 4)
    assert nodes == [(0, 4)]
    grad = network.views(np.full(network.parameter_count, np.nan))
    backprop.forward(theta)
    for _ in backprop.backward(theta, [grad], merges, 7):
        pass
    differences = [
        (
            _mean_loss(backprop, network, theta.flat + e)
            - _mean_loss(backprop, network, theta.flat - e)
        )
        / (2 * h)
        for e in h * np.eye(network.parameter_count)
    ]
    np.testing.assert_allclose(grad.flat, differences, rtol=1e-6, atol=1e-8)
    assert (np.abs(grad.flat) > 1e-6).any()


def test_a_toy_activation_is_one_entry(monkeypatch):
    def value(z: Array, out: Array) -> None:
        np.sin(z, out=out)

    def slope(z: Array, a: Array, out: Array) -> None:
        np.cos(z, out=out)

    monkeypatch.setitem(ACTIVATIONS, "sine", Activation(value, slope))
    _assert_gradient_is_right(*_problem(hidden="sine"))


def test_a_toy_activation_that_is_not_elementwise_is_one_entry(monkeypatch):
    def value(z: Array, out: Array) -> None:  # a = z minus its mean over the units
        np.subtract(z, z.mean(axis=-2, keepdims=True), out=out)

    def pullback(z: Array, a: Array, delta: Array) -> None:
        delta -= delta.mean(axis=-2, keepdims=True)

    monkeypatch.setitem(ACTIVATIONS, "centred", Activation(value, None, pullback=pullback))
    _assert_gradient_is_right(*_problem(hidden="centred"))


@dataclass(frozen=True)
class Quantile(Loss):
    """L = Σ ½ w (a - y)², where w is τ below the target and 1 - τ above it."""

    tau: float = 0.5

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        out[...] = 0.5 * np.where(a < y, self.tau, 1.0 - self.tau) * (a - y) ** 2

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        out[...] = np.where(a < y, self.tau, 1.0 - self.tau) * (a - y)


def test_a_toy_loss_with_a_setting_is_one_entry(monkeypatch):
    monkeypatch.setitem(LOSSES, "quantile", Quantile)
    assert LOSSES["quantile"].settings() == ("tau",)
    values = []
    for tau in (0.2, 0.9):
        network, backprop = _problem(loss="quantile", tau=tau, huber_delta=1.0)
        _assert_gradient_is_right(network, backprop)
        values.append(_mean_loss(backprop, network, np.zeros(network.parameter_count)))
    assert values[0] != values[1]


class SignDescent(Elementwise):
    """v ← μ v + g;  θ ← θ − η sign(v)."""

    state_names = ("v",)

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        (v,) = state
        v *= step.h.momentum
        v += step.decayed(theta, grad, s)
        np.multiply(step.eta, np.sign(v), out=s)


def test_a_toy_optimizer_is_one_entry(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "sign", SignDescent)
    network, _ = _problem()
    optimizer = OPTIMIZERS["sign"](network, Hyperparameters())
    theta, grad = np.zeros(network.parameter_count), np.ones(network.parameter_count)
    grad[::2] = -2.0
    optimizer.update(theta, grad, 0.25)
    np.testing.assert_array_equal(theta, -0.25 * np.sign(grad))
    np.testing.assert_array_equal(optimizer.state["v"], grad)


def test_a_toy_schedule_is_one_entry(monkeypatch):
    def linear(step: int, s: ScheduleSettings) -> float:
        return 1.0 - step / s.steps

    monkeypatch.setitem(SCHEDULES, "linear", Schedule(linear, depends_on_length=True))
    settings = ScheduleSettings(steps=8, steps_per_epoch=4, warmup_steps=2)
    assert [factor("linear", step, settings) for step in (0, 1, 2, 6, 10)] == [0.5, 1, 1, 0.5, 0]


def test_a_toy_initialization_is_one_entry(monkeypatch):
    def signs(key: int, places: Array, variance: float) -> Array:
        return np.where(places % 2, variance, -variance)

    monkeypatch.setitem(INITIALIZATIONS, "signs", Initialization(lambda n_in, n: 1 / n_in, signs))
    theta = initialize(_problem()[0], "signs", 0)
    np.testing.assert_array_equal(theta.W[3][0], [-0.2, 0.2, -0.2, 0.2, -0.2])
    assert not theta.b[3].any()


class Scale(Layer):
    """zˡ = W ⊙ aˡ⁻¹ + bˡ: one weight per unit, as in the last step of a normalisation."""

    @staticmethod
    def shapes(n_in: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert n_in == n
        return (n, 1), (n, 1)

    def initialize(self, W: Array, b: Array, rule: Initialization, key: int) -> None:
        W[...] = 1.0

    def forward(self, W: Array, b: Array, below: Array, z: Array, a: Array) -> Calls:
        yield np.multiply, (W, below, z)
        yield np.add, (z, b, z)
        yield self.sigma.value, (z, a)

    def pull_back(self, W: Array, below: Array, delta: Array, out: Array) -> Calls:
        yield np.multiply, (W, delta, out)

    def weight_gradient(self, below: Array, delta: Array, rows: slice, out: Array) -> Calls:
        yield self._sum_of_products, (delta[..., rows, :], below[..., rows, :], out)

    def bias_gradient(self, below: Array, delta: Array, out: Array) -> Calls:
        yield np.add.reduce, (delta, -1, None, out, True)

    def _sum_of_products(self, left: Array, right: Array, out: Array) -> None:
        np.add.reduce(left * right, axis=-1, keepdims=True, out=out)


@pytest.mark.parametrize("small_net_bytes", [0, 2**30])
def test_a_toy_layer_is_one_entry(monkeypatch, small_net_bytes):
    monkeypatch.setattr("ddpbp.nn.workspace.SMALL_NET_BYTES", small_net_bytes)
    monkeypatch.setattr("ddpbp.nn.backprop.GRADIENT_ROWS", 2)
    monkeypatch.setitem(LAYERS, "scale", Scale)
    network, backprop = _problem(kinds=("dense", "scale", "dense"))
    assert network.parameter_count == (4 + 1) * 5 + 2 * 5 + (5 + 1) * 3
    _assert_gradient_is_right(network, backprop)
