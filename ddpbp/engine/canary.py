"""The canary: one leaf of synthetic data, forward and backward, and an order, as a hash.

Machines that compute different bits are named before the first step, not after the last.
"""

import numpy as np

from ddpbp.base import draws
from ddpbp.base.hashing import digest
from ddpbp.data.order import Order
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Parameters


def canary(backprop: Backprop, theta: Parameters, size: int) -> str:
    """Return the hash over losses, outputs and gradient of one leaf of `size` examples."""
    network = backprop.network
    (stack,) = backprop.arrange(((1, size),))
    counter = np.arange(stack.x.size, dtype=np.uint64)
    values = draws.uniform(draws.key(draws.CANARY), counter)
    stack.x[...] = (2.0 * values - 1.0).reshape(stack.x.shape)
    stack.y[...] = 0.0
    stack.y[:, 0] = 1.0
    backprop.forward(theta, 0)
    losses = backprop.losses()
    flat = np.empty((1, network.parameter_count), network.dtype)
    for _ in backprop.backward(theta, [network.views(flat[0])], [0], size):
        pass
    order = Order(1_000, draws.CANARY)(np.arange(1_000))  # else a resume could mix two orders
    return digest([np.array(losses), stack.a[-1], flat, order])
