"""Where a step left the finite numbers: the same layer and leaf on any number of ranks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpbp.data.dataset import Part
from ddpbp.data.shards import Shard
from ddpbp.engine.loading import load
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Parameters


class Place(NamedTuple):
    """A place in the step; the least one comes first.

    Attributes
    ----------
    stage : int
        0 forward pass, 1 backward pass, 2 loss.
    layer : int
        Counted in the order of the stage.
    leaf : int
    what : str
        The tensor, for the message.
    rows : str
        The examples of the leaf, as their places in the batch.
    """

    stage: int
    layer: int
    leaf: int
    what: str
    rows: str

    def __str__(self) -> str:
        return f"{self.what}, leaf {self.leaf} ({self.rows} of the batch),"


def first_place(
    backprop: Backprop,
    theta: Parameters,
    part: Part,
    shard: Shard,
    step: int,
) -> Place | None:
    """Compute this rank's leaves again, one by one, until one is not finite.

    Returns
    -------
    Place or None
        None if every leaf of this rank is finite, and only their sum is not.
    """
    network = backprop.network
    grad = network.views(np.empty(network.parameter_count, network.dtype))
    places: list[Place] = []
    for leaf, offset, size in _leaves(shard):
        load(backprop, part, shard.indices[offset : offset + size], ((1, size),))
        first = shard.first + offset
        backprop.forward(theta, step, first)
        rows = f"rows {first} to {first + size - 1}"
        (stack,) = backprop.stacks
        wrong = next(
            (l for l in range(1, network.L + 1) if not np.isfinite(stack.z[l]).all()), None
        )
        if wrong is not None:
            places.append(Place(0, wrong, leaf, f"z of layer {wrong}", rows))
            continue
        losses = backprop.losses()
        for _ in backprop.backward(theta, [grad], [0], shard.batch_examples):
            pass
        for l in range(network.L, 0, -1):
            if not (np.isfinite(grad.W[l]).all() and np.isfinite(grad.b[l]).all()):
                what = f"the gradient of layer {l}"
                places.append(Place(1, network.L - l, leaf, what, rows))
                break
        else:
            if not np.isfinite(losses).all():
                places.append(Place(2, 0, leaf, "the loss", rows))
    return min(places, default=None)


def _leaves(shard: Shard) -> Iterator[tuple[int, int, int]]:
    """Walk (leaf, offset of its first row among this rank's rows, size)."""
    leaf, offset = shard.leaves[0], 0
    for count, size in shard.shapes:
        for _ in range(count):
            yield leaf, offset, size
            leaf, offset = leaf + 1, offset + size
