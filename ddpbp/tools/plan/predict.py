"""Predict a step from what was measured: the sum of the parts that follow each other.

Between hosts, complete parts travel while the backward pass continues.
"""

import math
from collections.abc import Sequence
from itertools import chain

from ddpbp.base import tree
from ddpbp.comm.all_reduce.choose import is_small
from ddpbp.comm.all_reduce.reducer import Payload
from ddpbp.tools.plan.machine import Compute, Machine, Shape

CALL_SECONDS = 2e-6  # a call of NumPy on next to nothing


def _covers(payload: Payload, shape: Shape) -> list[list[tree.Span]]:
    """List the nodes of the tree that the ranks of each host hold."""
    (size,) = payload.leaf_counts
    ranks = [tree.cover(size, rank, shape.ranks) for rank in range(shape.ranks)]
    p = shape.ranks_per_host
    return [[*chain(*ranks[i : i + p])] for i in range(0, shape.ranks, p)]


def meet_seconds(machine: Machine, payload: Payload, shape: Shape) -> float:
    """Predict a reduction between the ranks of one host."""
    (held,) = _covers(payload, shape)
    adds = len(held) - 1
    if is_small(payload, shape.ranks):
        elements, meetings = payload.length, 1
    else:
        elements, meetings = payload.length // shape.ranks_per_host, 2
    work = elements * (adds * machine.add_seconds + machine.check_seconds)
    calls = CALL_SECONDS * (adds + 4) * max(1, elements // 32_768)
    return machine.local_factor * (meetings * machine.barrier_seconds + work + calls)


def gather_seconds(machine: Machine, payload: Payload, shape: Shape) -> float:
    """Predict a reduction of a small vector between hosts: all nodes go to all ranks."""
    held = _covers(payload, shape)
    rows = max(map(len, held)) * shape.hosts  # every rank sends as many as the fullest
    work = payload.length * (rows * machine.add_seconds + machine.check_seconds)
    messages = math.ceil(math.log2(shape.ranks)) * machine.latency_seconds
    sent = _sent_bytes(payload, shape) / machine.bytes_per_second
    return machine.network_factor * (messages + sent + work)


def _sent_bytes(payload: Payload, shape: Shape) -> float:
    """Predict what the busiest host sends in a step."""
    if shape.hosts == 1:
        return 0.0
    held, others = _covers(payload, shape), shape.hosts - 1
    to_all = max(map(len, held)) * others * shape.ranks_per_host  # nodes, times who receives them
    if is_small(payload, shape.ranks):
        return float(to_all * payload.row_bytes)
    (size,) = payload.leaf_counts
    joined = [len(tree.joins(spans, size)) for spans in held]
    item = 2 if payload.wire != "none" else payload.dtype.itemsize
    vectors = max(max(joined), (sum(joined) - min(joined)) / others) + 1  # sums, and the root
    tails = to_all * 8 * (payload.statistics + 2)
    return payload.length * item * vectors * others / shape.hosts + tails


def travel_seconds(machine: Machine, payload: Payload, shape: Shape, compute: Compute) -> float:
    """Predict when the gradient is reduced between hosts, counted from the backward pass on."""
    lanes, hosts = shape.ranks_per_host, shape.hosts
    held = _covers(payload, shape)
    (size,) = payload.leaf_counts
    joined = [len(tree.joins(spans, size)) for spans in held]
    here = max(map(len, held))
    adds = (here - min(joined)) * (hosts - 1) / hosts + (here + sum(joined)) / hosts
    per_element = (adds * machine.add_seconds + machine.check_seconds) / lanes
    sent_seconds = _sent_bytes(payload, shape) / machine.bytes_per_second
    cap = max(1, payload.bucket_cap_bytes // payload.dtype.itemsize)
    arrived = computed = 0.0
    for end in range(payload.length, 0, -cap):
        begin = max(0, end - cap)
        ready = next((s for s, done in compute.complete if done <= begin), compute.backward)
        work = (end - begin) * per_element + CALL_SECONDS * 4 * (hosts + here)
        computed += work
        arrived = max(arrived, ready + computed) + sent_seconds * (end - begin) / payload.length
    latency = machine.latency_seconds * (2 + math.ceil(math.log2(shape.ranks)))
    meetings = machine.barrier_seconds + latency
    hidden = max(compute.backward + computed, arrived) - compute.backward
    return compute.backward + machine.network_factor * (hidden + meetings)


def predict(machine: Machine, payload: Payload, shape: Shape) -> dict[str, float]:
    """Predict the step of the ranks of a shape.

    Returns
    -------
    dict
        step_seconds, compute_seconds (of them), and sent_bytes_per_host.
    """
    (size,) = payload.leaf_counts
    leaves = -(-size // shape.ranks)
    alone, together = machine.alone[leaves], machine.together[leaves]
    if shape.ranks == 1:
        step = alone.seconds + alone.local
        return {"step_seconds": step, "compute_seconds": step, "sent_bytes_per_host": 0.0}
    busy = machine.measured_on.ranks_per_host
    share = min(1.0, (shape.ranks_per_host - 1) / (busy - 1)) if busy > 1 else 1.0
    compute = alone.slower(1.0 + share * (together.seconds / alone.seconds - 1.0))
    if shape.hosts == 1:
        step = compute.seconds + meet_seconds(machine, payload, shape)
    elif is_small(payload, shape.ranks):
        step = compute.seconds + gather_seconds(machine, payload, shape)
    else:
        step = compute.before + travel_seconds(machine, payload, shape, compute) + compute.update
    return {
        "step_seconds": step,
        "compute_seconds": compute.seconds,
        "sent_bytes_per_host": _sent_bytes(payload, shape),
    }


def shapes(leaves: int, ranks_per_host: int, hosts: Sequence[int]) -> list[Shape]:
    """List what to predict: 1, 2, 4, ... ranks of one host, then hosts with all their ranks."""
    one_host = [Shape(1, 2**i) for i in range(max(0, ranks_per_host.bit_length()))]
    one_host = [s for s in one_host if s.ranks_per_host < ranks_per_host]
    several = [Shape(n, ranks_per_host) for n in sorted({1, *hosts})]
    return [shape for shape in one_host + several if shape.ranks <= leaves]
