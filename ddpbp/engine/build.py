"""From settings to objects, and from rows of a data set to columns of the workspace."""

import numpy as np
import numpy.typing as npt

from ddpbp.base.rounding import WIRES
from ddpbp.config.settings import Config
from ddpbp.data.sources import Part
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.losses import LOSSES, Loss, make_loss, smoothed_one_hot
from ddpbp.nn.network import Network
from ddpbp.nn.optimizers import Hyperparameters, Optimizer
from ddpbp.nn.schedules import ScheduleSettings


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
