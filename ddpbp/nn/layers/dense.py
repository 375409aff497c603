"""The dense layer: every unit sees every unit of the layer below."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.nn.initializations import Initialization
from ddpbp.nn.layers.layer import Calls, Layer

Array = npt.NDArray[Any]


class Dense(Layer):
    """zˡ = Wˡ aˡ⁻¹ + bˡ,  aˡ = σ(zˡ), with W[l] (n_l, n_{l-1}) and b[l] (n_l, 1)."""

    @staticmethod
    def shapes(n_in: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (n, n_in), (n, 1)

    def initialize(self, W: Array, b: Array, rule: Initialization, key: int) -> None:
        n, n_in = W.shape
        places = np.arange(W.size, dtype=np.uint64)
        W[...] = rule.distribution(key, places, rule.variance(n_in, n)).reshape(W.shape)

    def forward(self, W: Array, b: Array, below: Array, z: Array, a: Array) -> Calls:
        yield np.matmul, (W, below, z)  # (F)
        yield np.add, (z, b, z)
        yield self.sigma.value, (z, a)

    def pull_back(self, W: Array, below: Array, delta: Array, out: Array) -> Calls:
        yield np.matmul, (W.T, delta, out)  # (BP2), without σ′ of the layer below

    def bias_gradient(self, below: Array, delta: Array, out: Array) -> Calls:
        ones = np.ones((delta.shape[-1], 1), delta.dtype)
        yield np.matmul, (delta, ones, out)  # (BP3), in a third of the time of a sum

    def weight_gradient(self, below: Array, delta: Array, rows: slice, out: Array) -> Calls:
        yield np.matmul, (delta[..., rows, :], below.mT, out)  # (BP4)
