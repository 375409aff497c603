"""What a script imports: train, evaluate and predict, and the model that a user holds.

    import ddpbp

    config = ddpbp.resolve("run.toml", ["epochs=5"])
    trained = ddpbp.train(config, overwrite=True)
    trained.model.predict(x)

Importing this module loads no NumPy: the BLAS kernel of a configuration or a model is chosen first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpbp.base import blas
from ddpbp.comm.join import join
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.store.model_file import StoredModel, read_kernel, read_model, write_model

if TYPE_CHECKING:
    import numpy.typing as npt

    from ddpbp.nn.network import Network, Parameters
    from ddpbp.run.callbacks import Callback
    from ddpbp.run.sinks import Sink

    Array = npt.NDArray[Any]


class Model:
    """A trained network with all that is needed to use it on raw rows.

    Parameters
    ----------
    stored : StoredModel
        The content of the model file.

    Attributes
    ----------
    config : Config
        The settings it was trained with.
    network : Network
    theta : Parameters
        The weights: `theta.W[l]` (n_l, n_{l-1}) and `theta.b[l]` (n_l, 1), from l = 1.
    classes : tuple of str or None
        The names of the classes, in the order of the outputs.
    columns : tuple of str or None
        The names of the features, where the training file had a header.
    """

    def __init__(self, stored: StoredModel) -> None:
        self.stored = stored
        self.config: Config = stored.config
        self.network: Network = stored.network
        self.theta: Parameters = stored.theta
        self.classes, self.columns = stored.classes, stored.columns

    def predict(self, x: Any, world: World | None = None) -> Array:
        """Return the outputs for rows of features.

        Parameters
        ----------
        x : (n, features) array, str or Path
            Features in the units of the training data, or the path of a data set.
        world : World, optional
            The ranks that share the work; one process by default.

        Returns
        -------
        (n, n_L) float
            For a classification the outputs of all classes.

        Raises
        ------
        DataError
            If the rows do not fit the model.
        """
        from ddpbp.tools import apply

        data = str(x) if isinstance(x, str | Path) else x
        return apply.predict(self.stored, data, world or World())

    def predict_class(self, x: Any, world: World | None = None) -> list[str]:
        """Return the name of the most likely class of each row; `x` is as in `predict`.

        Raises
        ------
        DataError
            If the rows do not fit, or the model has no classes.
        """
        from ddpbp.errors import DataError

        if self.classes is None:
            raise DataError("this model has no classes: use predict")
        return [self.classes[i] for i in self.predict(x, world).argmax(axis=1)]

    def evaluate(
        self, data: str | Path | None = None, world: World | None = None
    ) -> dict[str, float]:
        """Return the mean loss and the metrics on a data set.

        Parameters
        ----------
        data : str or Path, optional
            Its name or path; by default the model's own test data, else its validation data.
        world : World, optional

        Raises
        ------
        DataError
            If there are no such data, or they do not fit the model.
        """
        from ddpbp.tools import apply

        return apply.score(self.stored, None if data is None else str(data), world or World())

    def save(self, path: str | Path) -> None:
        """Write a model file, whole or not at all.

        Raises
        ------
        DdpbpError
            If it cannot be written.
        """
        write_model(path, self.stored)


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes
    ----------
    model : Model
    result : dict
        The content of result.json: hashes, losses and metrics.
    """

    model: Model
    result: dict[str, Any]


def train(
    config: Config,
    world: World | None = None,
    *,
    overwrite: bool = False,
    resume: str | Path | None = None,
    force: bool = False,
    fast_dev_run: bool = False,
    bar: bool | None = None,
    callbacks: Sequence[Callable[[], Callback]] = (),
    sinks: Sequence[Callable[[], Sink]] = (),
) -> Trained:
    """Train as the configuration says; rank 0 writes the run folder and prints.

    Parameters
    ----------
    config : Config
        From `resolve`.
    world : World, optional
        The ranks; by default those that the launcher started this script on, see `join`.
    overwrite : bool
        Replace a run that is already in the folder.
    resume : str or Path, optional
        Continue from a checkpoint: its path or that of a run folder; "auto": the newest of this
        run's folder, or a new run if there is none.
    force : bool
        Continue although settings, data or machine give other numbers than those of the checkpoint.
    fast_dev_run : bool
        One batch of everything; nothing is written.
    bar : bool, optional
        Show a live bar; by default where one process writes to a terminal.
    callbacks : sequence of callable
        Each makes a `Callback`, one for every rank.
    sinks : sequence of callable
        Each makes a `Sink`, to which rank 0 sends the records of the run.

    Raises
    ------
    DdpbpError
        On every rank alike: bad settings or data, divergence, ranks out of step; `Stopped` if a
        signal or `max_seconds` asked for it.
    """
    _use_kernel(config.kernel, stacklevel=3)
    from ddpbp.run.training import train as run

    outcome = run(
        config,
        world or _own_world(),
        overwrite=overwrite,
        resume=None if resume is None else str(resume),
        force=force,
        fast_dev_run=fast_dev_run,
        bar=bar,
        callbacks=callbacks,
        sinks=sinks,
    )
    return Trained(Model(outcome.model), outcome.result)


def load_model(path: str | Path) -> Model:
    """Read a model; `path` is its file, or the run folder or checkpoint that it is in.

    The model runs on the BLAS kernel that it was trained on. If NumPy is loaded already, it is too
    late to choose it, and a warning is issued.

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    return _loaded(path)


def evaluate(
    model: str | Path | Model, data: str | Path | None = None, world: World | None = None
) -> dict[str, float]:
    """Return the mean loss and the metrics of a model, or of its file: see `Model.evaluate`."""
    return _loaded(model).evaluate(data, world)


def predict(model: str | Path | Model, x: Any, world: World | None = None) -> Array:
    """Return the outputs of a model, or of its file, for rows of features: see `Model.predict`."""
    return _loaded(model).predict(x, world)


@cache
def _own_world() -> World:
    """Return the ranks that the launcher started; made once, as MPI worlds hold resources."""
    return join()


def _loaded(model: str | Path | Model) -> Model:
    if isinstance(model, Model):
        return model
    _use_kernel(read_kernel(model), stacklevel=4)
    return Model(read_model(model))


def _use_kernel(name: str, *, stacklevel: int) -> None:
    """Choose the kernel; a warning names the line of the script, `stacklevel` calls above."""
    for note in blas.use_kernel(name):
        warnings.warn(note, RuntimeWarning, stacklevel=stacklevel)
