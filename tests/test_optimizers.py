"""Optimizers: three steps against plain formulas, clipping, norms, and bits of blocks."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from ddpbp.nn import norms, optimizers
from ddpbp.nn.network import Array, Network
from ddpbp.nn.norms import norm
from ddpbp.nn.optimizers import OPTIMIZERS, Adam, Hyperparameters, Layerwise, Sgd

LAYERWISE = [name for name, optimizer in OPTIMIZERS.items() if issubclass(optimizer, Layerwise)]
ELEMENTWISE = [name for name in OPTIMIZERS if name not in LAYERWISE]
NETWORK = Network((3, 4, 2), "relu", "identity", np.dtype(np.float64))
TENSORS = [(s, b, True) for s, b, _ in NETWORK.spans] + [(b, e, False) for _, b, e in NETWORK.spans]
# None of the numbers is a default.
H = Hyperparameters(
    momentum=0.8, beta1=0.7, beta2=0.95, rho=0.6, epsilon=1e-3, trust_coefficient=0.02
)
ETA = 0.05

State = dict[str, float]


def length(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


def plain_direction(
    name: str, g: float, theta: float, decay: float, state: State, t: int, h: Hyperparameters
) -> float:
    """Return what η is multiplied with, for one parameter; `state` is its own dictionary."""
    coupled = g + decay * theta
    if name == "sgd":
        return coupled
    if name in ("momentum", "nesterov"):
        state["v"] = h.momentum * state.get("v", 0.0) + coupled
        return state["v"] if name == "momentum" else coupled + h.momentum * state["v"]
    if name == "rmsprop":
        state["s"] = h.rho * state.get("s", 0.0) + (1 - h.rho) * coupled**2
        return coupled / (math.sqrt(state["s"]) + h.epsilon)
    g = coupled if name == "adam" else g
    state["m"] = h.beta1 * state.get("m", 0.0) + (1 - h.beta1) * g
    state["v"] = h.beta2 * state.get("v", 0.0) + (1 - h.beta2) * g**2
    m_hat, v_hat = state["m"] / (1 - h.beta1**t), state["v"] / (1 - h.beta2**t)
    adam = m_hat / (math.sqrt(v_hat) + h.epsilon)
    return adam if name == "adam" else adam + decay * theta  # adamw, lamb


def plain_updates(
    name: str, theta: list[float], gradients: list[list[float]], h: Hyperparameters
) -> list[float]:
    theta, state = list(theta), [State() for _ in theta]
    for t, gradient in enumerate(gradients, 1):
        for start, end, is_weight in TENSORS:
            decay = h.weight_decay if is_weight or h.decay_biases else 0.0
            places = range(start, end)
            before = length(theta[i] for i in places)
            if name == "lars":
                trust = 1.0
                if is_weight:
                    below = length(gradient[start:end]) + decay * before
                    trust = h.trust_coefficient * before / below
                for i in places:
                    step = ETA * trust * (gradient[i] + decay * theta[i])
                    state[i]["v"] = h.momentum * state[i].get("v", 0.0) + step
                    theta[i] -= state[i]["v"]
                continue
            r = {
                i: plain_direction(name, gradient[i], theta[i], decay, state[i], t, h)
                for i in places
            }
            trust = before / length(r.values()) if name == "lamb" and is_weight else 1.0
            for i in places:
                theta[i] -= ETA * trust * r[i]
    return theta


def start(dtype: Any = np.float64) -> tuple[Array, Array]:
    rng = np.random.default_rng(4)
    theta = rng.standard_normal(NETWORK.parameter_count).astype(dtype)
    gradients = rng.standard_normal((3, NETWORK.parameter_count)).astype(dtype)
    return theta, gradients


def updated(
    name: str, h: Hyperparameters, network: Network = NETWORK, dtype: Any = np.float64
) -> Array:
    theta, gradients = start(dtype=dtype)
    optimizer = OPTIMIZERS[name](network, h)
    for gradient in gradients:
        optimizer.update(theta, gradient.copy(), ETA)
    return theta


@pytest.mark.parametrize("decay", ["none", "weights", "weights and biases"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_follow_the_plain_formula(name, decay):
    h = Hyperparameters(
        momentum=H.momentum, beta1=H.beta1, beta2=H.beta2, rho=H.rho, epsilon=H.epsilon,
        trust_coefficient=H.trust_coefficient, weight_decay=0.0 if decay == "none" else 0.3,
        decay_biases=decay == "weights and biases",
    )  # fmt: skip
    theta, gradients = start()
    expected = plain_updates(name, theta.tolist(), gradients.tolist(), h)
    np.testing.assert_allclose(updated(name, h), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LAYERWISE)
def test_weights_of_norm_zero_take_plain_steps(name):
    theta, gradients = np.zeros(NETWORK.parameter_count), start()[1]
    OPTIMIZERS[name](NETWORK, H).update(theta, gradients[0], ETA)
    assert np.isfinite(theta).all()
    assert (theta != 0.0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_gradients_leave_the_weights_finite(name):
    theta = start()[0]
    before = theta.copy()
    OPTIMIZERS[name](NETWORK, H).update(theta, np.zeros_like(theta), ETA)
    np.testing.assert_array_equal(theta, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_updates_in_blocks_have_the_bits_of_the_whole(name, dtype, monkeypatch):
    network = Network(NETWORK.sizes, "relu", "identity", np.dtype(dtype))
    h = Hyperparameters(weight_decay=0.1)
    whole = updated(name, h, network, dtype)
    monkeypatch.setattr(optimizers, "BLOCK", 5)
    assert updated(name, h, network, dtype).tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_stays_as_it_is(name):
    theta, (gradient, *_) = start()
    gradient.flags.writeable = False  # as in memory that ranks share
    h = Hyperparameters(clip_norm=1.0, weight_decay=0.1)
    OPTIMIZERS[name](NETWORK, h).update(theta, gradient, ETA)


def test_bias_correction_is_a_running_product():
    optimizer = Adam(NETWORK, H)
    theta, expected = start()[0], [1.0, 1.0]
    for _ in range(50):
        optimizer.update(theta, np.ones_like(theta), ETA)
        expected = [expected[0] * H.beta1, expected[1] * H.beta2]
    assert optimizer.products == expected


def test_clipping_shortens_long_gradients_and_no_others():
    theta, (gradient, *_) = start()
    size = length(gradient)
    for largest, factor in ((0.0, 1.0), (2 * size, 1.0), (size / 4, 0.25)):
        moved = theta.copy()
        Sgd(NETWORK, Hyperparameters(clip_norm=largest)).update(moved, gradient.copy(), ETA)
        np.testing.assert_allclose(theta - moved, ETA * factor * gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_comes_before_everything_else(name):
    actual, gradients = start()
    expected = actual.copy()
    clipping = OPTIMIZERS[name](NETWORK, Hyperparameters(clip_norm=0.5, weight_decay=0.3))
    plain = OPTIMIZERS[name](NETWORK, Hyperparameters(weight_decay=0.3))
    for gradient in gradients:
        clipping.update(actual, gradient, ETA)
        plain.update(expected, 0.5 * gradient / length(gradient), ETA)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_norm_is_the_same_sum_whatever_the_blocks(monkeypatch):
    vector = np.random.default_rng(5).standard_normal(1_000)
    for block in (1, 3, 32, 2_000):
        monkeypatch.setattr(norms, "BLOCK", block)
        assert norm(vector) == pytest.approx(length(vector.tolist()), rel=1e-14)


def test_a_huge_finite_gradient_is_clipped_not_infinite():
    network = Network(NETWORK.sizes, "relu", "identity", np.dtype(np.float32))
    gradient = np.full(network.parameter_count, 3e38, np.float32)
    assert norm(gradient) == pytest.approx(3e38 * math.sqrt(gradient.size), rel=1e-6)
    theta = np.zeros_like(gradient)
    Sgd(network, Hyperparameters(clip_norm=1.0)).update(theta, gradient, 1.0)
    np.testing.assert_allclose(theta, -1 / math.sqrt(gradient.size), rtol=1e-5)
