"""Evaluation and prediction: the forward pass over leaves of a fixed size, on all ranks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.sources import Part
from ddpbp.engine.build import load, make_backprop
from ddpbp.engine.data import task_of
from ddpbp.metrics import table as metrics
from ddpbp.nn.network import Network, Parameters

LEAF_ROWS = 512  # part of the arithmetic: the same for every run


class Evaluator:
    """Scores a part of the data, or predicts, with a workspace made once.

    Parameters
    ----------
    config : Config
    network : Network
    world : World
    """

    def __init__(self, config: Config, network: Network, world: World) -> None:
        self._config, self._network, self._world = config, network, world
        self._task = task_of(config)
        self._backprop = make_backprop(config, network, LEAF_ROWS)

    def _forward(self, theta: Parameters, part: Part, i: int) -> slice:
        rows = slice(i * LEAF_ROWS, min((i + 1) * LEAF_ROWS, len(part)))
        smoothing = self._config.loss.label_smoothing
        load(self._backprop, part, rows, ((1, rows.stop - rows.start),), smoothing)
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

        sums = tree_sum(self._world, leaf, tree.leaf_count(len(part), LEAF_ROWS))
        n = len(part)
        outputs = self._network.sizes[-1]
        return {
            "loss": float(sums[0]) / n,
            **metrics.summarize(self._task, sums[1:], n, outputs),
        }

    def predict(self, theta: Parameters, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the outputs for (n, features) rows as (n, n_L) rows, on every rank."""
        n, outputs = len(x), self._network.sizes[-1]
        part = Part(x, np.zeros((n, outputs)))
        start, stop = tree.deal(
            tree.leaf_count(n, LEAF_ROWS), self._world.rank, self._world.world_size
        )
        mine = []
        for i in range(start, stop):
            self._forward(theta, part, i)
            mine.append(self._backprop.stacks[0].a[-1][0].T.copy())
        every = [leaf for rank in self._world.all_gather_object(mine) for leaf in rank]
        return np.concatenate(every)
