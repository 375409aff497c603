"""One rank of a run: its weights, its leaves, its part in every step."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws, tree
from ddpbp.base.hashing import digest
from ddpbp.base.phases import BACKWARD, BETWEEN, DATA, FORWARD, REDUCE, UPDATE
from ddpbp.comm.all_reduce.choose import make_reducer
from ddpbp.comm.all_reduce.reducer import Layout
from ddpbp.comm.comparison import require_equal, require_in_step
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.batches import Batch, Batches
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import load, make_backprop, make_network, make_optimizer, make_schedule
from ddpbp.errors import Diverged, OutOfStep
from ddpbp.nn.network import initialize
from ddpbp.nn.schedules import factor
from ddpbp.store.checkpoint import State

Array = npt.NDArray[Any]

SENT = 2**24  # elements handed out by one message


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
    request, agreed : int
        What this rank asks of all at the next step (see `stop`), and what came of the last.
    notes : list of str
        To be said once.
    canary : str
        A hash over one leaf's forward and backward pass on synthetic data.
    """

    def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
        self.config, self.dataset, self.world = config, dataset, world
        self.notes: list[str] = []
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
        self._canary_size = min(config.leaf_size, len(dataset.train))  # one full leaf
        capacity = max(self.batches.capacity, self._canary_size)
        self.backprop = make_backprop(config, self.network, capacity)
        layout = Layout(
            self.network.parameter_count,
            self.network.dtype,
            1,
            self.batches.leaf_counts,
            config.wire,
            config.bucket_cap_bytes,
        )
        self.reducer = make_reducer(world, layout, self.notes.append)
        self._nodes = [self.network.views(row) for row in self.reducer.node_grads]
        self._merges = {
            n: tree.run_program(n, world.rank, world.world_size)[0]
            for n in self.batches.leaf_counts
        }
        self.optimizer = make_optimizer(config, self.network)
        self.schedule = make_schedule(config, self.batches.steps_per_epoch)
        self.step = 0
        world.pulse.enter(BETWEEN, self.step)
        self.request = self.agreed = 0
        self._in_step = -1  # the step at which the ranks were last compared
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
        pulse = self.world.pulse
        pulse.enter(DATA, self.step)
        load(
            self.backprop,
            self.dataset.train,
            batch.indices,
            batch.shapes,
            self.config.loss.label_smoothing,
        )
        merges = self._merges[batch.leaf_count]
        rows = self.reducer.nodes(batch.leaf_count)

        pulse.enter(FORWARD, self.step)
        self.backprop.forward(self.theta, self.step, batch.first)
        self.reducer.node_statistics[rows, 0] = tree.accumulate(self.backprop.losses(), merges)
        pulse.enter(BACKWARD, self.step)
        for begin in self.backprop.backward(self.theta, self._nodes[rows], merges, batch.examples):
            self.reducer.start(begin)
            pulse.hand_over(begin)
        pulse.enter(REDUCE, self.step)
        reduced = self.reducer.finish(batch.leaf_count, self.request)
        self.agreed = reduced.signal

        loss = float(reduced.statistics[0]) / batch.examples
        if not (math.isfinite(loss) and reduced.finite):
            self._raise_diverged(batch, rows)
        pulse.enter(UPDATE, self.step)
        self.eta = self.learning_rate()
        self.optimizer.update(self.theta.flat, reduced.grad, self.eta)
        self.step += 1
        pulse.enter(BETWEEN, self.step)
        return loss

    def learning_rate(self) -> float:
        """Return η of the coming step."""
        o = self.config.optimizer
        scale = self.config.batch_size / o.base_batch_size if o.base_batch_size else 1.0
        return o.learning_rate * scale * factor(self.config.schedule.name, self.step, self.schedule)

    @property
    def vectors(self) -> dict[str, Array]:
        """The flat vectors that a step changes: θ, and the optimizer's."""
        state = {f"optimizer.{name}": vector for name, vector in self.optimizer.state.items()}
        return {"theta": self.theta.flat, **state}

    def require_in_step(self) -> None:
        """Stop the run unless every rank holds the same weights and optimizer state."""
        if self._in_step != self.step:
            require_in_step(self.world, self.step, self.vectors)
            self._in_step = self.step

    def restore(self, state: State, saved: Mapping[str, Array] | None, root: int) -> None:
        """Take over a state; rank `root` hands out the vectors of it that it has.

        Raises
        ------
        OutOfStep
            On every rank, if one did not receive the weights as they were saved.
        """
        for name, vector in self.vectors.items():
            for begin in range(0, vector.size, SENT):
                block = slice(begin, begin + SENT)
                vector[block] = self.world.broadcast(saved and saved[name][block], root)
        self.step, self.eta = state.step, state.learning_rate
        self.optimizer.products = list(state.optimizer_products)
        with self.world.together():
            if digest([self.theta.flat]) != state.theta_sha256:
                raise OutOfStep(f"step {self.step}: the weights are not those that were saved")
        self.require_in_step()

    def _raise_diverged(self, batch: Batch, rows: slice) -> None:
        """Find the first layer that is not finite, over all ranks; nobody's weights were touched.

        Raises
        ------
        Diverged
            On every rank.
        """
        self.backprop.forward(self.theta, self.step, batch.first)
        found = [place for place in self.world.all_gather_object(self._wrong_z(batch)) if place]
        if not found:
            wrong = self._wrong_gradient(batch, rows)
            found = [place for place in self.world.all_gather_object(wrong) if place]
        _, what, where = min(found, default=(0, "the sum over all leaves", ""))
        epoch = self.step // self.batches.steps_per_epoch + 1
        raise Diverged(
            f"epoch {epoch}, step {self.step + 1}: {what} is not finite{where}; the weights are "
            f"those of step {self.step}. Lower optimizer.learning_rate (now "
            f"{self.learning_rate():g}), set optimizer.clip_norm, or check the scale of the data"
        )

    def _wrong_z(self, batch: Batch) -> tuple[tuple[int, int], str, str] | None:
        """Tell where this rank's forward pass first leaves the finite: by layer, then by row."""
        row, places = batch.first, []
        for stack in self.backprop.stacks:
            for i in range(stack.count):
                for l in range(1, self.network.L + 1):
                    if not np.isfinite(stack.z[l][i]).all():
                        rows = f"rows {row} to {row + stack.size - 1} of the batch"
                        places.append(((l, row), f"z of layer {l}, {rows},", self._where()))
                row += stack.size
        return min(places, default=None)

    def _wrong_gradient(self, batch: Batch, rows: slice) -> tuple[int, str, str] | None:
        """Tell where this rank's backward pass, or its loss, first leaves the finite."""
        losses, nodes = self.backprop.losses(), self._nodes[rows]
        merges = self._merges[batch.leaf_count]
        for _ in self.backprop.backward(self.theta, nodes, merges, batch.examples):
            pass
        mine = f"rows {batch.first} to {batch.first + batch.rows - 1} of the batch"
        for l in range(self.network.L, 0, -1):
            if not all(np.isfinite(v).all() for node in nodes for v in (node.W[l], node.b[l])):
                return self.network.L - l, f"the gradient of layer {l}, {mine},", self._where()
        if not np.isfinite(losses).all():
            return self.network.L, f"the loss, {mine},", self._where()
        return None

    def _where(self) -> str:
        return f" on rank {self.world.rank} of {self.world.host}"

    def _canary(self) -> str:
        size = self._canary_size
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
