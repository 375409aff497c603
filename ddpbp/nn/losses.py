"""Losses L, their derivatives ∂L/∂a and, where one exists, the fused δᴸ, as a table.

Every loss is the **sum** over the outputs of one example; over the examples of a batch it is the
sum divided once by their number. Arrays are (..., n_L, B): an example is a column.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes
    ----------
    value : (z, a, y, out) -> None
        Writes each element's share of L; may use z where a = σ(z) has lost digits.
    d_a : (a, y, out) -> None
        Writes ∂L/∂a.
    output : str
        The output activation taken when none is configured.
    tasks : tuple of str
        The tasks it serves; the first is assumed when none is configured.
    fused : str or None
        The output activation with which δᴸ = a - y, (BP1) in closed form.
    outputs : tuple of str or None
        The output activations it is defined for; None is any.
    kinks : (a, y) -> (...) distances
        Signed distances to the places where ∂L/∂a jumps; None where it never does.
    """

    value: Callable[[Array, Array, Array, Array], None]
    d_a: Callable[[Array, Array, Array], None]
    output: str
    tasks: tuple[str, ...]
    fused: str | None = None
    outputs: tuple[str, ...] | None = None
    kinks: Callable[[Array, Array], tuple[Array, ...]] | None = None


def _squared_error(z: Array, a: Array, y: Array, out: Array) -> None:
    # L = ½ Σ (a - y)²
    np.subtract(a, y, out=out)
    out *= out
    out *= 0.5


def _squared_error_d(a: Array, y: Array, out: Array) -> None:
    np.subtract(a, y, out=out)


def _absolute(z: Array, a: Array, y: Array, out: Array) -> None:
    # L = Σ |a - y|
    np.subtract(a, y, out=out)
    np.abs(out, out=out)


def _absolute_d(a: Array, y: Array, out: Array) -> None:
    np.subtract(a, y, out=out)
    np.sign(out, out=out)


def _huber(z: Array, a: Array, y: Array, out: Array, delta: float = 1.0) -> None:
    # L = Σ ½ r² where |r| <= delta, else delta (|r| - ½ delta); with c = clip(r) it is c (r - ½ c)
    np.subtract(a, y, out=out)
    clipped = np.clip(out, -delta, delta)
    out -= 0.5 * clipped
    out *= clipped


def _huber_d(a: Array, y: Array, out: Array, delta: float = 1.0) -> None:
    np.subtract(a, y, out=out)
    np.clip(out, -delta, delta, out=out)


def _binary_cross_entropy(z: Array, a: Array, y: Array, out: Array) -> None:
    # L = -Σ y ln a + (1 - y) ln(1 - a) = Σ ln(1 + exp(z)) - y z   with a = sigmoid(z)
    np.logaddexp(z, 0.0, out=out)
    out -= y * z


def _binary_cross_entropy_d(a: Array, y: Array, out: Array) -> None:
    # (a - y) / (a (1 - a))
    slope = np.maximum(a * (1.0 - a), np.finfo(a.dtype).tiny)
    np.subtract(a, y, out=out)
    out /= slope


def _cross_entropy(z: Array, a: Array, y: Array, out: Array) -> None:
    # L = -Σ y ln a = Σ y (ln Σ exp(z) - z)   with a = softmax(z); softmax has shifted z to a
    # maximum of 0, where a = 1 / Σ exp(z)
    log_sum = np.maximum.reduce(a, axis=-2, keepdims=True)
    np.log(log_sum, out=log_sum)
    np.add(z, log_sum, out=out)
    np.negative(out, out=out)
    out *= y


def _cross_entropy_d(a: Array, y: Array, out: Array) -> None:
    # -y / a
    np.divide(y, np.maximum(a, np.finfo(a.dtype).tiny), out=out)
    np.negative(out, out=out)


def _residual(a: Array, y: Array) -> tuple[Array, ...]:
    return (a - y,)


def _residual_beyond(a: Array, y: Array, delta: float = 1.0) -> tuple[Array, ...]:
    return (a - y - delta, a - y + delta)


REGRESSION = ("regression", "binary", "multilabel", "classification")

LOSSES: dict[str, Loss] = {
    "squared_error": Loss(_squared_error, _squared_error_d, "identity", REGRESSION),
    "absolute": Loss(_absolute, _absolute_d, "identity", REGRESSION, kinks=_residual),
    "huber": Loss(_huber, _huber_d, "identity", REGRESSION, kinks=_residual_beyond),
    "binary_cross_entropy": Loss(
        _binary_cross_entropy,
        _binary_cross_entropy_d,
        "sigmoid",
        ("binary", "multilabel"),
        fused="sigmoid",
        outputs=("sigmoid",),
    ),
    "cross_entropy": Loss(
        _cross_entropy,
        _cross_entropy_d,
        "softmax",
        ("classification",),
        fused="softmax",
        outputs=("softmax",),
    ),
}


def make_loss(name: str, *, huber_delta: float = 1.0) -> Loss:
    """Look a loss up by name and bind its settings."""
    loss = LOSSES[name]
    if name != "huber":
        return loss
    return replace(
        loss,
        value=partial(_huber, delta=huber_delta),
        d_a=partial(_huber_d, delta=huber_delta),
        kinks=partial(_residual_beyond, delta=huber_delta),
    )


def smoothed_one_hot(labels: Array, smoothing: float, out: Array) -> None:
    """Write the targets of cross-entropy: (1 - ε) one-hot + ε / classes (Szegedy et al. 2016).

    Parameters
    ----------
    labels : (n,) int
        Class indices.
    smoothing : float
        ε, in [0, 1).
    out : (n, classes) float
        Where to write, an example a row.
    """
    rest = smoothing / out.shape[1]
    out.fill(rest)
    out[np.arange(len(labels)), labels] = 1.0 - smoothing + rest
