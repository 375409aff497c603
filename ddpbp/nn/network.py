"""The network: its sizes, the flat parameter vector with named views, and initialisation."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws
from ddpbp.nn.activations import ACTIVATIONS, OUTPUTS

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Network:
    """What is learned, without the numbers: layers l = 1..L of n_l units.

    Attributes
    ----------
    sizes : tuple of int
        (n_0, ..., n_L): features, hidden units, outputs.
    hidden, output : str
        The activations of layers 1..L-1 and of layer L.
    dtype : numpy.dtype
        float32 or float64, of everything.
    dropout : float
        The share of hidden units left out in training.
    """

    sizes: tuple[int, ...]
    hidden: str
    output: str
    dtype: np.dtype[Any]
    dropout: float = 0.0

    @property
    def L(self) -> int:
        """The number of layers with parameters."""
        return len(self.sizes) - 1

    @cached_property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """(start of W[l], start of b[l], end) in the flat vector, for l = 1..L at index l - 1."""
        spans, start = [], 0
        for n_in, n in zip(self.sizes, self.sizes[1:], strict=False):
            spans.append((start, start + n * n_in, start + n * n_in + n))
            start = spans[-1][2]
        return tuple(spans)

    @property
    def parameter_count(self) -> int:
        """The length of θ."""
        return self.spans[-1][2]

    def activation(self, l: int) -> Any:
        """Return the `Activation` of layer l."""
        return OUTPUTS[self.output] if l == self.L else ACTIVATIONS[self.hidden]

    def views(self, flat: Array) -> "Parameters":
        """Name the parts of a flat vector of `parameter_count` elements; nothing is copied."""
        W: list[Array] = [flat[:0]]
        b: list[Array] = [flat[:0]]
        for l, (start_W, start_b, end) in enumerate(self.spans, start=1):
            W.append(flat[start_W:start_b].reshape(self.sizes[l], self.sizes[l - 1]))
            b.append(flat[start_b:end].reshape(self.sizes[l], 1))
        return Parameters(flat, W, b)


@dataclass(frozen=True)
class Parameters:
    """One flat vector and its views; W[l] and b[l] start at l = 1.

    Attributes
    ----------
    flat : (parameter_count,) float
    W : list of (n_l, n_{l-1}) float
    b : list of (n_l, 1) float
    """

    flat: Array
    W: list[Array]
    b: list[Array]


# W ~ U(-limit, limit) or N(0, limit²/3), limit² = 3 · gain / fan:
# Xavier (Glorot and Bengio 2010) gain / fan = 2 / (n_in + n), He (He et al. 2015) 2 / n_in.
INITIALIZATIONS = ("xavier_uniform", "xavier_normal", "he_uniform", "he_normal")


def initialize(network: Network, name: str, seed: int) -> Parameters:
    """Make θ: weights drawn as `name` says, biases zero.

    Each weight is a function of (seed, layer, its place in W[l]) alone.
    """
    theta = network.views(np.zeros(network.parameter_count, network.dtype))
    for l in range(1, network.L + 1):
        W = theta.W[l]
        n, n_in = W.shape
        variance = 2.0 / n_in if name.startswith("he") else 2.0 / (n_in + n)
        key = draws.key(seed, draws.INITIAL, l)
        places = np.arange(W.size, dtype=np.uint64)
        if name.endswith("uniform"):
            values = (2.0 * draws.uniform(key, places) - 1.0) * math.sqrt(3.0 * variance)
        else:
            values = draws.normal(key, places) * math.sqrt(variance)
        W[...] = values.reshape(n, n_in)
    return theta
