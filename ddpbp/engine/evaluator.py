"""Evaluation and prediction: the forward pass over leaves of a fixed size, on all ranks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.world import World
from ddpbp.data.dataset import Part
from ddpbp.engine.loading import load
from ddpbp.metrics import table as metrics
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Parameters

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

    def _forward(self, theta: Parameters, part: Part, i: int) -> slice:
        rows = slice(i * LEAF_ROWS, min((i + 1) * LEAF_ROWS, len(part)))
        load(self._backprop, part, rows, ((1, rows.stop - rows.start),))
        self._backprop.forward(theta)
        self._world.pulse.progress += 1
        return rows

    def score(self, theta: Parameters, part: Part) -> dict[str, float]:
        """Return the mean loss and the metrics over all examples, each counted once."""

        def leaf(i: int) -> npt.NDArray[np.float64]:
            rows = self._forward(theta, part, i)
            a = self._backprop.stacks[0].a[-1][0]
            sums = metrics.leaf_sums(self._task, a, part.y[rows])
            return np.array([*self._backprop.losses(), *sums])

        n = len(part)
        sums = tree_sum(self._world, leaf, tree.leaf_count(n, LEAF_ROWS))
        scores = metrics.summarize(self._task, sums[1:], n, self._outputs)
        return {"loss": float(sums[0]) / n, **scores}

    def predict(self, theta: Parameters, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the outputs for (n, features) rows as (n, n_L) rows, on every rank."""
        n = len(x)
        part = Part(x, np.zeros((n, self._outputs)))
        leaves = tree.leaf_count(n, LEAF_ROWS)
        start, stop = tree.deal(leaves, self._world.rank, self._world.world_size)
        mine = []
        for i in range(start, stop):
            self._forward(theta, part, i)
            mine.append(self._backprop.stacks[0].a[-1][0].T.copy())
        every = [leaf for rank in self._world.all_gather_object(mine) for leaf in rank]
        return np.concatenate(every)
