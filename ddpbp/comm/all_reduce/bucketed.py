"""The reducer of several machines: what is complete travels while the rest is still computed.

The vector is cut into buckets, from its end: the backward pass completes it from there. A bucket
goes through four stages, each begun when the one before is done:

1. the ranks of the machine have all written it (their rows lie in memory that they share);
2. its part for machine h, summed as far as this machine's leaves allow, goes to machine h;
3. each machine forms the root of its own part, from what all have sent;
4. the root goes to all the others.

Rank j of a machine (its lane j) does this for the j-th share of every bucket, with the ranks j of
the other machines. Messages move while their requests are tested: `start` does that.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.all_reduce.portable import Tails
from ddpbp.comm.all_reduce.reducer import Array, Layout, Reduced, TreeSum, is_finite
from ddpbp.comm.all_reduce.shared import SharedSums
from ddpbp.comm.world import Request, World

# How a rank waits that has nothing to compute: so often it looks at once, then after naps.
PATIENT_LOOKS = 50
NAP_SECONDS = 50e-6


@dataclass
class _Message:
    """A vector that travels: as it is, or in 16 bits."""

    array: Array
    node: int
    tag: int
    packed: Array | None = None

    @property
    def buffer(self) -> Array:
        return self.array if self.packed is None else self.packed


@dataclass
class _Plan:
    """What this rank does for one bucket of a step with a certain number of leaves."""

    joins: list[TreeSum] = field(default_factory=list)
    sent: list[_Message] = field(default_factory=list)
    received: list[_Message] = field(default_factory=list)
    root: TreeSum | None = None
    sent_root: list[_Message] = field(default_factory=list)
    received_roots: list[_Message] = field(default_factory=list)


class Bucketed(SharedSums):
    """Ranks of several machines: shared memory inside them, overlapped messages between them."""

    def __init__(self, world: World, layout: Layout, memory: Array, sums: Array) -> None:
        super().__init__(world, layout, memory, sums)
        cap = max(1, layout.bucket_cap_bytes // layout.dtype.itemsize)
        ends = range(layout.length, 0, -cap)
        self._buckets = [(max(0, end - cap), end) for end in ends]
        self._bucket_plans: dict[tuple[int, int], _Plan] = {}
        self._tails = Tails(self)
        self._buffers: dict[Any, Array] = {}
        # Of one bucket: a machine sends no more nodes than its ranks hold; the last is the root's.
        self._tags = 1 + max(world.node_sizes) * self.node_count
        self._travelling: list[tuple[Iterator[list[Request]], list[Request]]] = []
        self._size, self._begun, self._finite = 0, 0, True

    def nodes(self, size: int) -> slice:
        self._size, self._begun, self._finite = size, 0, True
        return super().nodes(size)

    def start(self, begin: int) -> None:
        while self._begun < len(self._buckets) and self._buckets[self._begun][0] >= begin:
            self._travelling.append((self._travel(self._begun), []))
            self._begun += 1
        self._travelling = [one for one in self._travelling if self._goes_on(*one)]

    def _goes_on(self, stages: Iterator[list[Request]], waits_for: list[Request]) -> bool:
        """Bring a bucket as far as it can go now; tell whether there is more to do."""
        while True:
            waits_for[:] = [request for request in waits_for if not request.Test()]
            if waits_for:
                return True
            try:
                waits_for += next(stages)
            except StopIteration:
                return False

    def finish(self, size: int, signal: int = 0) -> Reduced:
        self.start(0)
        looks, open_before = 0, 0
        while self._travelling:
            open_ = sum(1 + len(waits_for) for _, waits_for in self._travelling)
            looks = looks + 1 if open_ == open_before else 0
            open_before = open_
            if looks > PATIENT_LOOKS:  # leave the core to a rank that still computes
                time.sleep(NAP_SECONDS)
            self.start(0)
        # Only now: who waits in here cannot bring a bucket further that another waits for.
        statistics, finite, signal = self._tails.exchange(size, signal, finite=self._finite)
        return Reduced(self._grad, statistics, finite, signal)

    def _travel(self, bucket: int) -> Iterator[list[Request]]:
        """Go through the stages of a bucket; each yields the requests that the next waits for."""
        world = self.world
        written = world.start_local_barrier()
        if world.lane < 0:
            yield [written]
            return
        plan = self._plan(bucket)
        incoming = [world.start_receive(m.buffer, m.node, m.tag) for m in plan.received]
        yield [written]
        for join in plan.joins:
            join()
        self._pack(plan.sent)
        yield incoming + [world.start_send(m.buffer, m.node, m.tag) for m in plan.sent]
        self._unpack(plan.received)
        if plan.root:
            plan.root()
            self._finite &= is_finite(plan.root.out)
        self._pack(plan.sent_root)
        yield [
            *(world.start_receive(m.buffer, m.node, m.tag) for m in plan.received_roots),
            *(world.start_send(m.buffer, m.node, m.tag) for m in plan.sent_root),
        ]
        self._unpack(plan.received_roots)

    def _pack(self, messages: list[_Message]) -> None:
        for m in messages:
            if self.wire and m.packed is not None:
                self.wire.pack(m.array, m.packed)

    def _unpack(self, messages: list[_Message]) -> None:
        for m in messages:
            if self.wire and m.packed is not None:
                self.wire.unpack(m.packed, m.array)

    def _plan(self, bucket: int) -> _Plan:
        where = (self._size, bucket)
        if where not in self._bucket_plans:
            self._bucket_plans[where] = self._make_plan(*where)
        return self._bucket_plans[where]

    def _make_plan(self, size: int, bucket: int) -> _Plan:
        world, here = self.world, self.world.node
        covers = [tree.run_program(size, r, world.world_size)[1] for r in range(world.world_size)]
        spans: list[list[tree.Span]] = []  # of each machine: the nodes its ranks hold
        first = 0
        for ranks in world.node_sizes:
            spans.append([span for cover in covers[first : first + ranks] for span in cover])
            first += ranks
        joins = [tree.joins(held, size) for held in spans]
        first = sum(world.node_sizes[:here])
        held = [
            self._all_grads[local, node]
            for local in range(world.local_size)
            for node in range(len(covers[first + local]))
        ]

        plan = _Plan()
        others = [(here + i) % world.node_count for i in range(1, world.node_count)]
        for node in others:
            part = self._part(bucket, node)
            for i, join in enumerate(joins[here]):
                values = [row[part] for row in held[join.parts]]
                (array, *more) = values
                if more:
                    array = self._buffer(array.dtype, array.size, "to", bucket, node, i)
                    plan.joins.append(TreeSum(values, join.merges, array, self._scratch, self.wire))
                plan.sent.append(self._message(array, node, bucket * self._tags + i, "out"))
        mine = self._part(bucket, here)
        size_mine = mine.stop - mine.start
        values, inputs = [], []
        for node, found in enumerate(joins):
            if node == here:
                values += [row[mine] for row in held]
                inputs += spans[node]
                continue
            for i, join in enumerate(found):
                array = self._buffer(self.layout.dtype, size_mine, "from", bucket, node, i)
                plan.received.append(self._message(array, node, bucket * self._tags + i, "in"))
                values.append(array)
                inputs.append(join.span)
        if size_mine:
            (root,) = tree.joins(inputs, size)
            plan.root = TreeSum(values, root.merges, self._grad[mine], self._scratch, self.wire)
        tag = (bucket + 1) * self._tags - 1
        for node in others:
            theirs = self._grad[self._part(bucket, node)]
            plan.received_roots.append(self._message(theirs, node, tag, "root"))
        if others:
            packed = self._message(self._grad[mine], here, tag, "root").packed
            plan.sent_root = [_Message(self._grad[mine], node, tag, packed) for node in others]
        return plan

    def _part(self, bucket: int, node: int) -> slice:
        """Return the elements of a bucket that `node` sums on this rank's lane."""
        begin, end = self._buckets[bucket]
        width = -(-(end - begin) // (self.world.lane_count * self.world.node_count))
        start = begin + (self.world.lane * self.world.node_count + node) * width
        return slice(min(start, end), min(start + width, end))

    def _message(self, array: Array, node: int, tag: int, use: str) -> _Message:
        packed = self._buffer(np.uint16, array.size, use, node, tag) if self.wire else None
        return _Message(array, node, tag, packed)

    def _buffer(self, dtype: npt.DTypeLike, size: int, *place: Any) -> Array:
        """Return memory for one place; steps with other numbers of leaves use it again."""
        place = (dtype, *place)
        if place not in self._buffers:
            self._buffers[place] = np.empty(size, dtype)
        return self._buffers[place]
