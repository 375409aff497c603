"""Training: the loop, readable as prose."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp import checkpoint, draws, pin, tree
from ddpbp.build import (
    load,
    make_backprop,
    make_network,
    make_optimizer,
    make_schedule,
    open_dataset,
)
from ddpbp.checkpoint import Model
from ddpbp.comm.reduce import make_reducer
from ddpbp.comm.reducer import Layout
from ddpbp.comm.watch import digest, require_equal, require_in_step
from ddpbp.comm.world import World
from ddpbp.config import Config, to_toml
from ddpbp.data.batches import Batch, Batches
from ddpbp.data.dataset import Dataset
from ddpbp.errors import ConfigError, Diverged
from ddpbp.evaluate import Evaluator
from ddpbp.nn.network import initialize
from ddpbp.nn.schedules import factor
from ddpbp.report import Printed, Report

Array = npt.NDArray[Any]


def require_enough_leaves(config: Config, world_size: int) -> None:
    """Refuse more ranks than a batch has leaves.

    Raises
    ------
    ConfigError
        Says which two settings to change.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    if world_size > leaves:
        raise ConfigError(
            f"{world_size} ranks, but a batch has only {leaves} leaves (batch_size = "
            f"{config.batch_size}, micro_batch_size = {config.leaf_size}): start at most {leaves} "
            "ranks, raise batch_size or lower micro_batch_size"
        )


class Trainer:
    """One rank of a run: its weights, its share of the data, its part in every step.

    Parameters
    ----------
    config : Config
    dataset : Dataset
    world : World

    Attributes
    ----------
    theta : Parameters
        The weights; after every step the same bits on every rank.
    step : int
        The number of updates so far.
    eta : float
        The learning rate of the last update.
    phase : str
        What this rank is doing: data, forward, backward, reduce, update or between.
    canary : str
        A hash over one leaf's forward and backward pass on synthetic data.
    """

    def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
        self.config, self.dataset, self.world = config, dataset, world
        self.network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
        self.theta = initialize(self.network, config.model.initialization, config.seed)
        self.batches = Batches(
            len(dataset.train),
            config.batch_size,
            config.leaf_size,
            config.seed,
            world.rank,
            world.world_size,
        )
        capacity = max(self.batches.capacity, config.leaf_size)  # a canary is one full leaf
        self.backprop = make_backprop(config, self.network, capacity)
        layout = Layout(
            self.network.parameter_count, self.network.dtype, 1, self.batches.leaf_counts
        )
        self.reducer = make_reducer(world, layout, pin.notes.append)
        self._nodes = [self.network.views(row) for row in self.reducer.node_grads]
        self._merges: dict[tuple[int, int, int], list[int]] = {}
        self.optimizer = make_optimizer(config, self.network)
        self.schedule = make_schedule(config, self.batches.steps_per_epoch)
        self.step, self.phase = 0, "between"
        self.eta = self.learning_rate()
        self.canary = self._canary()
        require_equal(
            world,
            "canary (forward and backward on synthetic data)",
            self.canary,
            'the machines compute different bits; set kernel = "haswell", or use equal machines '
            "with equal versions of Python, NumPy and ddpbp",
        )
        require_equal(
            world, "initial weights", digest([self.theta.flat]), "use equal versions everywhere"
        )

    def train_step(self, batch: Batch) -> float:
        """Run one step of gradient descent over all ranks; return the batch's mean loss."""
        self.phase = "data"
        load(
            self.backprop,
            self.dataset.train,
            batch.indices,
            batch.shapes,
            self.config.loss.label_smoothing,
        )
        merges = self._my_merges(batch)
        rows = self.reducer.nodes(batch.leaf_count)

        self.phase = "forward"
        self.backprop.forward(self.theta, self.step, batch.first)
        self.reducer.node_statistics[rows, 0] = tree.accumulate(self.backprop.losses(), merges)
        self.phase = "backward"
        for l in self.backprop.backward(self.theta, self._nodes[rows], merges, batch.examples):
            start_W, _, end = self.network.spans[l - 1]
            self.reducer.start(start_W, end)
        self.phase = "reduce"
        reduced = self.reducer.finish(batch.leaf_count)

        loss = float(reduced.statistics[0]) / batch.examples
        if not (math.isfinite(loss) and reduced.finite):
            self._raise_diverged(batch, reduced.grad)
        self.phase = "update"
        self.eta = self.learning_rate()
        self.optimizer.update(self.theta.flat, reduced.grad, self.eta)
        self.step += 1
        self.phase = "between"
        return loss

    def learning_rate(self) -> float:
        """Return η of the coming step."""
        o = self.config.optimizer
        scale = self.config.batch_size / o.base_batch_size if o.base_batch_size else 1.0
        return o.learning_rate * scale * factor(self.config.schedule.name, self.step, self.schedule)

    def require_in_step(self) -> None:
        """Stop the run unless every rank holds the same weights and optimizer state."""
        tensors = {"theta": self.theta.flat}
        tensors |= {f"optimizer {k}": v for k, v in self.optimizer.state.items()}
        require_in_step(self.world, self.step, tensors)

    def _my_merges(self, batch: Batch) -> Sequence[int]:
        where = (batch.leaf_count, *batch.leaves)
        if where not in self._merges:
            leaves = ((i, i + 1) for i in range(*batch.leaves))
            self._merges[where], _ = tree.fold(leaves, batch.leaf_count)
        return self._merges[where]

    def _raise_diverged(self, batch: Batch, grad: Array) -> None:
        """Find the first layer that is not finite, over all ranks; nobody's weights were touched.

        Raises
        ------
        Diverged
            On every rank.
        """
        self.backprop.forward(self.theta, self.step, batch.first)
        mine: tuple[int, int, str] | None = None
        row = batch.first
        for stack in self.backprop.stacks:
            for i in range(stack.count):
                for l in range(1, self.network.L + 1):
                    if not np.isfinite(stack.z[l][i]).all() and (mine is None or (l, row) < mine):
                        rows = f"rows {row} to {row + stack.size - 1} of the batch"
                        mine = (l, row, f"z of layer {l}, {rows}")
                row += stack.size
        found = [place for place in self.world.all_gather_object(mine) if place]
        if found:
            what = min(found)[2]
        else:
            layers = [
                l
                for l, (s, _, e) in enumerate(self.network.spans, 1)
                if not np.isfinite(grad[s:e]).all()
            ]
            what = f"the gradient of layer {layers[-1]}" if layers else "the loss"
        epoch = self.step // self.batches.steps_per_epoch + 1
        raise Diverged(
            f"epoch {epoch}, step {self.step + 1}: {what} is not finite; the weights are those of "
            f"step {self.step}. Lower optimizer.learning_rate (now {self.learning_rate():g}), set "
            "optimizer.clip_norm, or check the scale of the data"
        )

    def _canary(self) -> str:
        size = self.config.leaf_size
        (stack,) = self.backprop.arrange(((1, size),))
        n = stack.x.size
        values = draws.uniform(draws.key(draws.CANARY), np.arange(n, dtype=np.uint64))
        stack.x[...] = (2.0 * values - 1.0).reshape(stack.x.shape)
        stack.y[...] = 0.0
        stack.y[:, 0] = 1.0
        self.backprop.forward(self.theta, 0)
        losses = self.backprop.losses()
        flat = np.empty((1, self.network.parameter_count), self.network.dtype)
        for _ in self.backprop.backward(self.theta, [self.network.views(flat[0])], [0], size):
            pass
        return digest([np.array(losses), stack.a[-1], flat])


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes
    ----------
    model : Model
    result : dict
        What result.json holds.
    """

    model: Model
    result: dict[str, Any]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # looked for, and told, by us
def train(
    config: Config,
    world: World | None = None,
    *,
    overwrite: bool = False,
    fast_dev_run: bool = False,
) -> Trained:
    """Train as the configuration says; rank 0 writes the run folder and reports.

    Parameters
    ----------
    config : Config
    world : World, optional
        The ranks; one process by default.
    overwrite : bool
        Replace a run that is already in the folder.
    fast_dev_run : bool
        One batch of everything, written nowhere.

    Returns
    -------
    Trained

    Raises
    ------
    DdpbpError
        On every rank alike: bad settings or data, divergence, ranks out of step.
    """
    world = world or World()
    require_enough_leaves(config, world.world_size)
    folder = None if fast_dev_run else Path(config.output)
    with world.together():
        if folder and world.rank == 0:
            checkpoint.make_run_folder(folder, overwrite=overwrite)
    dataset = open_dataset(config, world)
    trainer = Trainer(config, dataset, world)
    evaluator = Evaluator(config, trainer.network, world)
    with world.together():
        if folder and world.rank == 0:  # only now: bad data leave no run behind, nor remove one
            checkpoint.begin_run(folder, to_toml(config))
    report: Report = Printed() if world.rank == 0 else Report()
    with report:
        if folder and isinstance(report, Printed):
            report.open(folder / checkpoint.METRICS)
        for note in pin.notes:
            report.say(f"note: {note}")
        report.say(_headline(config, trainer))
        result = _run(config, trainer, evaluator, report, fast_dev_run=fast_dev_run)
        model = Model(
            config, trainer.network, trainer.theta, dataset.classes, dataset.standardization
        )
        with world.together():
            if folder and world.rank == 0:
                checkpoint.save_model(folder / checkpoint.MODEL, model)
                checkpoint.write_json(folder / checkpoint.RESULT, result)
        report.say(_summary(result, folder))
    return Trained(model, result)


def _run(
    config: Config,
    trainer: Trainer,
    evaluator: Evaluator,
    report: Report,
    *,
    fast_dev_run: bool,
) -> dict[str, Any]:
    dataset, batches = trainer.dataset, trainer.batches
    epochs = 1 if fast_dev_run else config.epochs
    examples, seconds = 0, 0.0
    record: dict[str, Any] = {}
    report.begin(epochs, len(dataset.train))
    for epoch in range(epochs):
        loss_sum, seen, began = 0.0, 0, time.perf_counter()
        for batch in batches.epoch(epoch):
            loss = trainer.train_step(batch)
            loss_sum += loss * batch.examples
            seen += batch.examples
            log = bool(config.log_every_steps) and trainer.step % config.log_every_steps == 0
            report.step(epoch + 1, trainer.step, batch.examples, loss, log=log)
            if config.check_every_steps and trainer.step % config.check_every_steps == 0:
                trainer.require_in_step()
            if fast_dev_run:
                break
        took = time.perf_counter() - began
        trainer.require_in_step()
        examples, seconds = examples + seen, seconds + took
        record = {
            "epoch": epoch + 1,
            "step": trainer.step,
            "learning_rate": trainer.eta,
            "train_loss": loss_sum / seen,
            **_scores("validation", evaluator, trainer),
            "seconds": took,
            "examples_per_second": seen / took,
        }
        report.epoch(record)
    scores = {key: v for key, v in record.items() if key.startswith(("train_", "validation_"))}
    return {
        "theta_sha256": digest([trainer.theta.flat]),
        **scores,
        **_scores("test", evaluator, trainer),
        "epochs": epochs,
        "steps": trainer.step,
        "examples": examples,
        "examples_per_second": examples / seconds if seconds else None,
        "world_size": trainer.world.world_size,
        "parameters": trainer.network.parameter_count,
        "canary_sha256": trainer.canary,
    }


def _scores(name: str, evaluator: Evaluator, trainer: Trainer) -> dict[str, float]:
    part = getattr(trainer.dataset, name)
    if part is None:
        return {}
    return {f"{name}_{key}": v for key, v in evaluator.score(trainer.theta, part).items()}


def _headline(config: Config, trainer: Trainer) -> str:
    sizes = "-".join(str(n) for n in trainer.network.sizes)
    ranks = trainer.world.world_size
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    return (
        f"{trainer.dataset.description}\n"
        f"network {sizes}, {trainer.network.parameter_count:,} parameters; "
        f"{len(trainer.dataset.train):,} examples in batches of {config.batch_size} "
        f"({leaves} leaves) on {ranks} {'rank' if ranks == 1 else 'ranks'}"
    )


def _summary(result: dict[str, Any], folder: Path | None) -> str:
    scores = [
        f"{key.replace('_', ' ')} {v:.4f}" for key, v in result.items() if key.startswith("test_")
    ]
    lines = ["  ".join(scores)] if scores else []
    lines.append(f"theta sha256 {result['theta_sha256']}")
    if folder:
        lines.append(f"saved in {folder}")
    return "\n".join(lines)
