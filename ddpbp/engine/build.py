"""From settings to objects, once: the parts that train and evaluate.

The classes that compute see no settings. So a script can build the same parts by itself, with an
activation, a loss or arrays of its own.
"""

from collections.abc import Callable

import numpy as np

from ddpbp.base.rounding import WIRES
from ddpbp.comm.all_reduce.choose import make_reducer
from ddpbp.comm.all_reduce.reducer import Payload
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset
from ddpbp.data.shards import Shards
from ddpbp.engine.data import task_of
from ddpbp.engine.evaluator import LEAF_ROWS, Evaluator
from ddpbp.engine.trainer import Parts, Trainer
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.losses import LOSSES, Loss
from ddpbp.nn.network import Network, initialize
from ddpbp.nn.optimizers import OPTIMIZERS, Hyperparameters, Optimizer
from ddpbp.nn.schedules import ScheduleSettings, factor

LARGE_STATE_BYTES = 2**22  # below this, the meeting of the ranks can cost more than it saves


def assemble(config: Config, dataset: Dataset, world: World) -> Parts:
    """Build everything that a rank trains with, from the settings and the data."""
    notes: list[str] = []
    train = dataset.train
    network = make_network(config, train.x.shape[1], dataset.outputs)
    shards = make_shards(config, len(train), world.rank, world.world_size)
    payload = make_payload(config, network, shards.leaf_counts)
    optimizer = make_optimizer(config, network)
    return Parts(
        network=network,
        theta=initialize(network, config.model.initialization, config.seed),
        shards=shards,
        backprop=make_backprop(config, network, max(shards.capacity, shards.full_leaf)),
        reducer=make_reducer(world, payload, notes.append),
        optimizer=optimizer,
        learning_rate=make_learning_rate(config, shards.steps_per_epoch),
        shard=shares_update(config.optimizer.shard, optimizer),
        notes=notes,
    )


def make_trainer(config: Config, dataset: Dataset, world: World) -> Trainer:
    """Return a trainer of the parts that the settings describe, on the training part."""
    return Trainer(assemble(config, dataset, world), dataset.train, world)


def make_evaluator(config: Config, network: Network, world: World) -> Evaluator:
    """Return an evaluator for the task and the loss of the settings."""
    backprop = make_backprop(config, network, LEAF_ROWS)
    return Evaluator(backprop, task_of(config), world)


def make_network(config: Config, features: int, outputs: int) -> Network:
    """Return the network for data with these numbers of features and outputs."""
    model = config.model
    return Network(
        sizes=(features, *model.hidden, outputs),
        hidden=model.activation,
        output=model.output or LOSSES[config.loss.name].output,
        dtype=np.dtype(model.dtype),
        dropout=model.dropout,
    )


def make_shards(config: Config, examples: int, rank: int, world_size: int) -> Shards:
    """Return the shards that `rank` owns of all batches."""
    return Shards(examples, config.batch_size, config.leaf_size, config.seed, rank, world_size)


def make_payload(config: Config, network: Network, leaf_counts: tuple[int, ...]) -> Payload:
    """Describe the sums of a step: the gradient, and the loss beside it."""
    return Payload(
        length=network.parameter_count,
        dtype=network.dtype,
        statistics=1,
        leaf_counts=leaf_counts,
        wire=config.wire,
        bucket_cap_bytes=config.bucket_cap_bytes,
    )


def configured_loss(config: Config) -> Loss:
    """Return the loss with its settings bound."""
    settings = {name: getattr(config.loss, name) for name in config.loss.__struct_fields__}
    return LOSSES[config.loss.name].bind(**settings)


def make_backprop(config: Config, network: Network, capacity: int) -> Backprop:
    """Return a workspace for at most `capacity` examples."""
    dropout = Dropout(network.dropout, config.seed) if network.dropout else None
    return Backprop(network, configured_loss(config), capacity, dropout, WIRES[config.wire])


def make_optimizer(config: Config, network: Network) -> Optimizer:
    """Return the optimizer of the settings, its state at zero."""
    o = config.optimizer
    numbers = {name: getattr(o, name) for name in Hyperparameters.__dataclass_fields__}
    return OPTIMIZERS[o.name](network, Hyperparameters(**numbers))


def shares_update(shard: str, optimizer: Optimizer) -> bool:
    """Return whether the ranks of a host are to hold the optimizer's state together."""
    state_bytes = sum(vector.nbytes for vector in optimizer.state.values())
    return shard == "host" or (shard == "auto" and state_bytes >= LARGE_STATE_BYTES)


def make_learning_rate(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Return η as a function of the step: base rate, linear scaling rule, schedule."""
    o, name = config.optimizer, config.schedule.name
    settings = make_schedule(config, steps_per_epoch)
    scale = config.batch_size / o.base_batch_size if o.base_batch_size else 1.0

    def learning_rate(step: int) -> float:
        return o.learning_rate * scale * factor(name, step, settings)

    return learning_rate


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
