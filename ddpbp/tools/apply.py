"""Apply a stored model to a file: scores, or predictions as CSV or .npy."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.comm.world import World
from ddpbp.data.checks import features, require_range
from ddpbp.data.dataset import Part, labels_of
from ddpbp.data.rows import ArrayRows, Rows, read_all
from ddpbp.data.sources import open_features, open_source
from ddpbp.data.spool import spooled
from ddpbp.engine.build import make_evaluator
from ddpbp.engine.data import open_dataset, other_options
from ddpbp.engine.team import Team
from ddpbp.errors import ConfigError, DataError
from ddpbp.run.output import print_text
from ddpbp.store.files import write_whole
from ddpbp.store.model_file import StoredModel

Array = npt.NDArray[Any]


def score(model: StoredModel, data: str | None, world: World) -> dict[str, float]:
    """Score a model on its own test data (validation if it has none), or on other data.

    Parameters
    ----------
    model : StoredModel
    data : str or None
        A data set of the same kind as the model was trained on: its name or path.
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
    part = _like_training(model, data, world)
    with np.errstate(over="ignore", invalid="ignore"):
        return evaluator.score(model.theta, part)


def _like_training(model: StoredModel, data: str, world: World) -> Part:
    """Return the examples of a source with the model's classes and standardisation."""
    team = Team(world)
    with world.together():
        options = other_options(model.config, data, model.target, model.columns)
        source = open_source(data, options)
        _require_features(model, source.train.x, source.name)
    labels, examples = labels_of(source, source.train, team)
    labels, examples = labels.translated(model.classes, source.name), spooled(examples, team)
    expected = 1 if model.classes else model.network.sizes[-1]
    if examples.targets != expected:
        raise DataError(
            f"{source.name}: {examples.targets} targets in each row, the model gives {expected}"
        )
    with world.together():
        x, raw = examples.read(slice(0, len(examples)))
        y = labels.targets(raw, examples.y.words, f"{examples.where} labels", 0)
        return Part(_scaled(model, x, source.name), y)


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
    with world.together():
        if isinstance(data, str):
            options = other_options(model.config, data, model.target, model.columns)
            rows = open_features(data, options, model.network.sizes[0])
        else:
            rows = features(ArrayRows(np.asarray(data), "x"), "x")
            _require_features(model, rows, "x")
        x = read_all(rows, rows.schema.dtype)
        x = _scaled(model, x, data if isinstance(data, str) else "x")
    evaluator = make_evaluator(model.config, model.network, world)
    with np.errstate(over="ignore", invalid="ignore"):
        a = evaluator.predict(model.theta, x)
    finite = np.isfinite(a).all(axis=1)
    if not finite.all():
        raise DataError(
            f"row {np.argmin(finite)} (from 0): the output is not finite; its features are too "
            "large for the model: are they in the units of the training data?"
        )
    return a


def _require_features(model: StoredModel, rows: Rows, where: str) -> None:
    columns, expected = rows.schema.columns, model.network.sizes[0]
    if columns != expected:
        raise DataError(f"{where}: {columns} features in each row, the model takes {expected}")


def require_writable_name(output: Path | None) -> None:
    """Refuse an output whose format its name does not give.

    Raises
    ------
    ConfigError
        Names the endings that are allowed.
    """
    if output is not None and output.suffix not in (".csv", ".npy"):
        raise ConfigError(f"--output {output}: allowed are files named .csv or .npy")


def _scaled(model: StoredModel, x: Array, where: str) -> Array:
    dtype = model.network.dtype
    if model.standardization:
        scaled = model.standardization.apply(x, dtype)
    else:
        with np.errstate(over="ignore"):
            scaled = x.astype(dtype, copy=False)
    require_range(scaled, dtype, f"{where}: a feature")
    return scaled


def write_predictions(model: StoredModel, a: Array, output: Path | None) -> None:
    """Write predictions to a .csv or .npy file, or as CSV to standard output.

    A classification gives the name of the class and the outputs of all classes. Other tasks give
    the outputs, under the names of the targets where the training file had a header.
    """
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
        n, target = a.shape[1], model.target or ""
        names = target.split(",") if n > 1 else [target]
        writer.writerow(names if target and len(names) == n else [f"output_{j}" for j in range(n)])
        writer.writerows(a.tolist())
    if output is not None:
        write_whole(output, [text.getvalue().encode()])
    else:
        print_text(text.getvalue(), end="")
