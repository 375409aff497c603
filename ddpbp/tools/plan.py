"""What a step would take on other numbers of ranks and hosts: measured here, predicted there.

Measured are the step of one rank with as many leaves as it would own (alone, and on all ranks at
once, which share caches and memory), when each part of its gradient is complete, how fast vectors
are added, how long ranks take to meet, and latency and bandwidth between hosts. Predicted is the
sum of the parts that follow each other; between hosts, what is complete travels meanwhile.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK, blocks
from ddpbp.base.phases import Pulse
from ddpbp.comm import threads
from ddpbp.comm.all_reduce.choose import SMALL_BYTES, make_reducer
from ddpbp.comm.all_reduce.reducer import Layout, is_finite
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import make_layout, make_network, make_trainer
from ddpbp.engine.data import open_dataset
from ddpbp.errors import ConfigError
from ddpbp.tools.bench import PhaseTimer, links, numbers, run_steps, seconds_of
from ddpbp.tools.dry_run import rank_bytes
from ddpbp.tools.launcher import run_on_ranks, which

MEASURE_SECONDS = 0.3  # for one number of leaves
REPEATS = 5
VECTOR_BYTES = 16_000_000  # more than a cache holds
CALL_SECONDS = 2e-6  # a call of NumPy on next to nothing


class Shape(NamedTuple):
    """Where ranks are: so many hosts, and so many ranks on each."""

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        """The ranks of all hosts."""
        return self.nodes * self.ranks_per_node


class Compute(NamedTuple):
    """The step of one rank that sends nothing, in seconds.

    `before` goes by until the backward pass; `complete` lists when, counted from there, the
    gradient is complete from which element on; `local` is what one rank does in place of a
    reduction.
    """

    before: float
    backward: float
    complete: tuple[tuple[float, int], ...]
    local: float
    update: float

    def slower(self, factor: float) -> "Compute":
        """Return the same, all of it stretched."""
        complete = tuple((seconds * factor, begin) for seconds, begin in self.complete)
        rest = (self.local * factor, self.update * factor)
        return Compute(self.before * factor, self.backward * factor, complete, *rest)

    @property
    def seconds(self) -> float:
        """All of it but `local`."""
        return self.before + self.backward + self.update


class Machine(NamedTuple):
    """What was measured.

    `alone` and `together` are by leaves of a rank. `add_seconds` and `check_seconds` are those of
    one element, `barrier_seconds` a meeting of the ranks of a host. `latency_seconds` and
    `bytes_per_second` are those between hosts, 0 if unknown. `local_factor` and `network_factor`
    are how much longer a reduction took than predicted from these.
    """

    measured_on: Shape
    alone: dict[int, Compute]
    together: dict[int, Compute]
    add_seconds: float
    check_seconds: float
    barrier_seconds: float
    latency_seconds: float
    bytes_per_second: float
    local_factor: float = 1.0
    network_factor: float = 1.0


class _Marks(PhaseTimer):
    """Also notes which part of the gradient is complete when, counted from the backward pass."""

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(pulse)
        self.marks: list[tuple[float, int]] = []

    def handed_over(self, begin: int) -> None:
        self.marks.append((time.perf_counter() - self.since, begin))


def measure_compute(config: Config, dataset: Dataset, leaves: int, world: World) -> Compute:
    """Measure the step of a rank with so many leaves, on all ranks of `world` at once."""
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
    world.all_gather_object(None)
    found = [run_steps(trainer, timer, steps) for _ in range(REPEATS)]
    median = {phase: statistics.median(one[phase] for one in found) for phase in found[0]}
    every = world.all_gather_object([one["step"] for one in found])
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


def _measure(config: Config, dataset: Dataset, world: World, leaves: Sequence[int]) -> Machine:
    layout = _layout(config, dataset)
    alone, together = {}, {}
    for count in leaves:
        together[count] = measure_compute(config, dataset, count, world)
        if world.rank == 0:
            alone[count] = measure_compute(config, dataset, count, World())
        _sleep_until_all_are_here(world)
    alone = world.broadcast(alone)
    elements = min(layout.length, VECTOR_BYTES // layout.dtype.itemsize)
    left, right = (np.ones(elements, layout.dtype) for _ in range(2))

    def add() -> None:
        for a, b in blocks(left, right):
            np.add(a, b, a)

    def check() -> None:
        for (block,) in blocks(right):
            is_finite(block)

    world.all_gather_object(None)
    add_seconds, check_seconds = (
        max(0.0, seconds_of(call, 10) - CALL_SECONDS * -(-elements // BLOCK)) / elements
        for call in (add, check)
    )
    barrier = seconds_of(world.local_barrier, 200) if world.local_size > 1 else 0.0
    slowest = links(world) if world.node_count > 1 else []
    machine = Machine(
        Shape(world.node_count, max(world.node_sizes)),
        alone,
        together,
        max(world.all_gather_object(add_seconds)),
        max(world.all_gather_object(check_seconds)),
        max(world.all_gather_object(barrier)),
        max((link.latency_seconds for link in slowest), default=0.0),
        min((link.bytes_per_second for link in slowest), default=0.0),
    )
    return _calibrated(machine, layout, world)


def _sleep_until_all_are_here(world: World) -> None:
    """Wait for all ranks without taking the processor from the one that works."""
    comm = getattr(world, "comm", None)
    if comm is not None:
        request = comm.Ibarrier()
        while not request.Test():
            time.sleep(0.005)


def _layout(config: Config, dataset: Dataset) -> Layout:
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    leaves = tree.leaf_count(min(config.batch_size, len(dataset.train)), config.leaf_size)
    return make_layout(config, network, (leaves,))


def _calibrated(machine: Machine, layout: Layout, world: World) -> Machine:
    """Measure a reduction by itself where there is one, and note by how much it is mispredicted."""
    if world.world_size == 1:
        return machine
    (size,) = layout.leaf_counts
    reducer = make_reducer(world, layout)

    def reduction() -> None:
        reducer.nodes(size)
        reducer.finish(size)

    seconds = max(world.all_gather_object(seconds_of(reduction, 5)))
    shape = machine.measured_on
    if shape.nodes == 1:
        return machine._replace(local_factor=seconds / _meet(machine, layout, shape))
    if layout.grad_bytes <= SMALL_BYTES:
        predicted = _gather(machine, layout, shape)
    else:
        nothing = Compute(0.0, 0.0, ((0.0, 0),), 0.0, 0.0)
        predicted = _travel(machine, layout, shape, nothing)
    return machine._replace(network_factor=seconds / predicted)


# --- the model -----------------------------------------------------------------------------------


def _covers(layout: Layout, shape: Shape) -> list[list[tree.Span]]:
    """List the nodes of the tree that the ranks of each host hold."""
    (size,) = layout.leaf_counts
    ranks = [tree.run_program(size, rank, shape.ranks)[1] for rank in range(shape.ranks)]
    p = shape.ranks_per_node
    return [[*chain(*ranks[i : i + p])] for i in range(0, shape.ranks, p)]


def _meet(machine: Machine, layout: Layout, shape: Shape) -> float:
    """Predict a reduction between the ranks of one host."""
    (held,) = _covers(layout, shape)
    adds = len(held) - 1
    if layout.grad_bytes <= SMALL_BYTES:
        elements, meetings = layout.length, 1
    else:
        elements, meetings = layout.length // shape.ranks_per_node, 2
    work = elements * (adds * machine.add_seconds + machine.check_seconds)
    calls = CALL_SECONDS * (adds + 4) * max(1, elements // 32_768)
    return machine.local_factor * (meetings * machine.barrier_seconds + work + calls)


def _gather(machine: Machine, layout: Layout, shape: Shape) -> float:
    """Predict a reduction of a small vector between hosts: all nodes go to all ranks."""
    held = _covers(layout, shape)
    rows = max(map(len, held)) * shape.nodes  # every rank sends as many as the fullest
    work = layout.length * (rows * machine.add_seconds + machine.check_seconds)
    messages = math.ceil(math.log2(shape.ranks)) * machine.latency_seconds
    sent = _sent_bytes(layout, shape) / machine.bytes_per_second
    return machine.network_factor * (messages + sent + work)


def _sent_bytes(layout: Layout, shape: Shape) -> float:
    """Predict what the busiest host sends in a step."""
    if shape.nodes == 1:
        return 0.0
    held, others = _covers(layout, shape), shape.nodes - 1
    if layout.grad_bytes <= SMALL_BYTES:
        p = shape.ranks_per_node
        return float(max(map(len, held)) * layout.row_bytes * others * p)
    (size,) = layout.leaf_counts
    joined = [len(tree.joins(spans, size)) for spans in held]
    item = 2 if layout.wire != "none" else layout.dtype.itemsize
    vectors = max(max(joined), (sum(joined) - min(joined)) / others) + 1  # sums, and the root
    return layout.length * item * vectors * others / shape.nodes


def _travel(machine: Machine, layout: Layout, shape: Shape, compute: Compute) -> float:
    """Predict when the gradient is reduced between hosts, counted from the backward pass on."""
    lanes, nodes = shape.ranks_per_node, shape.nodes
    held = _covers(layout, shape)
    (size,) = layout.leaf_counts
    joined = [len(tree.joins(spans, size)) for spans in held]
    here = max(map(len, held))
    adds = (here - min(joined)) * (nodes - 1) / nodes + (here + sum(joined)) / nodes
    per_element = (adds * machine.add_seconds + machine.check_seconds) / lanes
    sent_seconds = _sent_bytes(layout, shape) / machine.bytes_per_second
    cap = max(1, layout.bucket_cap_bytes // layout.dtype.itemsize)
    arrived = computed = 0.0
    for end in range(layout.length, 0, -cap):
        begin = max(0, end - cap)
        ready = next((s for s, done in compute.complete if done <= begin), compute.backward)
        work = (end - begin) * per_element + CALL_SECONDS * 4 * (nodes + here)
        computed += work
        arrived = max(arrived, ready + computed) + sent_seconds * (end - begin) / layout.length
    latency = machine.latency_seconds * (2 + math.ceil(math.log2(shape.ranks)))
    meetings = machine.barrier_seconds + latency
    hidden = max(compute.backward + computed, arrived) - compute.backward
    return compute.backward + machine.network_factor * (hidden + meetings)


def predict(machine: Machine, layout: Layout, shape: Shape) -> dict[str, float]:
    """Predict the step of so many ranks.

    Returns
    -------
    dict
        step_seconds, compute_seconds (of them), and sent_bytes_per_node.
    """
    (size,) = layout.leaf_counts
    leaves = -(-size // shape.ranks)
    alone, together = machine.alone[leaves], machine.together[leaves]
    if shape.ranks == 1:
        step = alone.seconds + alone.local
        return {"step_seconds": step, "compute_seconds": step, "sent_bytes_per_node": 0.0}
    busy = machine.measured_on.ranks_per_node
    share = min(1.0, (shape.ranks_per_node - 1) / (busy - 1)) if busy > 1 else 1.0
    compute = alone.slower(1.0 + share * (together.seconds / alone.seconds - 1.0))
    if shape.nodes == 1:
        step = compute.seconds + _meet(machine, layout, shape)
    elif layout.grad_bytes <= SMALL_BYTES:
        step = compute.seconds + _gather(machine, layout, shape)
    else:
        step = compute.before + _travel(machine, layout, shape, compute) + compute.update
    return {
        "step_seconds": step,
        "compute_seconds": compute.seconds,
        "sent_bytes_per_node": _sent_bytes(layout, shape),
    }


# --- the plan ------------------------------------------------------------------------------------


def shapes(leaves: int, ranks_per_node: int, nodes: Sequence[int]) -> list[Shape]:
    """List what to predict: 1, 2, 4, ... ranks of one host, then hosts with all their ranks."""
    found = [Shape(1, 2**i) for i in range(max(0, ranks_per_node.bit_length()))]
    found = [s for s in found if s.ranks_per_node < ranks_per_node]
    found += [Shape(n, ranks_per_node) for n in sorted({1, *nodes})]
    return [shape for shape in found if shape.ranks <= leaves]


def plan(
    config: Config,
    world: World,
    *,
    nodes: str | None = None,
    ranks_per_node: int = 0,
    bytes_per_second: float = 0.0,
    latency_seconds: float = 0.0,
) -> dict[str, Any]:
    """Measure on these ranks and predict for others.

    Parameters
    ----------
    config : Config
    world : World
    nodes : str, optional
        The numbers of hosts, as in "2,4"; by default powers of two as far as a batch has leaves.
    ranks_per_node : int
        Of a host; by default as here: ranks, or cores of one process.
    bytes_per_second, latency_seconds : float
        Of the network, instead of what is measured; without either there is one host.

    Returns
    -------
    dict
        measured, predictions (one for each number of ranks) and advice.
    """
    dataset = open_dataset(config, world)
    layout = _layout(config, dataset)
    (leaves,) = layout.leaf_counts
    here = max(world.node_sizes) if world.world_size > 1 else threads.cores(world)
    ranks_per_node = min(ranks_per_node or here, leaves)
    connected = world.node_count > 1 or bytes_per_second > 0
    hosts = numbers("--nodes", nodes) or [2**i for i in range(1, leaves.bit_length())]
    wanted = shapes(leaves, ranks_per_node, hosts if connected else [])
    measured_on = Shape(world.node_count, max(world.node_sizes))
    counts = {-(-leaves // shape.ranks) for shape in wanted}
    machine = _measure(config, dataset, world, sorted(counts, reverse=True))
    if bytes_per_second:
        machine = machine._replace(
            bytes_per_second=bytes_per_second, latency_seconds=latency_seconds, network_factor=1.0
        )
    examples = min(config.batch_size, len(dataset.train))
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    rows = []
    for shape in wanted:
        row = predict(machine, layout, shape)
        memory = sum(rank_bytes(config, dataset, network, shape.ranks).values())
        rows.append(
            {
                "nodes": shape.nodes,
                "ranks": shape.ranks,
                "leaves_per_rank": -(-leaves // shape.ranks),
                **row,
                "examples_per_second": examples / row["step_seconds"],
                "memory_bytes_per_node": memory * shape.ranks_per_node,
            }
        )
    for row in rows:
        row["speed_up"] = rows[0]["step_seconds"] / row["step_seconds"]
        row["efficiency"] = row["speed_up"] / row["ranks"]
    return {
        "network": list(network.sizes),
        "batch_size": examples,
        "leaves": leaves,
        "measured_on": {"nodes": measured_on.nodes, "ranks": world.world_size},
        "latency_seconds": machine.latency_seconds,
        "bytes_per_second": machine.bytes_per_second,
        "predictions": rows,
        "advice": advice(config, rows, leaves, ranks=world.world_size, connected=connected),
    }


def advice(
    config: Config, rows: Sequence[dict[str, Any]], leaves: int, *, ranks: int, connected: bool
) -> list[str]:
    """Say what the predictions mean."""
    best = min(rows, key=lambda row: row["step_seconds"])
    most = rows[-1]
    found = [
        f"fastest: {best['ranks']} rank(s) on {best['nodes']} host(s), "
        f"{best['speed_up']:.2f} times one rank"
    ]
    more = "raise batch_size, so that a rank computes more for the bytes it sends"
    if best is not most:
        found.append(f"beyond {best['ranks']} rank(s) slower: {more} (or start no more)")
    elif most["efficiency"] < 0.5 and most["ranks"] > 1:
        found.append(f"{most['ranks']} ranks are used to {most['efficiency']:.0%}: {more}")
    sending = most["step_seconds"] - most["compute_seconds"]
    if most["sent_bytes_per_node"] and sending > most["compute_seconds"] and config.wire == "none":
        found.append('the network takes most of the time: wire = "bf16" sends half the bytes')
    if 2 * most["ranks"] > leaves:
        found.append(
            f"at most {leaves} ranks: a batch has {leaves} leaves; a smaller micro_batch_size or a "
            "larger batch_size gives more"
        )
    if not connected:
        found.append(
            "several hosts: run it there under mpirun or srun, or tell their network with "
            "--bandwidth and --latency"
        )
    if ranks == 1:
        found.append("no MPI here: how ranks get in each other's way was not measured")
    return found


def plan_under_mpi(config: Config, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Measure and predict on as many ranks as this host has cores.

    Parameters
    ----------
    config : Config
    arguments : sequence of str
        Those of this command.

    Returns
    -------
    dict or None
        As `plan` returns it; None on a single core or leaf, or without MPI.

    Raises
    ------
    ConfigError
        If the ranks fail.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    count = min(threads.cores(World()), leaves)
    if count < 2:
        return None
    try:
        which()
    except ConfigError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        run_on_ranks(count, "plan", *arguments, "--json", str(file))
        return dict(json.loads(file.read_text()))


def text(found: dict[str, Any]) -> str:
    """Describe a plan as a table, and what it means."""
    on = found["measured_on"]
    lines = [
        f"network {'-'.join(map(str, found['network']))}, batch {found['batch_size']} in "
        f"{found['leaves']} leaves; measured on {on['ranks']} rank(s) of {on['nodes']} host(s)"
    ]
    if found["bytes_per_second"]:
        lines.append(
            f"between hosts {found['bytes_per_second'] / 1e6:,.0f} MB/s, "
            f"{found['latency_seconds'] * 1e6:.0f} µs"
        )
    lines.append(
        "hosts  ranks  leaves/rank     ms/step  examples/s  speed-up  efficiency  "
        "MiB/host  MB sent/host/step"
    )
    lines += [
        f"{row['nodes']:>5}  {row['ranks']:>5}  {row['leaves_per_rank']:>11}  "
        f"{row['step_seconds'] * 1e3:>10.3f}  {row['examples_per_second']:>10,.0f}  "
        f"{row['speed_up']:>8.2f}  {row['efficiency']:>10.0%}  "
        f"{row['memory_bytes_per_node'] / 2**20:>8,.0f}  {row['sent_bytes_per_node'] / 1e6:>17.2f}"
        for row in found["predictions"]
    ]
    return "\n".join([*lines, *found["advice"]])
