"""The update of a step: by each rank for itself, or shared by the ranks of a host.

Where it is shared, the state of the optimizer lies once in the memory of the host. Each rank turns
its pieces of the averaged gradient, which lies there too, into steps; then every rank lowers its
own θ by all of them. Only the state has a single copy, which no other rank could disagree with. So
two things are checked all the time, and reported when the ranks are compared:

- each rank sums the words of its state after an update and before the next one: a bit that flips
  in between is found;
- each piece is now and then also computed by a second rank, from the same inputs: so is a core
  that computes wrongly.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.comm.all_reduce.reducer import Reducer
from ddpbp.comm.shared_memory import whole_pages
from ddpbp.comm.world import World
from ddpbp.errors import OutOfStep
from ddpbp.nn.optimizers import Optimizer, Piece, Step

Array = npt.NDArray[Any]

WATCH_STEPS = 100
"""Each piece is also computed by a second rank once in this many steps."""


class Update:
    """The update of a rank that holds all of the optimizer's state.

    Parameters
    ----------
    optimizer : Optimizer
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, theta: Array, grad: Array, eta: float) -> None:
        """Apply one step to θ in place; see `Optimizer.update`. `grad` is not needed after it."""
        self.optimizer.update(theta, grad, eta)

    def resume(self, products: Sequence[float]) -> None:
        """Continue with these products, and with the state as it now is."""
        self.optimizer.products = list(products)

    def require_sound(self, step: int) -> None:
        """Check what this rank noticed about the state since the run began.

        Raises
        ------
        OutOfStep
            On this rank alone: names tensor and step.
        """


class _Watched(NamedTuple):
    """A piece of another rank as this one computed it: the step, then the state."""

    part: slice
    results: list[Array]


class HostUpdate(Update):
    """The update shared by the ranks of a host.

    Parameters
    ----------
    optimizer : Optimizer
        Its state is replaced by vectors in `memory`.
    world : World
    memory : (local_size, bytes) uint8
        Shared memory in whole pages, filled with zeros.

    Attributes
    ----------
    mine : list of Piece
        The pieces that this rank updates.
    """

    def __init__(self, optimizer: Optimizer, world: World, memory: Array) -> None:
        super().__init__(optimizer)
        self._world, here, size = world, world.local_rank, world.local_size
        flat, begin = memory.reshape(-1), 0
        for name, vector in optimizer.state.items():
            optimizer.state[name] = flat[begin : begin + vector.nbytes].view(vector.dtype)
            begin += _padded(vector.nbytes)
        shares: list[list[Piece]] = [[] for _ in range(size)]
        length = optimizer.pieces[-1].end
        for piece in optimizer.pieces:
            shares[(piece.start + piece.end) // 2 * size // length].append(piece)
        self.mine = shares[here]
        begin, end = (self.mine[0].start, self.mine[-1].end) if self.mine else (0, 0)
        self._others = (slice(begin), slice(end, None))
        self._theirs = shares[(here + 1) % size] if size > 1 else []
        self._most = max(map(len, shares)) if size > 1 else 0
        self._steps, self._faults = 0, list[str]()
        self._seal()

    def __call__(self, theta: Array, grad: Array, eta: float) -> None:
        step = self.optimizer.begin(grad, eta)
        watched = self._watch(step, theta, grad)
        if self._steps % WATCH_STEPS < self._most or self.optimizer.h.clip_norm:
            self._world.local_barrier()  # all have read what the others change now
        self._steps += 1
        for piece, sums in zip(self.mine, self._sums, strict=True):
            part = slice(piece.start, piece.end)
            state = self._state(part)
            s = grad[part] if self.optimizer.in_place else self.optimizer.scratch[: grad[part].size]
            if (now := _sums(state)) != sums:
                self._report(part, "changed between two updates", [True, *np.equal(now, sums)])
            self.optimizer.write_step(step, piece, theta[part], grad[part], s, state)
            theta[part] -= s
            if not self.optimizer.in_place:
                grad[part] = s
            sums[:] = _sums(state)
        self._world.local_barrier()  # all steps are written
        for part, results in watched:
            equal = map(_same_bits, [grad[part], *self._state(part)], results)
            self._report(part, "is not what a second rank computes", [*equal])
        for others in self._others:
            theta[others] -= grad[others]

    def _watch(self, step: Step, theta: Array, grad: Array) -> list[_Watched]:
        """Compute some pieces of another rank, before it changes their inputs."""
        watched = []
        for piece in self._theirs[self._steps % WATCH_STEPS :: WATCH_STEPS]:
            part = slice(piece.start, piece.end)
            s, state = np.empty_like(theta[part]), [v.copy() for v in self._state(part)]
            self.optimizer.write_step(step, piece, theta[part], grad[part], s, state)
            watched.append(_Watched(part, [s, *state]))
        return watched

    def _state(self, part: slice) -> list[Array]:
        return [vector[part] for vector in self.optimizer.state.values()]

    def _seal(self) -> None:
        self._sums = [_sums(self._state(slice(p.start, p.end))) for p in self.mine]

    def _report(self, part: slice, what: str, sound: Sequence[bool]) -> None:
        """Keep, for the next comparison of the ranks, what is wrong with the step or the state."""
        names = ["the step of theta", *(f"optimizer.{name}" for name in self.optimizer.state)]
        for name, good in zip(names, sound, strict=True):
            if not good:
                place = f"elements {part.start:,} to {part.stop - 1:,}, update {self._steps}"
                self._faults.append(f"{name} {what} ({place} of this start)")

    def resume(self, products: Sequence[float]) -> None:
        super().resume(products)
        self._seal()

    def require_sound(self, step: int) -> None:
        if self._faults:
            raise OutOfStep(
                f"step {step}: {self._faults[0]}, on {self._world.host}; memory fault or a core "
                "that computes wrongly; the run is stopped, not repaired"
            )


def _sums(vectors: Sequence[Array]) -> list[int]:
    """Return the sum of the words of each vector: one changed bit changes it."""
    words = (vector.view(f"u{vector.itemsize}") for vector in vectors)
    return [int(np.add.reduce(w, dtype=w.dtype)) for w in words]


def _same_bits(a: Array, b: Array) -> bool:
    return np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))


def _padded(bytes_: int) -> int:
    return -(-bytes_ // 64) * 64


def make_update(
    optimizer: Optimizer, world: World, reducer: Reducer, *, shard: bool, notes: list[str]
) -> Update:
    """Return the update that suits the ranks; every rank of the world calls this.

    It is shared where there is state to hold once, and where the gradient's sum lies in memory
    that the ranks of a host share: not for small networks, nor where ranks survive in place.
    """
    if not (shard and optimizer.state and reducer.shares_sum and max(world.host_sizes) > 1):
        return Update(optimizer)
    bytes_ = sum(_padded(vector.nbytes) for vector in optimizer.state.values())
    memory, reason = world.share(whole_pages(-(-bytes_ // world.local_size)))
    if memory is None:
        notes.append(f"no shared memory, every rank holds the optimizer's state: {reason}")
        return Update(optimizer)
    return HostUpdate(optimizer, world, memory)
