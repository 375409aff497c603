"""Optimizers: what becomes of θ given the averaged gradient g, as a table.

All of them are elementwise over the flat vectors, but for the norms of LARS and LAMB and of
clipping, which are summed over blocks of a fixed size. η is the learning rate of the step, λ the
weight decay; biases are not decayed unless asked.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK
from ddpbp.nn.network import Network

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The numbers of all optimizers; each reads its own."""

    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    rho: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decay_biases: bool = False
    clip_norm: float = 0.0
    trust_coefficient: float = 0.001


@dataclass
class _Step:
    """What one update knows besides its arrays."""

    eta: float
    scale: float  # of the gradient, by clipping
    h: Hyperparameters
    correction1: float  # 1 - β1ᵗ
    correction2: float  # 1 - β2ᵗ


# One update of one block: (step, θ, gradient, scratch, λ, *state), θ and state in place.
Rule = Callable[..., None]


def _clipped(step: _Step, grad: Array, s: Array) -> Array:
    """Return the gradient after clipping: itself, or scaled in s."""
    return grad if step.scale == 1.0 else np.multiply(grad, step.scale, out=s)


def _decayed(step: _Step, theta: Array, grad: Array, s: Array, decay: float) -> Array:
    """Return g + λ θ after clipping: the gradient itself, or in s."""
    g = _clipped(step, grad, s)
    return np.add(g, decay * theta, out=s) if decay else g


def _sgd(step: _Step, theta: Array, grad: Array, s: Array, decay: float) -> None:
    # θ ← θ − η (g + λ θ)
    g = _decayed(step, theta, grad, s, decay)
    np.multiply(g, step.eta, out=s)
    theta -= s


def _momentum(step: _Step, theta: Array, grad: Array, s: Array, decay: float, v: Array) -> None:
    # v ← μ v + g;  θ ← θ − η v      (Polyak 1964)
    g = _decayed(step, theta, grad, s, decay)
    v *= step.h.momentum
    v += g
    np.multiply(v, step.eta, out=s)
    theta -= s


def _nesterov(step: _Step, theta: Array, grad: Array, s: Array, decay: float, v: Array) -> None:
    # v ← μ v + g;  θ ← θ − η (g + μ v)      (Nesterov 1983, as in Sutskever et al. 2013)
    g = _decayed(step, theta, grad, s, decay)
    v *= step.h.momentum
    v += g
    np.add(g, step.h.momentum * v, out=s)
    s *= step.eta
    theta -= s


def _rmsprop(step: _Step, theta: Array, grad: Array, s: Array, decay: float, r: Array) -> None:
    # r ← ρ r + (1 − ρ) g²;  θ ← θ − η g / (√r + ε)      (Tieleman and Hinton 2012)
    g = _decayed(step, theta, grad, s, decay)
    r *= step.h.rho
    r += (1.0 - step.h.rho) * (g * g)
    np.divide(g, np.sqrt(r) + step.h.epsilon, out=s)
    s *= step.eta
    theta -= s


def _adam_direction(step: _Step, g: Array, s: Array, m: Array, v: Array) -> None:
    # m ← β1 m + (1 − β1) g;  v ← β2 v + (1 − β2) g²;  s ← m̂ / (√v̂ + ε)
    m *= step.h.beta1
    m += (1.0 - step.h.beta1) * g
    np.multiply(g, g, out=s)
    s *= 1.0 - step.h.beta2
    v *= step.h.beta2
    v += s
    np.multiply(v, 1.0 / step.correction2, out=s)
    np.sqrt(s, out=s)
    s += step.h.epsilon
    np.divide(m, s, out=s)
    s *= 1.0 / step.correction1


def _adam(
    step: _Step, theta: Array, grad: Array, s: Array, decay: float, m: Array, v: Array
) -> None:
    # θ ← θ − η m̂ / (√v̂ + ε)      (Kingma and Ba 2015); decay is part of the gradient
    _adam_direction(step, _decayed(step, theta, grad, s, decay), s, m, v)
    s *= step.eta
    theta -= s


def _adamw(
    step: _Step, theta: Array, grad: Array, s: Array, decay: float, m: Array, v: Array
) -> None:
    # θ ← θ − η (m̂ / (√v̂ + ε) + λ θ)      (Loshchilov and Hutter 2019)
    _adam_direction(step, _clipped(step, grad, s), s, m, v)
    if decay:
        s += decay * theta
    s *= step.eta
    theta -= s


RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "sgd": (_sgd, ()),
    "momentum": (_momentum, ("v",)),
    "nesterov": (_nesterov, ("v",)),
    "rmsprop": (_rmsprop, ("r",)),
    "adam": (_adam, ("m", "v")),
    "adamw": (_adamw, ("m", "v")),
}
"""Elementwise rules, with the names of their state vectors."""

LAYERWISE = {"lars": ("v",), "lamb": ("m", "v")}
"""Rules that scale each layer's step by its norms."""

OPTIMIZERS = (*RULES, *LAYERWISE)


class Optimizer:
    """One optimizer with its state: flat vectors as long as θ, and running products.

    Parameters
    ----------
    name : str
        One of `OPTIMIZERS`.
    network : Network
    hyperparameters : Hyperparameters

    Attributes
    ----------
    state : dict of str to (parameter_count,) float
    products : list of float
        β1ᵗ and β2ᵗ as running products: a power would not be the same on every machine.
    """

    def __init__(self, name: str, network: Network, hyperparameters: Hyperparameters) -> None:
        self.name, self._h = name, hyperparameters
        names = LAYERWISE[name] if name in LAYERWISE else RULES[name][1]
        self.state = {n: np.zeros(network.parameter_count, network.dtype) for n in names}
        self.products = [1.0, 1.0]
        width = network.parameter_count if name in LAYERWISE else BLOCK
        self._scratch = np.empty(min(width, network.parameter_count), network.dtype)
        self._tensors = list(self._tensor_spans(network))
        same_decay = name in RULES and (not self._h.weight_decay or self._h.decay_biases)
        spans = (
            [(0, network.parameter_count, self._h.weight_decay)] if same_decay else self._tensors
        )
        self._blocks = [
            (slice(i, min(i + BLOCK, end)), decay)
            for start, end, decay in spans
            for i in range(start, end, BLOCK)
        ]

    def _tensor_spans(self, network: Network) -> Iterator[tuple[int, int, float]]:
        decay = self._h.weight_decay
        for start_W, start_b, end in network.spans:
            yield start_W, start_b, decay
            yield start_b, end, decay if self._h.decay_biases else 0.0

    def update(self, theta: Array, grad: Array, eta: float) -> None:
        """Apply one step to θ in place.

        Parameters
        ----------
        theta : (parameter_count,) float
        grad : (parameter_count,) float
            The averaged gradient; left as it is.
        eta : float
            The learning rate of this step.
        """
        h = self._h
        self.products = [self.products[0] * h.beta1, self.products[1] * h.beta2]
        scale = clip_factor(grad, h.clip_norm) if h.clip_norm else 1.0
        step = _Step(eta, scale, h, 1.0 - self.products[0], 1.0 - self.products[1])
        state = tuple(self.state.values())
        if self.name in LAYERWISE:
            self._update_layerwise(step, theta, grad, state)
            return
        rule = RULES[self.name][0]
        for block, decay in self._blocks:
            s = self._scratch[: block.stop - block.start]
            rule(step, theta[block], grad[block], s, decay, *[vector[block] for vector in state])

    def _update_layerwise(
        self, step: _Step, theta: Array, grad: Array, state: Sequence[Array]
    ) -> None:
        # LARS (You et al. 2017):  r = g + λ θ,  v ← μ v + η φ r,  θ ← θ − v,
        #                          φ = coefficient · ‖θ‖ / (‖g‖ + λ ‖θ‖)
        # LAMB (You et al. 2020):  r = m̂ / (√v̂ + ε) + λ θ,  θ ← θ − η φ r,  φ = ‖θ‖ / ‖r‖
        # per weight matrix; biases take φ = 1.
        h = self._h
        for place, (start, end, decay) in enumerate(self._tensors):
            is_weight = place % 2 == 0
            t, r = theta[start:end], self._scratch[: end - start]
            vectors = [vector[start:end] for vector in state]
            pieces = [slice(i, i + BLOCK) for i in range(0, end - start, BLOCK)]
            for p in pieces:
                if self.name == "lars":
                    np.copyto(r[p], _decayed(step, t[p], grad[start:end][p], r[p], decay))
                    continue
                _adam_direction(
                    step,
                    _clipped(step, grad[start:end][p], r[p]),
                    r[p],
                    *(vector[p] for vector in vectors),
                )
                if decay:
                    r[p] += decay * t[p]
            trust = 1.0
            if is_weight and (t_norm := norm(t)) > 0.0:
                if self.name == "lars":
                    below = step.scale * norm(grad[start:end]) + decay * t_norm
                    trust = h.trust_coefficient * t_norm / below if below > 0.0 else 1.0
                else:
                    below = norm(r)
                    trust = t_norm / below if below > 0.0 else 1.0
            for p in pieces:
                r[p] *= step.eta * trust
                if self.name == "lars":
                    vectors[0][p] *= h.momentum
                    vectors[0][p] += r[p]
                    t[p] -= vectors[0][p]
                else:
                    t[p] -= r[p]


def norm(vector: Array) -> float:
    """Return the Euclidean norm: blocks of `BLOCK` elements, summed along the tree.

    Whatever the number of ranks or buckets, the blocks are the same.
    """
    squares = [_square(vector[i : i + BLOCK]) for i in range(0, vector.size, BLOCK)]
    merges, _ = tree.fold(((i, i + 1) for i in range(len(squares))), len(squares))
    return math.sqrt(tree.accumulate(squares, merges)[0])


def _square(block: Array) -> float:
    with np.errstate(over="ignore"):
        found = float(np.dot(block, block))
    if math.isfinite(found):
        return found
    wide = block.astype(np.float64)  # the squares of finite float32 can overflow
    return float(np.dot(wide, wide))


def clip_factor(grad: Array, largest: float) -> float:
    """Return what scales a gradient down to the norm `largest` (Pascanu et al. 2013), or 1."""
    length = norm(grad)
    return largest / length if length > largest else 1.0
