"""Activations σ and their derivatives, as a table.

To add one, write its functions and give it an entry in `ACTIVATIONS`; nothing else names it.

Every function works in the dtype of its arrays and stays finite for |z| up to 1e4 in float32 (and
far beyond in float64). Arrays are (..., n_l, B): an example is a column.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base.blocks import blocks

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Activation:
    """One activation a = σ(z).

    Attributes
    ----------
    value : (z, out) -> None
        Writes σ(z) to `out`, which is never z. May shift z where σ does not see the shift.
    slope : (z, a, out) -> None, or None
        Writes σ′(z) to `out`, from z or from a = σ(z), whichever is cheaper; `out` may be z.
        None means σ′ = 1. Ignored where there is a `pullback`.
    kinks : tuple of float
        The values of z where σ′ jumps; finite differences must not cross them.
    pullback : (z, a, delta) -> None, or None
        Only for a σ that is not elementwise: replaces ∂L/∂a in `delta` by δ = Jᵀ ∂L/∂a, J the
        Jacobian of σ. May use z as scratch memory.
    hidden : bool
        Whether hidden layers may use it; if not, it is for the output layer only.
    """

    value: Callable[[Array, Array], None]
    slope: Callable[[Array, Array, Array], None] | None
    kinks: tuple[float, ...] = ()
    pullback: Callable[[Array, Array, Array], None] | None = None
    hidden: bool = True

    def pull_back(self, z: Array, a: Array, delta: Array) -> None:
        """Replace ∂L/∂a in `delta` by δ = ∂L/∂z, which is ∂L/∂a ⊙ σ′(z) if σ is elementwise.

        Parameters
        ----------
        z, a, delta : (..., n_l, B) float
            z is overwritten.
        """
        if self.pullback is not None:
            self.pullback(z, a, delta)
        elif self.slope is not None:
            self.slope(z, a, z)
            np.multiply(delta, z, out=delta)


def _identity(z: Array, out: Array) -> None:
    np.copyto(out, z)


def _sigmoid(z: Array, out: Array) -> None:
    # 1 / (1 + exp(-z)). Below the bound exp(-z) would overflow; σ is 0 there to every digit.
    np.maximum(z, -80.0 if z.dtype == np.float32 else -700.0, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1.0
    np.reciprocal(out, out=out)


def _sigmoid_slope(z: Array, a: Array, out: Array) -> None:
    # σ′ = σ (1 - σ)
    np.subtract(1.0, a, out=out)
    out *= a


def _tanh(z: Array, out: Array) -> None:
    np.tanh(z, out=out)


def _tanh_slope(z: Array, a: Array, out: Array) -> None:
    # σ′ = 1 - σ²
    np.multiply(a, a, out=out)
    np.subtract(1.0, out, out=out)


def _relu(z: Array, out: Array) -> None:
    np.maximum(z, 0.0, out=out)


def _relu_slope(z: Array, a: Array, out: Array) -> None:
    np.greater(z, 0.0, out=out)


LEAK = 0.01


def _leaky_relu(z: Array, out: Array) -> None:
    np.multiply(z, LEAK, out=out)
    np.maximum(z, out, out=out)


def _leaky_relu_slope(z: Array, a: Array, out: Array) -> None:
    np.greater(z, 0.0, out=out)
    np.maximum(out, LEAK, out=out)


def _elu(z: Array, out: Array) -> None:
    # z where z > 0, else exp(z) - 1; expm1(min(z, 0)) >= z holds exactly below 0
    np.minimum(z, 0.0, out=out)
    np.expm1(out, out=out)
    np.maximum(z, out, out=out)


def _elu_slope(z: Array, a: Array, out: Array) -> None:
    np.minimum(a, 0.0, out=out)
    out += 1.0


_C, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def _gelu_tanh(z: Array, out: Array) -> None:
    # t = tanh(c (z + 0.044715 z³))
    np.multiply(z, z, out=out)
    out *= _CUBIC
    out += 1.0
    out *= z
    out *= _C
    np.tanh(out, out=out)


def _gelu(z: Array, out: Array) -> None:
    # ½ z (1 + t), Hendrycks and Gimpel 2016, the tanh form
    _gelu_tanh(z, out)
    out += 1.0
    out *= z
    out *= 0.5


def _gelu_slope(z: Array, a: Array, out: Array) -> None:
    # ½ (1 + t) + ½ z (1 - t²) c (1 + 3 · 0.044715 z²) = ½ (1 + t) (1 + (1 - t) z c (1 + ...))
    for z_block, block in blocks(z, out):
        t = np.empty_like(block)
        _gelu_tanh(z_block, t)
        rest = z_block * z_block
        rest *= 3.0 * _CUBIC
        rest += 1.0
        rest *= _C
        rest *= z_block
        rest *= 1.0 - t
        rest += 1.0
        t += 1.0
        t *= rest
        np.multiply(t, 0.5, out=block)


def _silu(z: Array, out: Array) -> None:
    _sigmoid(z, out)
    out *= z


def _silu_slope(z: Array, a: Array, out: Array) -> None:
    # s (1 + z (1 - s)) with s = sigmoid(z)
    for z_block, block in blocks(z, out):
        s = np.empty_like(block)
        _sigmoid(z_block, s)
        rest = 1.0 - s
        rest *= z_block
        rest += 1.0
        np.multiply(s, rest, out=block)


def _softplus(z: Array, out: Array) -> None:
    np.logaddexp(z, 0.0, out=out)


def _softplus_slope(z: Array, a: Array, out: Array) -> None:
    _sigmoid(z, out)


def _softmax(z: Array, out: Array) -> None:
    # over the units (axis -2) of each example; z itself is shifted to a maximum of 0
    z -= np.maximum.reduce(z, axis=-2, keepdims=True)
    np.exp(z, out=out)
    out /= np.add.reduce(out, axis=-2, keepdims=True)


def _softmax_pullback(z: Array, a: Array, delta: Array) -> None:
    # δ_i = a_i (∂L/∂a_i - Σ_j a_j ∂L/∂a_j)
    np.multiply(a, delta, out=z)
    np.subtract(delta, z.sum(axis=-2, keepdims=True), out=delta)
    delta *= a


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(_identity, None),
    "sigmoid": Activation(_sigmoid, _sigmoid_slope),
    "tanh": Activation(_tanh, _tanh_slope),
    "relu": Activation(_relu, _relu_slope, kinks=(0.0,)),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_slope, kinks=(0.0,)),
    "elu": Activation(_elu, _elu_slope, kinks=(0.0,)),
    "gelu": Activation(_gelu, _gelu_slope),
    "silu": Activation(_silu, _silu_slope),
    "softplus": Activation(_softplus, _softplus_slope),
    "softmax": Activation(_softmax, None, pullback=_softmax_pullback, hidden=False),
}


def hidden_activations() -> list[str]:
    """Return the names of the activations that hidden layers may use."""
    return [name for name, activation in ACTIVATIONS.items() if activation.hidden]
