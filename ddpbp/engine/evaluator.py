"""Evaluation and prediction: the forward pass over leaves of a fixed size, on all ranks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.world import World
from ddpbp.data.dataset import Part, StoredPart
from ddpbp.data.rows import block_slice
from ddpbp.engine.loading import load
from ddpbp.metrics import table as metrics
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Parameters

Array = npt.NDArray[Any]

LEAF_ROWS = 512  # part of the arithmetic: the same for every run


class Evaluator:
    """Scores a part of the data, or predicts, with a workspace made once.

    Parameters
    ----------
    backprop : Backprop
        A workspace for `LEAF_ROWS` examples.
    task : str
        What the targets are; it decides the metrics.
    world : World
    """

    def __init__(self, backprop: Backprop, task: str, world: World) -> None:
        self._backprop, self._task, self._world = backprop, task, world
        self._outputs = backprop.network.sizes[-1]

    def _forward(self, theta: Parameters, part: Part) -> Array:
        """Return the outputs of one leaf, (n_L, examples)."""
        load(self._backprop, part, slice(0, len(part)), ((1, len(part)),))
        self._backprop.forward(theta)
        self._world.pulse.progress += 1
        a: Array = self._backprop.stacks[0].a[-1][0]
        return a

    def score(self, theta: Parameters, part: Part | StoredPart) -> dict[str, float]:
        """Return the mean loss and the metrics over all examples, each counted once.

        Raises
        ------
        DataError
            On every rank, if examples that are stored cannot be read.
        """
        n = len(part)

        def sums_of(i: int) -> npt.NDArray[np.float64]:
            leaf = part.leaf(leaf_rows(i, n))
            a = self._forward(theta, leaf)
            sums = metrics.leaf_sums(self._task, a, leaf.y)
            return np.array([*self._backprop.losses(), *sums])

        sums = tree_sum(self._world, sums_of, tree.leaf_count(n, LEAF_ROWS))
        scores = metrics.summarize(self._task, sums[1:], n, self._outputs)
        return {"loss": float(sums[0]) / n, **scores}

    def predict(self, theta: Parameters, x: Array) -> Array:
        """Return the outputs for the (n, features) rows of one leaf as (n, n_L) rows."""
        part = Part(x, np.zeros((len(x), self._outputs)))
        return self._forward(theta, part).T.copy()


def leaf_rows(i: int, n: int) -> slice:
    """Return the rows of leaf i of n."""
    return block_slice(i, LEAF_ROWS, n)
