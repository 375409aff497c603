"""The network: its layers, and the flat parameter vector with named views."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws
from ddpbp.nn.activations import ACTIVATIONS, Activation
from ddpbp.nn.initializations import INITIALIZATIONS
from ddpbp.nn.layers.layer import Layer
from ddpbp.nn.layers.table import LAYERS

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
    kinds : tuple of str
        What layers 1..L are, as named in `LAYERS`; if empty, all are dense.
    """

    sizes: tuple[int, ...]
    hidden: str
    output: str
    dtype: np.dtype[Any]
    dropout: float = 0.0
    kinds: tuple[str, ...] = ()

    @property
    def L(self) -> int:
        """The number of layers with parameters."""
        return len(self.sizes) - 1

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers l = 1..L, at index l - 1."""
        layers: list[Layer] = []
        kinds, start = self.kinds or ("dense",) * self.L, 0
        for kind, (n_in, n) in zip(kinds, pairwise(self.sizes), strict=True):
            layer = LAYERS[kind](n_in, n, self.activation(len(layers) + 1), start)
            layers.append(layer)
            start = layer.span[-1]
        return tuple(layers)

    @cached_property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """(start of W[l], start of b[l], end) in the flat vector, for l = 1..L at index l - 1."""
        return tuple(layer.span for layer in self.layers)

    @property
    def parameter_count(self) -> int:
        """The length of θ."""
        return self.spans[-1][2]

    def activation(self, l: int) -> Activation:
        """Return the activation of layer l."""
        return ACTIVATIONS[self.output if l == self.L else self.hidden]

    def views(self, flat: Array) -> "Parameters":
        """Name the parts of flat vectors, (..., parameter_count); nothing is copied."""
        none = flat[..., :0]
        W, b = [none], [none]
        for layer in self.layers:
            start_W, start_b, end = layer.span
            W.append(flat[..., start_W:start_b].reshape(*flat.shape[:-1], *layer.W_shape))
            b.append(flat[..., start_b:end].reshape(*flat.shape[:-1], *layer.b_shape))
        return Parameters(flat, W, b)


@dataclass(frozen=True)
class Parameters:
    """Flat vectors and their views; W[l] and b[l] start at l = 1.

    Attributes
    ----------
    flat : (..., parameter_count) float
        One vector, or several.
    W, b : list of (..., *shape) float
        Each in the shape that its layer has; dense layers (n_l, n_{l-1}) and (n_l, 1).
    """

    flat: Array
    W: list[Array]
    b: list[Array]


def initialize(network: Network, name: str, seed: int) -> Parameters:
    """Make θ with the weights drawn by the initialization `name`, and biases zero.

    Each weight is a function of (seed, layer, its place in W[l]) alone.
    """
    theta = network.views(np.zeros(network.parameter_count, network.dtype))
    for l, layer in enumerate(network.layers, start=1):
        key = draws.key(seed, draws.INITIAL, l)
        layer.initialize(theta.W[l], theta.b[l], INITIALIZATIONS[name], key)
    return theta
