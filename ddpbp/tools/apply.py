"""Apply a stored model to a file: scores, or predictions, read and written part by part."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.work import divide
from ddpbp.comm.world import World
from ddpbp.data.checks import Finite, features
from ddpbp.data.dataset import StoredPart, labels_of, scaled
from ddpbp.data.rows import ArrayRows, Rows, read_all, read_rows
from ddpbp.data.sources import open_features, open_source
from ddpbp.engine.build import make_evaluator
from ddpbp.engine.data import open_dataset, other_options
from ddpbp.engine.evaluator import LEAF_ROWS, leaf_rows
from ddpbp.engine.team import Team
from ddpbp.errors import DataError
from ddpbp.store.model_file import StoredModel
from ddpbp.tools.predictions import form_of, writing

Array = npt.NDArray[Any]

ROUND_ELEMENTS, MOST_ROUND_LEAVES = 2**20, 64  # of the outputs of a rank that rank 0 waits for


def score(model: StoredModel, data: str | None, world: World) -> dict[str, float]:
    """Score a model on its own test data (validation if it has none), or on other data.

    Parameters
    ----------
    model : StoredModel
    data : str or None
        A data set of the same kind as the model was trained on: its name or path. It is read leaf
        by leaf.
    world : World

    Raises
    ------
    DataError
        On every rank, if there are no such data or they do not fit.
    """
    evaluator = make_evaluator(model.config, model.network, world)
    if data is None:
        dataset = open_dataset(model.config, world)
        part = dataset.test or dataset.validation
        if part is None:
            raise DataError("the model was trained without test or validation data; name some DATA")
        return evaluator.score(model.theta, part)
    stored = _like_training(model, data, world)
    with np.errstate(over="ignore", invalid="ignore"):
        return evaluator.score(model.theta, stored)


def _like_training(model: StoredModel, data: str, world: World) -> StoredPart:
    """Return the examples of a source with the model's classes and standardisation."""
    with world.together():
        options = other_options(model.config, data, model.target, model.columns)
        source = open_source(data, options)
        _require_features(model, source.train.x, source.name)
    labels, examples = labels_of(source, source.train, Team(world, model.config.data.cache))
    labels = labels.translated(model.classes, source.name)
    expected = 1 if model.classes else model.network.sizes[-1]
    if examples.targets != expected:
        raise DataError(
            f"{source.name}: {examples.targets} targets in each row, the model gives {expected}"
        )
    return StoredPart(examples, labels, model.standardization, model.network.dtype)


def predict(model: StoredModel, data: str | Array, world: World) -> Array:
    """Return the outputs of a model for the rows of a file or an array, on every rank.

    Parameters
    ----------
    model : StoredModel
    data : str or (n, features) array
        A data set, with or without targets; or features in the units of the training data.
    world : World

    Returns
    -------
    (n, n_L) float
        The outputs; for a classification those of all classes.

    Raises
    ------
    DataError
        On every rank, if the rows do not fit the model.
    """
    rows = open_rows(model, data, world)
    parts = list[Array]()
    in_rounds(model, rows, world, lambda a: a, parts.append, everywhere=True)
    return np.concatenate(parts)


def predict_to(model: StoredModel, data: str, output: Path | None, world: World) -> None:
    """Write the outputs of a model for the rows of a file, in their order.

    No rank holds more than a part of them.

    Parameters
    ----------
    model : StoredModel
    data : str
        A data set, with or without targets.
    output : Path or None
        A .csv, .npy or .parquet file; None is standard output, as CSV.
    world : World

    Raises
    ------
    DataError, DdpbpError
        On every rank, if the rows do not fit the model or the file cannot be written; then nothing
        is written.
    """
    rows = open_rows(model, data, world)
    render = partial(form_of(output).render, model)
    with writing(model, len(rows), output, world) as write:
        in_rounds(model, rows, world, render, write, everywhere=False)


def open_rows(model: StoredModel, data: str | Array, world: World) -> Finite:
    """Open the rows to predict from; all ranks raise the fault of one."""
    with world.together():
        if isinstance(data, str):
            options = other_options(model.config, data, model.target, model.columns)
            rows = open_features(data, options, model.network.sizes[0])
        else:
            rows = features(ArrayRows(np.asarray(data), "x"), "x")
            _require_features(model, rows, "x")
        if rows.whole:
            rows = rows.over(ArrayRows(read_all(rows, rows.schema.dtype), "x"))
    return rows


def in_rounds(
    model: StoredModel,
    rows: Finite,
    world: World,
    render: Callable[[Array], Any],
    take: Callable[[Any], object],
    *,
    everywhere: bool,
) -> None:
    """Compute the outputs of all rows: in each round, every rank those of its run of leaves.

    Parameters
    ----------
    model : StoredModel
    rows : Finite
    world : World
    render : callable
        Takes the outputs of a leaf, (examples, n_L); called on the rank that computed them.
    take : callable
        Takes what `render` returned for the next leaf; called on rank 0.
    everywhere : bool
        Call it on all ranks.
    """
    evaluator = make_evaluator(model.config, model.network, world)
    n, where = len(rows), rows.where
    leaves = tree.leaf_count(n, LEAF_ROWS)
    each = ROUND_ELEMENTS // (LEAF_ROWS * model.network.sizes[-1])
    at_once = world.world_size * min(MOST_ROUND_LEAVES, max(1, each))

    def outputs(i: int) -> Any:
        chosen = leaf_rows(i, n)
        x = read_rows(rows, chosen, rows.schema.dtype)
        x = scaled(x, model.standardization, model.network.dtype, where)
        with np.errstate(over="ignore", invalid="ignore"):
            a = evaluator.predict(model.theta, x)
        finite = np.isfinite(a).all(axis=1)
        if not finite.all():
            raise DataError(
                f"row {chosen.start + np.argmin(finite)} (from 0): the output is not finite; its "
                "features are too large for the model: are they in the units of the training data?"
            )
        return render(a)

    for first in range(0, leaves, at_once):
        mine = list[Any]()

        def combine(every: list[list[Any]], mine: list[Any] = mine) -> list[Any] | None:
            mine += [leaf for run in every for leaf in run]
            return mine if everywhere else None

        found = divide(
            world,
            min(at_once, leaves - first),
            lambda run, first=first: [outputs(first + i) for i in run],  # type: ignore[misc]
            combine,
        )
        with world.together():
            for leaf in found or mine:
                take(leaf)


def _require_features(model: StoredModel, rows: Rows, where: str) -> None:
    columns, expected = rows.schema.columns, model.network.sizes[0]
    if columns != expected:
        raise DataError(f"{where}: {columns} features in each row, the model takes {expected}")
