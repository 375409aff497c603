"""One rank of a run: its weights, its leaves, its part in every step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy.typing as npt

from ddpbp.base import phases, tree
from ddpbp.base.hashing import digest
from ddpbp.comm.all_reduce.reducer import Reducer
from ddpbp.comm.compare_ranks import require_equal, require_in_step
from ddpbp.comm.world import World
from ddpbp.data.dataset import Part
from ddpbp.data.shards import Shard, Shards
from ddpbp.engine.canary import canary
from ddpbp.engine.divergence import first_place
from ddpbp.engine.loading import load
from ddpbp.engine.update import make_update
from ddpbp.errors import Diverged, OutOfStep
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Network, Parameters
from ddpbp.nn.optimizers import Optimizer

Array = npt.NDArray[Any]

BROADCAST_ELEMENTS = 2**24  # of one message


@dataclass(frozen=True)
class Parts:
    """The parts that one rank trains with.

    Attributes
    ----------
    network : Network
    theta : Parameters
        The initial weights.
    shards : Shards
        This rank's leaves of every step.
    backprop : Backprop
        A workspace for this rank's leaves, and for one full leaf at least.
    reducer : Reducer
    optimizer : Optimizer
    learning_rate : callable
        η as a function of the step.
    shard : bool
        Let the ranks of a host share the update; no bit depends on it.
    notes : list of str
        To be printed once, by rank 0.
    """

    network: Network
    theta: Parameters
    shards: Shards
    backprop: Backprop
    reducer: Reducer
    optimizer: Optimizer
    learning_rate: Callable[[int], float]
    shard: bool = False
    notes: list[str] = field(default_factory=list)


class Trainer:
    """One rank of a run: its weights, its shard of every batch, its part in every step.

    Parameters
    ----------
    parts : Parts
    data : Part
        The examples to learn from.
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
        What this rank asks for at the next step (see `run.save_requests`), and what all ranks
        agreed on at the last step.
    canary : str
        A hash over one leaf's forward and backward pass on synthetic data.

    Raises
    ------
    OutOfStep
        If the ranks compute different bits, or start from different weights.
    """

    def __init__(self, parts: Parts, data: Part, world: World) -> None:
        self.network, self.theta, self.backprop = parts.network, parts.theta, parts.backprop
        self.shards, self.reducer, self.optimizer = parts.shards, parts.reducer, parts.optimizer
        self.learning_rate, self.notes = parts.learning_rate, parts.notes
        self.data, self.world, self._pulse = data, world, world.pulse
        self.update = make_update(
            self.optimizer, world, self.reducer, shard=parts.shard, notes=self.notes
        )
        self._nodes = [self.network.views(row) for row in self.reducer.node_grads]
        self._merges = {
            n: tree.run_program(n, world.rank, world.world_size, self.reducer.payload.full)[0]
            for n in self.shards.leaf_counts
        }
        self.step = 0
        self.request = self.agreed = 0
        self._in_step = -1  # the step at which the ranks were last compared
        self.eta = self.learning_rate(0)
        self.enter(phases.BETWEEN)
        self.canary = canary(self.backprop, self.theta, self.shards.full_leaf)
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

    def enter(self, phase: phases.Phase) -> None:
        """Begin a phase: what this rank is doing now."""
        self._pulse.enter(phase, self.step)

    def train_step(self, shard: Shard) -> float:
        """Run one step of gradient descent over all ranks; return the batch's mean loss.

        Raises
        ------
        Diverged
            On every rank, before any weight has changed.
        """
        self.enter(phases.DATA)
        load(self.backprop, self.data, shard.indices, shard.shapes)
        merges, examples = self._merges[shard.leaf_count], shard.batch_examples
        rows = self.reducer.begin_step(shard.leaf_count)

        self.enter(phases.FORWARD)
        self.backprop.forward(self.theta, self.step, shard.first)
        self.reducer.node_statistics[rows, 0] = tree.accumulate(self.backprop.losses(), merges)
        self.enter(phases.BACKWARD)
        for begin in self.backprop.backward(self.theta, self._nodes[rows], merges, examples):
            self.reducer.start(begin)  # complete parts travel while the rest is computed
            self._pulse.hand_over(begin)
        self.enter(phases.REDUCE)
        reduced = self.reducer.finish(self.request)
        self.agreed = reduced.signal

        loss = float(reduced.statistics[0]) / examples
        if not (math.isfinite(loss) and reduced.finite):
            self._raise_diverged(shard)
        self.enter(phases.UPDATE)
        self.eta = self.learning_rate(self.step)
        self.update(self.theta.flat, reduced.grad, self.eta)
        self.step += 1
        self.enter(phases.BETWEEN)
        return loss

    @property
    def vectors(self) -> dict[str, Array]:
        """The flat vectors that a step changes: θ, and the optimizer's."""
        state = {f"optimizer.{name}": vector for name, vector in self.optimizer.state.items()}
        return {"theta": self.theta.flat, **state}

    def require_in_step(self) -> None:
        """Stop the run unless every rank holds the same weights and optimizer state.

        Raises
        ------
        OutOfStep
            On every rank: names rank, host, tensor and step.
        """
        if self._in_step != self.step:
            with self.world.together():
                self.update.require_sound(self.step)
            require_in_step(self.world, self.step, self.vectors)
            self._in_step = self.step

    def restore(
        self,
        saved: Mapping[str, Array] | None,
        root: int,
        *,
        step: int,
        eta: float,
        products: Sequence[float],
        theta_sha256: str,
    ) -> None:
        """Restore a saved state; rank `root` broadcasts the vectors.

        Parameters
        ----------
        saved : mapping of str to array, or None
            The vectors by name, on rank `root`.
        root : int
        step : int
        eta : float
            The learning rate of the last update.
        products : sequence of float
            The running products of the optimizer.
        theta_sha256 : str
            The hash of the weights as they were saved.

        Raises
        ------
        OutOfStep
            On every rank, if one did not receive the weights as they were saved.
        """
        for name, vector in self.vectors.items():
            for begin in range(0, vector.size, BROADCAST_ELEMENTS):
                block = slice(begin, begin + BROADCAST_ELEMENTS)
                vector[block] = self.world.broadcast(saved and saved[name][block], root)
        self.step, self.eta = step, eta
        self.update.resume(products)
        with self.world.together():
            if digest([self.theta.flat]) != theta_sha256:
                raise OutOfStep(f"step {self.step}: the weights are not those that were saved")
        self.require_in_step()

    def _raise_diverged(self, shard: Shard) -> NoReturn:
        """Name the first layer and leaf that are not finite; no rank's weights were touched.

        Raises
        ------
        Diverged
            On every rank, with the same message on any number of ranks.
        """
        mine = first_place(self.backprop, self.theta, self.data, shard, self.step)
        places = [place for place in self.world.all_gather_object(mine) if place is not None]
        what = str(min(places)) if places else "the sum over all leaves"
        epoch = self.step // self.shards.steps_per_epoch + 1
        raise Diverged(
            f"epoch {epoch}, step {self.step + 1}: {what} is not finite; the weights are those of "
            f"step {self.step}. Lower optimizer.learning_rate (now "
            f"{self.learning_rate(self.step):g}), set optimizer.clip_norm, or check the scale of "
            "the data"
        )
