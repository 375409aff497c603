"""Checks of the training itself: leaves, memory, shared memory, the reduction to the last bit."""

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ddpbp.base import tree
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.tools.doctor.finding import Finding, listed, ranks_text

BALANCE = 0.8  # of the leaves over the ranks, below which a warning is given


def ranks(config: Config, world: World) -> Finding:
    """Check that there are leaves for all ranks, and how evenly they are dealt."""
    from ddpbp.run.ranks import require_enough_leaves

    require_enough_leaves(config, world.world_size)
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    most = -(-leaves // world.world_size)
    balance = leaves / (world.world_size * most)
    hosts = Counter(world.all_gather_object(world.host))
    places = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    seen = f"{places}; {leaves} leaves a step, {most} at most on a rank, balance {balance:.0%}"
    if balance < BALANCE:
        fix = f"{-(-leaves // most)} ranks take as long; or set a smaller micro_batch_size"
        return Finding("warn", "ranks", seen, fix)
    return Finding("pass", "ranks", seen)


def memory(config: Config, dataset: Any, trainer: Any) -> Finding:
    """Compare what a rank needs with the memory left on its host."""
    from ddpbp.comm.shared_memory import memory_left_bytes
    from ddpbp.tools.dry_run import peak_bytes, rank_bytes

    world = trainer.world
    needed = sum(rank_bytes(config, dataset, trainer.network, world.world_size).values())
    free = memory_left_bytes()
    # The ranks of a host have allocated theirs already; what is left shows how much more fits.
    left, host = min(world.all_gather_object((free, world.host)))
    peak = max(world.all_gather_object(peak_bytes()))
    seen = (
        f"{needed / 2**20:,.0f} MiB a rank to train; loading took each process up to "
        f"{peak / 2**20:,.0f} MiB; {left / 2**20:,.0f} MiB left on {host}"
    )
    if left < needed:
        fix = "fewer ranks a host, a smaller batch_size or model.hidden"
        return Finding("warn", "memory", seen, fix)
    return Finding("pass", "memory", seen)


def shared_memory(trainer: Any) -> Finding:
    """Check that the ranks of a host share memory."""
    world = trainer.world
    notes = [note for rank in world.all_gather_object(trainer.notes) for note in rank]
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    lowest, host = min(world.all_gather_object((free, world.host)))
    if notes:
        return Finding("warn", "shared memory", notes[0], "enlarge /dev/shm")
    if world.local_size == 1:
        return Finding("pass", "shared memory", "1 rank a host: not needed")
    free_mib = f"{lowest / 2**20:,.0f} MiB of /dev/shm left on {host}"
    return Finding("pass", "shared memory", f"{type(trainer.reducer).__name__}; {free_mib}")


def reduction(trainer: Any) -> Finding:
    """Sum random vectors of the gradient's length and compare with the tree, bit by bit."""
    import numpy as np

    from ddpbp.base import draws

    world, reducer, payload = trainer.world, trainer.reducer, trainer.reducer.payload

    rounded = reducer.wire.round if reducer.wire else None

    def leaf(i: int) -> Any:  # one leaf's gradient, as a pattern that repeats
        key = draws.key(draws.CANARY, i)
        values = draws.normal(key, np.arange(4_099, dtype=np.uint64)).astype(payload.dtype)
        if rounded:
            rounded(values)
        return values

    seconds = 0.0
    wrong = 0
    for size in payload.leaf_counts:
        place = size, world.rank, world.world_size, payload.full
        start, stop = tree.deal(*place)
        merges, _ = tree.run_program(*place)
        rows = reducer.begin_step(size)
        nodes = tree.accumulate((leaf(i) for i in range(start, stop)), merges, rounded)
        for row, node in zip(reducer.node_grads[rows], nodes, strict=True):
            row[:] = np.resize(node, payload.length)
        reducer.node_statistics[rows] = 1.0
        world.all_gather_object(None)
        began = time.perf_counter()
        for begin, _, _ in reversed(trainer.network.spans):
            reducer.start(begin)
        total = reducer.finish().grad
        seconds = time.perf_counter() - began
        whole, _ = tree.fold(((i, i + 1) for i in range(size)), size)
        (expected,) = tree.accumulate((leaf(i) for i in range(size)), whole, rounded)
        wrong += int(np.count_nonzero(total != np.resize(expected, payload.length)))
    ranks = [rank for rank, bad in enumerate(world.all_gather_object(wrong)) if bad]
    if ranks:
        return Finding(
            "fail",
            "reduction",
            f"the sum of random vectors is wrong on rank {listed(ranks)}",
            "memory or network fault, or an MPI library that is broken: try another one",
        )
    return Finding(
        "pass",
        "reduction",
        f"{payload.length:,} numbers × {max(payload.leaf_counts)} leaves summed to the last bit "
        f"on {ranks_text(world)}, {seconds * 1e3:.2f} ms",
    )
