"""Optimizers: how θ follows from the averaged gradient g, as a table.

To add one, write its class and give it an entry in `OPTIMIZERS`; nothing else names it.

All of them are elementwise over the flat vectors, except for the norms of LARS, LAMB and clipping,
which are summed over blocks of a fixed size. η is the learning rate of the step, λ the weight
decay; biases are decayed only with `decay_biases`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.base.blocks import BLOCK
from ddpbp.nn.network import Network
from ddpbp.nn.norms import clip_factor, norm

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
class Step:
    """The numbers of one update, and the arithmetic that rules share.

    Attributes
    ----------
    eta : float
        η.
    scale : float
        The factor on the gradient: 1, or less if it is clipped.
    h : Hyperparameters
    correction1, correction2 : float
        1 - β1ᵗ and 1 - β2ᵗ.
    decay : float
        λ of the block at hand.
    """

    eta: float
    scale: float
    h: Hyperparameters
    correction1: float
    correction2: float
    decay: float = 0.0

    def clipped(self, grad: Array, s: Array) -> Array:
        """Return the gradient after clipping: `grad` itself, or scaled in s."""
        return grad if self.scale == 1.0 else np.multiply(grad, self.scale, out=s)

    def decayed(self, theta: Array, grad: Array, s: Array) -> Array:
        """Return g + λ θ after clipping: `grad` itself, or the sum in s."""
        g = self.clipped(grad, s)
        return np.add(g, self.decay * theta, out=s) if self.decay else g


class Piece(NamedTuple):
    """A part of the flat vectors that is updated by itself: a block, or one W[l] or b[l]."""

    start: int
    end: int
    decay: float
    is_weight: bool


class Optimizer:
    """One optimizer with its state: flat vectors as long as θ, and running products.

    Parameters
    ----------
    network : Network
    hyperparameters : Hyperparameters

    Attributes
    ----------
    state_names : tuple of str
        The names of the state vectors.
    state : dict of str to (parameter_count,) float
    products : list of float
        β1ᵗ and β2ᵗ as running products: a power would not be the same on every machine.
    pieces : list of Piece
        The parts of θ that are updated one after the other, or side by side.
    in_place : bool
        `write_step` can take the gradient itself as s, which then ends as the step.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    pieces: list[Piece]
    in_place = False

    def __init__(self, network: Network, hyperparameters: Hyperparameters) -> None:
        self.h = h = hyperparameters
        self.state = {
            name: np.zeros(network.parameter_count, network.dtype) for name in self.state_names
        }
        self.products = [1.0, 1.0]
        self._dtype = network.dtype
        self._tensors: list[Piece] = []
        for start_W, start_b, end in network.spans:
            self._tensors += [
                Piece(start_W, start_b, h.weight_decay, True),
                Piece(start_b, end, h.weight_decay if h.decay_biases else 0.0, False),
            ]

    @cached_property
    def scratch(self) -> Array:
        """Memory for the step of one piece."""
        return np.empty(max(p.end - p.start for p in self.pieces), self._dtype)

    def begin(self, grad: Array, eta: float) -> Step:
        """Begin one step: advance the products, and measure the gradient if it is to be clipped."""
        h = self.h
        self.products = [self.products[0] * h.beta1, self.products[1] * h.beta2]
        scale = clip_factor(grad, h.clip_norm) if h.clip_norm else 1.0
        return Step(eta, scale, h, 1.0 - self.products[0], 1.0 - self.products[1])

    def update(self, theta: Array, grad: Array, eta: float) -> None:
        """Apply one step of learning rate η to θ in place; the averaged gradient stays as it is."""
        step, vectors = self.begin(grad, eta), self.state.values()
        for piece in self.pieces:
            part = slice(piece.start, piece.end)
            t = theta[part]
            s = self.scratch[: t.size]
            self.write_step(step, piece, t, grad[part], s, [vector[part] for vector in vectors])
            t -= s

    def write_step(
        self, step: Step, piece: Piece, theta: Array, grad: Array, s: Array, state: Sequence[Array]
    ) -> None:
        """Write to s what θ is lowered by in one piece; update the state vectors in place.

        All arrays are those of the piece, (n,) float; `theta` and `grad` are not changed.
        """
        raise NotImplementedError


class Elementwise(Optimizer):
    """An optimizer that treats every parameter by itself: `rule`, block after block."""

    in_place = True

    def __init__(self, network: Network, hyperparameters: Hyperparameters) -> None:
        super().__init__(network, hyperparameters)
        spans = [(t.start, t.end, t.decay) for t in self._tensors]
        if len({decay for _, _, decay in spans}) == 1:
            spans = [(0, network.parameter_count, spans[0][2])]
        self.pieces = [
            Piece(i, min(i + BLOCK, end), decay, True)
            for start, end, decay in spans
            for i in range(start, end, BLOCK)
        ]

    def write_step(
        self, step: Step, piece: Piece, theta: Array, grad: Array, s: Array, state: Sequence[Array]
    ) -> None:
        step.decay = piece.decay
        self.rule(step, theta, grad, s, *state)

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        """Write to s what one block of θ is lowered by; update the state vectors in place.

        Parameters
        ----------
        step : Step
        theta, grad : (n,) float
            Do not change them: use the array that `step.clipped` or `step.decayed` returns.
        s : (n,) float
            May be `grad`, and what those return: read them before the last write to s.
        *state : (n,) float
            As in `state_names`.
        """
        raise NotImplementedError


class Sgd(Elementwise):
    """θ ← θ − η (g + λ θ)."""

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        g = step.decayed(theta, grad, s)
        np.multiply(g, step.eta, out=s)


class Momentum(Elementwise):
    """v ← μ v + g;  θ ← θ − η v (Polyak 1964)."""

    state_names = ("v",)

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        (v,) = state
        g = step.decayed(theta, grad, s)
        v *= step.h.momentum
        v += g
        np.multiply(v, step.eta, out=s)


class Nesterov(Elementwise):
    """v ← μ v + g;  θ ← θ − η (g + μ v) (Nesterov 1983, as in Sutskever et al. 2013)."""

    state_names = ("v",)

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        (v,) = state
        g = step.decayed(theta, grad, s)
        v *= step.h.momentum
        v += g
        np.add(g, step.h.momentum * v, out=s)
        s *= step.eta


class RmsProp(Elementwise):
    """r ← ρ r + (1 − ρ) g²;  θ ← θ − η g / (√r + ε) (Tieleman and Hinton 2012)."""

    state_names = ("r",)

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        (r,) = state
        g = step.decayed(theta, grad, s)
        r *= step.h.rho
        r += (1.0 - step.h.rho) * (g * g)
        np.divide(g, np.sqrt(r) + step.h.epsilon, out=s)
        s *= step.eta


def adam_direction(step: Step, g: Array, s: Array, m: Array, v: Array) -> None:
    """Write m̂ / (√v̂ + ε) to s, with m ← β1 m + (1 − β1) g and v ← β2 v + (1 − β2) g²."""
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


class Adam(Elementwise):
    """θ ← θ − η m̂ / (√v̂ + ε), decay as a part of the gradient (Kingma and Ba 2015)."""

    state_names = ("m", "v")

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        adam_direction(step, step.decayed(theta, grad, s), s, *state)
        s *= step.eta


class AdamW(Elementwise):
    """θ ← θ − η (m̂ / (√v̂ + ε) + λ θ) (Loshchilov and Hutter 2019)."""

    state_names = ("m", "v")

    def rule(self, step: Step, theta: Array, grad: Array, s: Array, *state: Array) -> None:
        adam_direction(step, step.clipped(grad, s), s, *state)
        if step.decay:
            s += step.decay * theta
        s *= step.eta


class Layerwise(Optimizer):
    """An optimizer that scales the step of each W[l] by a trust ratio φ; biases take φ = 1.

    r ← `direction`, φ ← `trust`, r ← η φ r, then `finish`; θ ← θ − r. Its pieces are the tensors.
    """

    def __init__(self, network: Network, hyperparameters: Hyperparameters) -> None:
        super().__init__(network, hyperparameters)
        self.pieces = self._tensors

    def write_step(
        self, step: Step, piece: Piece, theta: Array, grad: Array, s: Array, state: Sequence[Array]
    ) -> None:
        step.decay = piece.decay
        blocks = [slice(i, i + BLOCK) for i in range(0, s.size, BLOCK)]
        for p in blocks:
            self.direction(step, theta[p], grad[p], s[p], *[v[p] for v in state])
        trust = 1.0
        if piece.is_weight and (theta_norm := norm(theta)) > 0.0:
            trust = self.trust(step, theta_norm, grad, s)
        for p in blocks:
            s[p] *= step.eta * trust
            self.finish(s[p], *[v[p] for v in state])

    def direction(self, step: Step, theta: Array, grad: Array, r: Array, *state: Array) -> None:
        """Write r of one block; arguments as in `Elementwise.rule`."""
        raise NotImplementedError

    def trust(self, step: Step, theta_norm: float, grad: Array, r: Array) -> float:
        """Return φ of a W[l] of norm `theta_norm`, which is not 0, from all of its g and r."""
        raise NotImplementedError

    def finish(self, r: Array, *state: Array) -> None:
        """Make r of one block, which is already scaled, what θ is lowered by."""


class Lars(Layerwise):
    """r = g + λ θ;  v ← μ v + η φ r;  θ ← θ − v (You et al. 2017).

    φ = coefficient · ‖θ‖ / (‖g‖ + λ ‖θ‖).
    """

    state_names = ("v",)

    def direction(self, step: Step, theta: Array, grad: Array, r: Array, *state: Array) -> None:
        np.copyto(r, step.decayed(theta, grad, r))

    def trust(self, step: Step, theta_norm: float, grad: Array, r: Array) -> float:
        below = step.scale * norm(grad) + step.decay * theta_norm
        return step.h.trust_coefficient * theta_norm / below if below > 0.0 else 1.0

    def finish(self, r: Array, *state: Array) -> None:
        (v,) = state
        v *= self.h.momentum
        v += r
        np.copyto(r, v)


class Lamb(Layerwise):
    """r = m̂ / (√v̂ + ε) + λ θ;  θ ← θ − η φ r, with φ = ‖θ‖ / ‖r‖ (You et al. 2020)."""

    state_names = ("m", "v")

    def direction(self, step: Step, theta: Array, grad: Array, r: Array, *state: Array) -> None:
        adam_direction(step, step.clipped(grad, r), r, *state)
        if step.decay:
            r += step.decay * theta

    def trust(self, step: Step, theta_norm: float, grad: Array, r: Array) -> float:
        below = norm(r)
        return theta_norm / below if below > 0.0 else 1.0


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RmsProp,
    "adam": Adam,
    "adamw": AdamW,
    "lars": Lars,
    "lamb": Lamb,
}
