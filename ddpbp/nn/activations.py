"""Activations σ and their derivatives, as a table.

To add one, write its functions and give it an entry in `ACTIVATIONS`; nothing else names it.

Every function works in the dtype of its arrays and stays finite for |z| up to 1e4 in float32 (and
far beyond in float64). Arrays are (..., n_l, B): an example is a column.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base.blocks import BLOCK, blocks

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Activation:
    """One activation a = σ(z).

    Attributes
    ----------
    value : (z, out) -> None
        Writes σ(z) to `out`. May leave in z what `slope` needs, and may shift z where σ does not
        see the shift.
    slope : (z, a, out) -> None, or None
        Writes σ′(z) to `out`, from what `value` left in z or from a = σ(z); `out` may be z. None
        means σ′ = 1. Ignored where there is a `pullback`.
    kinks : tuple of float
        The values of z where σ′ jumps; finite differences must not cross them. If `in_place`, the
        same numbers are those of a.
    pullback : (z, a, delta) -> None, or None
        Only for a σ that is not elementwise: replaces ∂L/∂a in `delta` by δ = Jᵀ ∂L/∂a, J the
        Jacobian of σ. May use z as scratch memory.
    hidden : bool
        Whether hidden layers may use it; if not, it is for the output layer only.
    in_place : bool
        Whether `out` of `value` may be z: then z and a of a hidden layer are one array, so `slope`
        must not need z.
    """

    value: Callable[[Array, Array], None]
    slope: Callable[[Array, Array, Array], None] | None
    kinks: tuple[float, ...] = ()
    pullback: Callable[[Array, Array, Array], None] | None = None
    hidden: bool = True
    in_place: bool = False

    def pull_back(self, z: Array, a: Array, delta: Array) -> None:
        """Replace ∂L/∂a in `delta` by δ = ∂L/∂z, which is ∂L/∂a ⊙ σ′(z) if σ is elementwise.

        Parameters
        ----------
        z, a, delta : (..., n_l, B) float
            As `value` left them; z is overwritten.
        """
        if self.pullback is not None:
            self.pullback(z, a, delta)
        elif self.slope is not None:
            self.slope(z, a, z)
            np.multiply(delta, z, out=delta)


@cache
def _constant(value: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return one number as an array: NumPy's minimum and maximum are slow with a scalar."""
    return np.full(shape if math.prod(shape) <= BLOCK else shape[-1:], value, dtype)


def _maximum(z: Array, bound: float, out: Array) -> None:
    np.maximum(z, _constant(bound, z.shape, z.dtype), out=out)


def _minimum(z: Array, bound: float, out: Array) -> None:
    np.minimum(z, _constant(bound, z.shape, z.dtype), out=out)


def _identity(z: Array, out: Array) -> None:
    if out is not z:
        np.copyto(out, z)


def _sigmoid(z: Array, out: Array) -> None:
    # e / (1 + e) with e = exp(z). Above the bound exp(z) would overflow; σ is 1 there.
    _minimum(z, 80.0 if z.dtype == np.float32 else 700.0, out)
    np.exp(out, out=out)
    np.divide(out, 1.0 + out, out=out)


def _sigmoid_slope(z: Array, a: Array, out: Array) -> None:
    # σ′ = σ (1 - σ)
    np.multiply(a, 1.0 - a, out=out)


def _tanh(z: Array, out: Array) -> None:
    np.tanh(z, out=out)


def _tanh_slope(z: Array, a: Array, out: Array) -> None:
    # σ′ = 1 - σ²
    np.multiply(a, a, out=out)
    np.subtract(1.0, out, out=out)


def _relu(z: Array, out: Array) -> None:
    _maximum(z, 0.0, out)


def _relu_slope(z: Array, a: Array, out: Array) -> None:
    np.greater(a, 0.0, out=out)


LEAK = 0.01


def _leaky_relu(z: Array, out: Array) -> None:
    np.maximum(z, LEAK * z, out=out)


def _leaky_relu_slope(z: Array, a: Array, out: Array) -> None:
    np.greater(a, 0.0, out=out)
    _maximum(out, LEAK, out)


def _elu(z: Array, out: Array) -> None:
    # z where z > 0, else exp(z) - 1; expm1(min(z, 0)) >= z holds exactly below 0
    least = np.minimum(z, 0.0)
    np.expm1(least, out=least)
    np.maximum(z, least, out=out)


def _elu_slope(z: Array, a: Array, out: Array) -> None:
    _minimum(a, 0.0, out)
    out += 1.0


def _left_in_z(z: Array, a: Array, out: Array) -> None:
    """σ′ was formed with σ, which it shares its exponential with, and left in z."""
    if out is not z:
        np.copyto(out, z)


_C, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def _gelu(z: Array, out: Array) -> None:
    # ½ z (1 + t), t = tanh(c (z + 0.044715 z³)): Hendrycks and Gimpel 2016, the tanh form
    # σ′ = ½ (1 + t) + ½ z (1 - t²) c (1 + 3 · 0.044715 z²) = ½ (1 + t) (1 + (1 - t) z c (1 + ...))
    for z_block, a in blocks(z, out):
        square = z_block * z_block
        t = (_C * _CUBIC) * square
        t += _C
        t *= z_block
        np.tanh(t, out=t)
        square *= 3.0 * _C * _CUBIC
        square += _C
        square *= z_block
        square *= 1.0 - t
        square += 1.0
        t += 1.0
        t *= 0.5
        np.multiply(z_block, t, out=a)
        np.multiply(square, t, out=z_block)


def _silu(z: Array, out: Array) -> None:
    # z s with s = sigmoid(z); σ′ = s + z s (1 - s)
    for z_block, a in blocks(z, out):
        s = np.empty_like(a)
        _sigmoid(z_block, s)
        np.multiply(z_block, s, out=a)
        np.subtract(1.0, s, out=z_block)
        z_block *= a
        z_block += s


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
    "identity": Activation(_identity, None, in_place=True),
    "sigmoid": Activation(_sigmoid, _sigmoid_slope, in_place=True),
    "tanh": Activation(_tanh, _tanh_slope, in_place=True),
    "relu": Activation(_relu, _relu_slope, kinks=(0.0,), in_place=True),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_slope, kinks=(0.0,), in_place=True),
    "elu": Activation(_elu, _elu_slope, kinks=(0.0,), in_place=True),
    "gelu": Activation(_gelu, _left_in_z),
    "silu": Activation(_silu, _left_in_z),
    "softplus": Activation(_softplus, _softplus_slope),
    "softmax": Activation(_softmax, None, pullback=_softmax_pullback, hidden=False),
}


def hidden_activations() -> list[str]:
    """Return the names of the activations that hidden layers may use."""
    return [name for name, activation in ACTIVATIONS.items() if activation.hidden]
