"""The interface of a layer: forward, backward, and its span of θ.

A layer knows its mathematics only. `ddpbp.nn.backprop` walks the layers, and decides how many
leaves one call handles and how their gradients are summed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from ddpbp.nn.activations import Activation
from ddpbp.nn.initializations import Initialization

Array = npt.NDArray[Any]

Call = tuple[Callable[..., object], tuple[Any, ...]]
"""A function and its arguments: arrays that stay where they are from step to step."""
Calls = Iterator[Call]


class Layer(ABC):
    """Layer l of a network: aˡ = σ(zˡ) with zˡ a function of aˡ⁻¹, W[l] and b[l].

    Its methods do not compute: they yield the calls that do. So the equations are written down once
    for each place in memory, and a step only carries them out.

    In the arrays of all methods an example is a column. Leading axes, `...`, are leaves: an array
    may hold several or be one, and each leaf must get the same bits either way.

    Parameters
    ----------
    n_in, n : int
        Units of layer l - 1 and of this one.
    sigma : Activation
    start : int
        Where its parameters begin in θ.

    Attributes
    ----------
    W_shape, b_shape : tuple of int
        The shapes of its weights, which `weight_decay` shrinks, and of its biases. Gradients of
        weights are formed in blocks along the first axis.
    span : tuple of int
        (start of W[l], start of b[l], end) in θ.
    """

    W_shape: tuple[int, ...]
    b_shape: tuple[int, ...]

    def __init__(self, n_in: int, n: int, sigma: Activation, start: int) -> None:
        self.sigma = sigma
        self.W_shape, self.b_shape = self.shapes(n_in, n)
        start_b = start + math.prod(self.W_shape)
        self.span = (start, start_b, start_b + math.prod(self.b_shape))

    @staticmethod
    @abstractmethod
    def shapes(n_in: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of W[l] and of b[l]."""

    @abstractmethod
    def initialize(self, W: Array, b: Array, rule: Initialization, key: int) -> None:
        """Write the first parameters.

        Parameters
        ----------
        W, b : float
            The views of this layer, all zero.
        rule : Initialization
        key : int
            The stream of random bits of this layer; a weight is a function of it and of its place.
        """

    @abstractmethod
    def forward(self, W: Array, b: Array, below: Array, z: Array, a: Array) -> Calls:
        """Yield the calls that write z[l] and a[l].

        Parameters
        ----------
        W, b : float
        below : (..., n_in, B) float
            aˡ⁻¹, after dropout if there is any.
        z, a : (..., n, B) float
        """

    @abstractmethod
    def pull_back(self, W: Array, below: Array, delta: Array, out: Array) -> Calls:
        """Yield the calls that write ∂L/∂aˡ⁻¹.

        Parameters
        ----------
        W : float
        below : (..., n_in, B) float
            aˡ⁻¹, after dropout if there is any.
        delta : (..., n, B) float
            δˡ = ∂L/∂zˡ.
        out : (..., n_in, B) float
        """

    @abstractmethod
    def weight_gradient(self, below: Array, delta: Array, rows: slice, out: Array) -> Calls:
        """Yield the calls that write some rows of ∂L/∂W[l], summed over the columns of each leaf.

        Parameters
        ----------
        below : (..., n_in, B) float
        delta : (..., n, B) float
        rows : slice
            Which rows of W[l].
        out : (..., rows, ...) float
            Those rows of each leaf.
        """

    @abstractmethod
    def bias_gradient(self, below: Array, delta: Array, out: Array) -> Calls:
        """Yield the calls that write ∂L/∂b[l], summed over the columns of each leaf.

        Parameters
        ----------
        below : (..., n_in, B) float
        delta : (..., n, B) float
        out : (..., *b_shape) float
        """
