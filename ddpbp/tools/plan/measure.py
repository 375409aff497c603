"""Measure on these ranks what the prediction needs.

The step of one rank with as many leaves as it would own (alone, and on all ranks at once, which
share caches and memory), when each part of its gradient is complete, how fast vectors are added,
how long ranks take to meet, and latency and bandwidth between hosts.
"""

import statistics
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK, blocks
from ddpbp.base.phases import Pulse
from ddpbp.comm.all_reduce.choose import is_small, make_reducer
from ddpbp.comm.all_reduce.reducer import Payload, is_finite
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import make_network, make_payload, make_trainer
from ddpbp.tools.bench import PhaseTimer, links, run_steps, seconds_of
from ddpbp.tools.plan.machine import Compute, Machine, Shape
from ddpbp.tools.plan.predict import CALL_SECONDS, gather_seconds, meet_seconds, travel_seconds

MEASURE_SECONDS = 0.3  # for one number of leaves
MOST_LEAVES = 64  # of a measured rank; with more it takes longer in proportion
REPEATS = 5
VECTOR_BYTES = 16_000_000  # more than a cache holds


class _Marks(PhaseTimer):
    """Also notes which part of the gradient is complete when, counted from the backward pass."""

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(pulse)
        self.marks: list[tuple[float, int]] = []

    def handed_over(self, begin: int) -> None:
        self.marks.append((time.perf_counter() - self.since, begin))


def measure_compute(config: Config, dataset: Dataset, leaves: int, world: World) -> Compute:
    """Measure the step of a rank that owns `leaves` leaves, on all ranks of `world` at once."""
    examples = min(leaves * config.leaf_size, config.batch_size, len(dataset.train))
    standing = msgspec.structs.replace(config.optimizer, learning_rate=1e-12)  # none diverges
    mine = msgspec.structs.replace(
        config, batch_size=examples, micro_batch_size=config.leaf_size, optimizer=standing
    )
    alone = World()
    trainer, timer = make_trainer(mine, dataset, alone), _Marks(alone.pulse)
    first = run_steps(trainer, timer, 3)["step"]
    steps = world.broadcast(max(2, int(MEASURE_SECONDS / REPEATS / first)))
    timer.marks.clear()
    world.barrier()
    runs = [run_steps(trainer, timer, steps) for _ in range(REPEATS)]
    median = {phase: statistics.median(one[phase] for one in runs) for phase in runs[0]}
    every = world.all_gather_object([one["step"] for one in runs])
    # All wait for the slowest, which is not always the same.
    slowest = statistics.median(max(one) for one in zip(*every, strict=True))
    marks = len(timer.marks) // (steps * REPEATS)
    complete = tuple(
        (statistics.median(s for s, _ in timer.marks[i::marks]), timer.marks[i][1])
        for i in range(marks)
    )
    before = median["data"] + median["forward"]
    compute = Compute(before, median["backward"], complete, median["reduce"], median["update"])
    return compute.slower(max(1.0, slowest / median["step"]))


def measure_machine(
    config: Config, dataset: Dataset, world: World, leaves: Sequence[int]
) -> Machine:
    """Measure everything, for ranks that own each of these numbers of leaves."""
    payload = payload_of(config, dataset)
    alone, together = {}, {}
    for count in sorted({min(count, MOST_LEAVES) for count in leaves}, reverse=True):
        together[count] = measure_compute(config, dataset, count, world)
        if world.rank == 0:
            alone[count] = measure_compute(config, dataset, count, World())
        world.wait_idly()
    alone = world.broadcast(alone)
    for count in leaves:
        if count > MOST_LEAVES:
            for measured in (alone, together):
                measured[count] = measured[MOST_LEAVES].with_leaves(count / MOST_LEAVES)
    elements = min(payload.length, VECTOR_BYTES // payload.dtype.itemsize)
    left, right = (np.ones(elements, payload.dtype) for _ in range(2))

    def add() -> None:
        for a, b in blocks(left, right):
            np.add(a, b, a)

    def check() -> None:
        for (block,) in blocks(right):
            is_finite(block)

    world.barrier()
    add_seconds, check_seconds = (
        max(0.0, seconds_of(call, 10) - CALL_SECONDS * -(-elements // BLOCK)) / elements
        for call in (add, check)
    )
    barrier = seconds_of(world.local_barrier, 200) if world.local_size > 1 else 0.0
    slowest = links(world) if world.host_count > 1 else []
    machine = Machine(
        Shape(world.host_count, max(world.host_sizes)),
        alone,
        together,
        max(world.all_gather_object(add_seconds)),
        max(world.all_gather_object(check_seconds)),
        max(world.all_gather_object(barrier)),
        max((link.latency_seconds for link in slowest), default=0.0),
        min((link.bytes_per_second for link in slowest), default=0.0),
    )
    return _calibrated(machine, payload, world)


def payload_of(config: Config, dataset: Dataset) -> Payload:
    """Return what a full batch of the configuration sums in a step."""
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    leaves = tree.leaf_count(min(config.batch_size, len(dataset.train)), config.leaf_size)
    return make_payload(config, network, (leaves,))


def _calibrated(machine: Machine, payload: Payload, world: World) -> Machine:
    """Measure a reduction by itself where there is one, and note by how much it is mispredicted."""
    if world.world_size == 1:
        return machine
    (size,) = payload.leaf_counts
    reducer = make_reducer(world, payload)

    def reduction() -> None:
        reducer.begin_step(size)
        reducer.finish()

    seconds = max(world.all_gather_object(seconds_of(reduction, 5)))
    shape = machine.measured_on
    if shape.hosts == 1:
        return machine._replace(local_factor=seconds / meet_seconds(machine, payload, shape))
    if is_small(payload, shape.ranks):
        predicted = gather_seconds(machine, payload, shape)
    else:
        nothing = Compute(0.0, 0.0, ((0.0, 0),), 0.0, 0.0)
        predicted = travel_seconds(machine, payload, shape, nothing)
    return machine._replace(network_factor=seconds / predicted)
