"""The reducer of several hosts: complete parts travel while the rest is still computed.

The gradient is cut into buckets, starting from its end, where the backward pass completes it first.
A bucket goes through four stages; each begins when the one before is done:

1. all ranks of this host have written it (their rows lie in memory that they share);
2. for each other host, its part of the bucket, summed as far as the leaves of this host allow, is
   sent to it;
3. each host forms the root of its own part from what all hosts have sent;
4. each host sends that root to all others.

Rank j of a host (on lane j) does this for the j-th share of every bucket, together with rank j of
each other host. Messages advance while their requests are tested, which `start` does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.all_reduce.portable import Tails
from ddpbp.comm.all_reduce.reducer import Array, Payload, Reduced, TreeSum, is_finite
from ddpbp.comm.all_reduce.shared import SharedSums
from ddpbp.comm.world import Request, World

# A rank that has nothing left to compute tests its requests this many times without progress; then
# it sleeps between tests.
SLEEP_AFTER = 50
SLEEP_SECONDS = 50e-6
# Every open bucket is tested again and again: tens of thousands would take minutes a step.
MOST_BUCKETS = 1_024


@dataclass
class _Message:
    """A vector to or from another host, as it is or packed in 16 bits."""

    array: Array
    host: int
    tag: int
    packed: Array | None = None

    @property
    def buffer(self) -> Array:
        return self.array if self.packed is None else self.packed


@dataclass
class _Plan:
    """The work of this rank for one bucket, in a step of a certain number of leaves."""

    joins: list[TreeSum] = field(default_factory=list)
    sent: list[_Message] = field(default_factory=list)
    received: list[_Message] = field(default_factory=list)
    root: TreeSum | None = None
    sent_root: list[_Message] = field(default_factory=list)
    received_roots: list[_Message] = field(default_factory=list)


class Bucketed(SharedSums):
    """Ranks of several hosts: shared memory inside a host, overlapped messages between hosts."""

    def __init__(self, world: World, payload: Payload, memory: Array, sums: Array) -> None:
        super().__init__(world, payload, memory, sums)
        cap = payload.bucket_cap_bytes // payload.dtype.itemsize
        cap = max(1, cap, -(-payload.length // MOST_BUCKETS))
        ends = range(payload.length, 0, -cap)
        self._buckets = [(max(0, end - cap), end) for end in ends]
        ranks = range(world.world_size)
        self._covers = {  # the nodes of each rank
            n: [tree.cover(n, rank, len(ranks), payload.full) for rank in ranks]
            for n in payload.leaf_counts
        }
        self._bucket_plans: dict[tuple[int, int], _Plan] = {}
        self._tails = Tails(self)
        self._buffers: dict[Any, Array] = {}
        # The tags of one bucket: for each node that a host sends, which are no more than its ranks
        # hold; the last one is for the root.
        self._tags = 1 + max(world.host_sizes) * self.node_count
        self._in_progress: list[tuple[Iterator[list[Request]], list[Request]]] = []
        self._begun, self._finite = 0, True

    def begin_step(self, leaf_count: int) -> slice:
        self._begun, self._finite = 0, True
        return super().begin_step(leaf_count)

    def start(self, begin: int) -> None:
        while self._begun < len(self._buckets) and self._buckets[self._begun][0] >= begin:
            self._in_progress.append((self._travel(self._begun), []))
            self._begun += 1
        self._in_progress = [bucket for bucket in self._in_progress if self._advance(*bucket)]

    def _advance(self, stages: Iterator[list[Request]], pending: list[Request]) -> bool:
        """Advance a bucket as far as possible now; return whether more remains to be done."""
        while True:
            pending[:] = [request for request in pending if not request.Test()]
            if pending:
                return True
            try:
                pending += next(stages)
            except StopIteration:
                return False

    def finish(self, signal: int = 0) -> Reduced:
        self.start(0)
        tests, open_before = 0, 0
        while self._in_progress:
            open_ = sum(1 + len(pending) for _, pending in self._in_progress)
            tests = tests + 1 if open_ == open_before else 0
            open_before = open_
            if tests > SLEEP_AFTER:  # leave the core to a rank that still computes
                time.sleep(SLEEP_SECONDS)
            self.start(0)
        # Last, because a rank blocked in this exchange cannot advance a bucket another rank needs.
        statistics, finite, signal = self._tails.exchange(
            self._leaf_count, signal, finite=self._finite
        )
        return Reduced(self._grad, statistics, finite, signal)

    def _travel(self, bucket: int) -> Iterator[list[Request]]:
        """Go through the stages of a bucket; each yields the requests that the next waits for."""
        world = self.world
        written = world.start_local_barrier()
        if world.lane < 0:
            yield [written]
            return
        plan = self._plan(bucket)
        incoming = [world.start_receive(m.buffer, m.host, m.tag) for m in plan.received]
        yield [written]
        for join in plan.joins:
            join()
        self._pack(plan.sent)
        yield incoming + [world.start_send(m.buffer, m.host, m.tag) for m in plan.sent]
        self._unpack(plan.received)
        if plan.root:
            plan.root()
            self._finite &= is_finite(plan.root.out)
        self._pack(plan.sent_root)
        yield [
            *(world.start_receive(m.buffer, m.host, m.tag) for m in plan.received_roots),
            *(world.start_send(m.buffer, m.host, m.tag) for m in plan.sent_root),
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

    # --- plans -----------------------------------------------------------------------------------

    def _plan(self, bucket: int) -> _Plan:
        key = (self._leaf_count, bucket)
        if key not in self._bucket_plans:
            self._bucket_plans[key] = self._make_plan(bucket)
        return self._bucket_plans[key]

    def _make_plan(self, bucket: int) -> _Plan:
        world, here = self.world, self.world.host_index
        spans = self._spans_by_host()
        joins = [tree.joins(held, self._leaf_count) for held in spans]
        held = self._rows_of_host()
        others = [(here + i) % world.host_count for i in range(1, world.host_count)]
        plan = _Plan()
        for host in others:
            part = self._part(bucket, host)
            for i, join in enumerate(joins[here]):
                values = [row[part] for row in held[join.parts]]
                (array, *more) = values
                if more:
                    array = self._buffer(array.dtype, array.size, "to", bucket, host, i)
                    plan.joins.append(TreeSum(values, join.merges, array, self._scratch, self.wire))
                plan.sent.append(self._message(array, host, bucket * self._tags + i, "out"))
        mine = self._part(bucket, here)
        length = mine.stop - mine.start
        values, inputs = [], []
        for host, from_host in enumerate(joins):
            if host == here:
                values += [row[mine] for row in held]
                inputs += spans[host]
                continue
            for i, join in enumerate(from_host):
                array = self._buffer(self.payload.dtype, length, "from", bucket, host, i)
                plan.received.append(self._message(array, host, bucket * self._tags + i, "in"))
                values.append(array)
                inputs.append(join.span)
        if length:
            (root,) = tree.joins(inputs, self._leaf_count)
            plan.root = TreeSum(values, root.merges, self._grad[mine], self._scratch, self.wire)
        tag = (bucket + 1) * self._tags - 1
        for host in others:
            theirs = self._grad[self._part(bucket, host)]
            plan.received_roots.append(self._message(theirs, host, tag, "root"))
        if others:
            packed = self._message(self._grad[mine], here, tag, "root").packed
            plan.sent_root = [_Message(self._grad[mine], host, tag, packed) for host in others]
        return plan

    def _spans_by_host(self) -> list[list[tree.Span]]:
        """Return the nodes of each host's ranks."""
        covers, spans, first = self._covers[self._leaf_count], list[list[tree.Span]](), 0
        for ranks in self.world.host_sizes:
            spans.append([span for cover in covers[first : first + ranks] for span in cover])
            first += ranks
        return spans

    def _rows_of_host(self) -> list[Array]:
        """Return the gradients of the nodes of this host, in tree order."""
        first = self.world.rank - self.world.local_rank
        covers = self._covers[self._leaf_count][first : first + self.world.local_size]
        return [
            self._all_grads[local_rank, node]
            for local_rank, cover in enumerate(covers)
            for node in range(len(cover))
        ]

    def _part(self, bucket: int, host: int) -> slice:
        """Return the elements of a bucket that `host` sums on this rank's lane."""
        begin, end = self._buckets[bucket]
        width = -(-(end - begin) // (self.world.lane_count * self.world.host_count))
        start = begin + (self.world.lane * self.world.host_count + host) * width
        return slice(min(start, end), min(start + width, end))

    def _message(self, array: Array, host: int, tag: int, use: str) -> _Message:
        packed = self._buffer(np.uint16, array.size, use, host, tag) if self.wire else None
        return _Message(array, host, tag, packed)

    def _buffer(self, dtype: npt.DTypeLike, size: int, *place: Any) -> Array:
        """Return the memory of one place in the plan; steps of another leaf count use it again."""
        key = (dtype, *place)
        if key not in self._buffers:
            self._buffers[key] = np.empty(size, dtype)
        return self._buffers[key]
