"""From settings to objects, and from rows of a data set to columns of the workspace."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddpbp.base.hashing import digest
from ddpbp.base.rounding import WIRES
from ddpbp.comm.all_reduce.choose import tree_sum
from ddpbp.comm.comparison import require_equal
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset, prepare
from ddpbp.data.sources import Part, Source, open_source
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.losses import LOSSES, Loss, make_loss, smoothed_one_hot
from ddpbp.nn.network import Network
from ddpbp.nn.optimizers import Hyperparameters, Optimizer
from ddpbp.nn.schedules import ScheduleSettings


def task_of(config: Config) -> str:
    """Return the task: as configured, or the one that goes with the loss."""
    return config.data.task or LOSSES[config.loss.name].tasks[0]


def read_source(config: Config, path: str | None = None, target: str | None = None) -> Source:
    """Open the source that the settings name, or another one of the same kind at `path`.

    `target` names the target columns if the settings do not.
    """
    data = config.data
    if data.target is not None:
        target = str(data.target)
    return open_source(
        path or data.source,
        format=None if path and not Path(path).is_dir() else data.format,
        task=task_of(config),
        target=target,
        folder=data.folder,
        examples=data.examples,
        features=data.features,
        classes=data.classes,
        targets=data.targets,
        seed=config.seed,
    )


def open_dataset(config: Config, world: World) -> Dataset:
    """Read, split and standardise the data; all ranks must see the same bytes.

    Raises
    ------
    DataError
        On every rank, if one of them cannot read its data.
    OutOfStep
        If the ranks read different data.
    """
    data = config.data
    with world.together():
        source = read_source(config)
        validation = _held_out(config, data.validation, source.target)
        test = None if data.test is None else _held_out(config, data.test, source.target)
    everything = [source.train.x, source.train.y]
    for part in (source.test, *(s.train for s in (validation, test) if isinstance(s, Source))):
        everything += [part.x, part.y] if part else []
    sha256 = digest(everything)
    require_equal(
        world,
        f"data {data.source}",
        f"{sha256} {source.description} {source.classes}",
        "give every host the same files",
    )
    dataset = prepare(
        source,
        validation=validation,
        test=test,
        standardize=data.standardize,
        dtype=config.model.dtype,
        seed=config.seed,
        block_sum=partial(tree_sum, world),
    )
    return replace(dataset, sha256=sha256)


def _held_out(config: Config, given: float | str, target: str | None) -> float | Source:
    return read_source(config, given, target) if isinstance(given, str) else given


def make_network(config: Config, features: int, outputs: int) -> Network:
    """Return the network for data of so many features and outputs."""
    model = config.model
    return Network(
        sizes=(features, *model.hidden, outputs),
        hidden=model.activation,
        output=model.output or LOSSES[config.loss.name].output,
        dtype=np.dtype(model.dtype),
        dropout=model.dropout,
    )


def configured_loss(config: Config) -> Loss:
    """Return the loss with its settings bound."""
    return make_loss(config.loss.name, huber_delta=config.loss.huber_delta)


def make_backprop(config: Config, network: Network, capacity: int) -> Backprop:
    """Return a workspace for at most `capacity` examples."""
    dropout = Dropout(network.dropout, config.seed) if network.dropout else None
    return Backprop(network, configured_loss(config), capacity, dropout, WIRES[config.wire])


def make_optimizer(config: Config, network: Network) -> Optimizer:
    """Return the optimizer of the settings, its state at zero."""
    o = config.optimizer
    numbers = {name: getattr(o, name) for name in Hyperparameters.__dataclass_fields__}
    return Optimizer(o.name, network, Hyperparameters(**numbers))


def make_schedule(config: Config, steps_per_epoch: int) -> ScheduleSettings:
    """Return the numbers of the schedule for this many steps an epoch."""
    s = config.schedule
    return ScheduleSettings(
        steps=config.epochs * steps_per_epoch - s.warmup_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=s.warmup_steps,
        every_epochs=s.every_epochs,
        gamma=s.gamma,
        final_factor=s.final_factor,
    )


def load(
    backprop: Backprop,
    part: Part,
    indices: npt.NDArray[np.int64] | slice,
    shapes: tuple[tuple[int, int], ...],
    smoothing: float = 0.0,
) -> None:
    """Bring examples into the workspace: the one place where rows become columns.

    Parameters
    ----------
    backprop : Backprop
    part : Part
    indices : (rows,) int64 or slice
        Rows of `part`.
    shapes : tuple of (count, size)
        The leaves they form, in order.
    smoothing : float
        ε of label smoothing.
    """
    backprop.arrange(shapes)
    rows = sum(count * size for count, size in shapes)
    if isinstance(indices, slice):
        backprop.x[:rows] = part.x[indices]
    else:  # mode "clip" writes straight to `out`; the indices are in range
        part.x.take(indices, axis=0, out=backprop.x[:rows], mode="clip")
    y = part.y[indices]
    if y.ndim == 1:
        smoothed_one_hot(y, smoothing, backprop.y[:rows])
    else:
        backprop.y[:rows] = y
