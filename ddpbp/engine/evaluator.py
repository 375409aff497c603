"""Evaluation and prediction: the forward pass over leaves of a fixed size, on all ranks."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.all_reduce.choose import tree_sum
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import align
from ddpbp.data.sources import Part, Source, read_features
from ddpbp.engine.build import load, make_backprop, open_dataset, read_source, task_of
from ddpbp.errors import ConfigError, DataError
from ddpbp.metrics import table as metrics
from ddpbp.nn.network import Network, Parameters
from ddpbp.run.report import say
from ddpbp.store.model_file import Model, load_model
from ddpbp.store.run_folder import write_whole

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


def score_file(path: Path, data: str | None, world: World) -> dict[str, float]:
    """Score a model file on its own test data (validation if it has none), or on other data.

    Parameters
    ----------
    path : Path
        A run folder or a model file.
    data : str or None
        The path of a data set of the same kind as the model was trained on.
    world : World
    """
    with world.together():
        model = load_model(path)
    evaluator = Evaluator(model.config, model.network, world)
    if data is None:
        dataset = open_dataset(model.config, world)
        part = dataset.test or dataset.validation
        if part is None:
            raise DataError(f"{path} was trained without test or validation data; name some DATA")
        return evaluator.score(model.theta, part)
    with world.together():
        part = _like_training(model, read_source(model.config, data, model.target))
    return evaluator.score(model.theta, part)


def _like_training(model: Model, source: Source) -> Part:
    """Return the examples of a source with the model's classes and standardisation."""
    expected = model.network.sizes[0]
    if not source.columns and source.train.x.shape[1] != expected:
        raise DataError(
            f"{source.description}: {source.train.x.shape[1]} features, the model takes {expected}"
        )
    part = align(model.classes, model.columns, source)
    return Part(_scaled(model, part.x), part.y)


def predict_file(path: Path, data: Path, output: Path | None, world: World) -> None:
    """Predict for the rows of a file; rank 0 writes CSV or .npy.

    A class, its name first, comes with the outputs of all classes; other tasks give the outputs.
    """
    with world.together():
        model = load_model(path)
        if output is not None and output.suffix not in (".csv", ".npy"):
            raise ConfigError(f"--output {output}: allowed are files named .csv or .npy")
        configured = model.config.data.target
        target = model.target if configured is None else str(configured)
        x = read_features(
            data,
            format=None,
            features=model.network.sizes[0],
            target=target,
            names=model.columns,
        )
    evaluator = Evaluator(model.config, model.network, world)
    a = evaluator.predict(model.theta, _scaled(model, x))
    with world.together():
        if world.rank == 0:
            _write_predictions(model, a, output)


def _scaled(model: Model, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if model.standardization:
        return model.standardization.apply(x, model.network.dtype)
    return x.astype(model.network.dtype, copy=False)


def _write_predictions(model: Model, a: npt.NDArray[Any], output: Path | None) -> None:
    if output is not None and output.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, a, allow_pickle=False)
        write_whole(output, [buffer.getvalue()])
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if model.classes:
        writer.writerow(["prediction", *model.classes])
        best = [model.classes[i] for i in a.argmax(axis=1)]
        writer.writerows([name, *row] for name, row in zip(best, a.tolist(), strict=True))
    else:
        writer.writerow([f"output_{j}" for j in range(a.shape[1])])
        writer.writerows(a.tolist())
    if output is not None:
        write_whole(output, [text.getvalue().encode()])
    else:
        say(text.getvalue(), end="")
