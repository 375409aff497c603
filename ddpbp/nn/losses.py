"""Losses L, their derivatives ∂L/∂a and, where one exists, the fused δᴸ, as a table.

To add one, write its class and give it an entry in `LOSSES`; nothing else names it. The settings of
a loss are the fields of its class, named as in the section `[loss]` of the configuration.

Every loss is the **sum** over the outputs of one example; over the examples of a batch it is the
sum divided once by their number. Arrays are (..., n_L, B): an example is a column.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ddpbp.base.tasks import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION

Array = npt.NDArray[Any]

TABLE_CLASSES = 256  # up to here the targets of all classes lie ready

ANY_TASK = tuple(task.name for task in (REGRESSION, BINARY, MULTILABEL, CLASSIFICATION))


@dataclass(frozen=True)
class Loss:
    """One loss, with its settings as fields.

    Attributes
    ----------
    output : str
        The output activation if none is configured.
    tasks : tuple of str
        The tasks it serves; the first is taken if none is configured.
    fused : str or None
        The output activation for which (BP1) has the closed form δᴸ = a - y.
    outputs : tuple of str or None
        The output activations it is defined for; None means every activation of hidden layers.
    """

    output: ClassVar[str] = "identity"
    tasks: ClassVar[tuple[str, ...]] = ANY_TASK
    fused: ClassVar[str | None] = None
    outputs: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Return the names of the settings that the loss reads."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def bind(cls, **settings: Any) -> Self:
        """Make the loss from the settings of all losses: it takes those that it reads."""
        return cls(**{name: settings[name] for name in cls.settings() if name in settings})

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        """Write the share of each output in L; may use z where a = σ(z) has lost digits.

        Parameters
        ----------
        z, a, y, out : (..., n_L, B) float
        """
        raise NotImplementedError

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        """Write ∂L/∂a of each output.

        Parameters
        ----------
        a, y, out : (..., n_L, B) float
        """
        raise NotImplementedError

    def kinks(self, a: Array, y: Array) -> tuple[Array, ...]:
        """Return signed distances to the places where ∂L/∂a jumps, each shaped as a."""
        return ()

    def write_targets(self, targets: Array, out: Array) -> None:
        """Write the targets of a data set as the loss takes them.

        Parameters
        ----------
        targets : (n,) int or (n, n_L)
            Class indices, which become one-hot rows, or values, which are copied.
        out : (n, n_L) float
            An example per row.
        """
        if targets.ndim == 1:
            one_hot(targets, 0.0, out)
        else:
            out[...] = targets


def one_hot(labels: Array, smoothing: float, out: Array) -> None:
    """Write (1 - ε) one-hot + ε / classes (label smoothing, Szegedy et al. 2016).

    Parameters
    ----------
    labels : (n,) int
        Class indices.
    smoothing : float
        ε, in [0, 1).
    out : (n, classes) float
        An example per row.
    """
    if out.shape[1] <= TABLE_CLASSES:
        _one_hot_rows(out.shape[1], smoothing, out.dtype).take(labels, axis=0, out=out, mode="clip")
    else:
        rest = smoothing / out.shape[1]
        out.fill(rest)
        out[np.arange(len(labels)), labels] = 1.0 - smoothing + rest


@cache
def _one_hot_rows(classes: int, smoothing: float, dtype: np.dtype[Any]) -> Array:
    rows = np.full((classes, classes), smoothing / classes, dtype)
    np.fill_diagonal(rows, 1.0 - smoothing + smoothing / classes)
    return rows


class SquaredError(Loss):
    """L = ½ Σ (a - y)²."""

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        np.subtract(a, y, out=out)
        out *= out
        out *= 0.5

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        np.subtract(a, y, out=out)


class Absolute(Loss):
    """L = Σ |a - y|."""

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        np.subtract(a, y, out=out)
        np.abs(out, out=out)

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        np.subtract(a, y, out=out)
        np.sign(out, out=out)

    def kinks(self, a: Array, y: Array) -> tuple[Array, ...]:
        return (a - y,)


@dataclass(frozen=True)
class Huber(Loss):
    """L = Σ ½ r² where |r| <= δ, else δ (|r| - ½ δ), with r = a - y (Huber 1964)."""

    huber_delta: float = 1.0

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        # with c = clip(r, -δ, δ) both cases are c (r - ½ c)
        np.subtract(a, y, out=out)
        clipped = np.clip(out, -self.huber_delta, self.huber_delta)
        out -= 0.5 * clipped
        out *= clipped

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        np.subtract(a, y, out=out)
        np.clip(out, -self.huber_delta, self.huber_delta, out=out)

    def kinks(self, a: Array, y: Array) -> tuple[Array, ...]:
        return a - y - self.huber_delta, a - y + self.huber_delta


class BinaryCrossEntropy(Loss):
    """L = -Σ y ln a + (1 - y) ln(1 - a) = Σ ln(1 + exp(z)) - y z, with a = sigmoid(z)."""

    output = "sigmoid"
    tasks = (BINARY.name, MULTILABEL.name)
    fused = "sigmoid"
    outputs = ("sigmoid",)

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        np.logaddexp(z, 0.0, out=out)
        out -= y * z

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        # (a - y) / (a (1 - a))
        slope = np.maximum(a * (1.0 - a), np.finfo(a.dtype).tiny)
        np.subtract(a, y, out=out)
        out /= slope


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """L = -Σ y ln a = Σ y (ln Σ exp(z) - z), with a = softmax(z) and Σ y = 1."""

    label_smoothing: float = 0.0

    output = "softmax"
    tasks = (CLASSIFICATION.name,)
    fused = "softmax"
    outputs = ("softmax",)

    def value(self, z: Array, a: Array, y: Array, out: Array) -> None:
        # softmax has shifted z to a maximum of 0, where a = 1 / Σ exp(z)
        log_sum = np.log(np.maximum.reduce(a, axis=-2, keepdims=True))
        np.negative(log_sum, out=log_sum)
        np.subtract(log_sum, z, out=out)
        out *= y

    def d_a(self, a: Array, y: Array, out: Array) -> None:
        # -y / a
        np.divide(y, np.maximum(a, np.finfo(a.dtype).tiny), out=out)
        np.negative(out, out=out)

    def write_targets(self, targets: Array, out: Array) -> None:
        if targets.ndim == 1:
            one_hot(targets, self.label_smoothing, out)
        else:
            super().write_targets(targets, out)


LOSSES: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "absolute": Absolute,
    "huber": Huber,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
}
