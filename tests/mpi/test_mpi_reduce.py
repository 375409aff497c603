"""Each reducer against one process, bit for bit. A new one is one line in KINDS."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpbp.base import tree
from ddpbp.base.blocks import BLOCK
from ddpbp.base.rounding import WIRES
from ddpbp.comm import threads
from ddpbp.comm.all_reduce.bucketed import Bucketed
from ddpbp.comm.all_reduce.choose import SMALL_BYTES, make_reducer
from ddpbp.comm.all_reduce.portable import Gathered, Sliced
from ddpbp.comm.all_reduce.reducer import Local, Payload, Reducer
from ddpbp.comm.all_reduce.shared import Shared, SharedSlices, SharedSmall
from ddpbp.comm.join import join
from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.world import World

pytestmark = pytest.mark.mpi


def made(kind: type[Shared]) -> Callable[[World, Payload], Reducer]:
    def make(world: World, payload: Payload) -> Reducer:
        reducer, reason = kind.make(world, payload)
        assert reducer is not None, reason
        return reducer

    return make


KINDS: dict[str, Callable[[World, Payload], Reducer]] = {
    "gathered": Gathered,
    "sliced": Sliced,
    "shared small": made(SharedSmall),
    "shared slices": made(SharedSlices),
    "bucketed": made(Bucketed),
    "chosen": make_reducer,
}
STATISTICS = 3


@pytest.fixture(scope="module")
def world() -> World:
    return join(mpi=True)


@cache
def drawn(i: int, length: int) -> Any:
    random = np.random.default_rng(i)
    return (random.random(length) - 0.5) * 10.0 ** random.integers(-4, 4)


def leaf(i: int, length: int, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return gradient and statistics of leaf i, of magnitudes that show the order of addition."""
    values = drawn(i, length + STATISTICS)
    return values[:length].astype(dtype), values[length:].copy()


def reduce(reducer: Reducer, size: int, step: int) -> tuple[bytes, bytes]:
    """Run one step over `size` leaves, layer by layer from the back as the trainer does."""
    world, (length, dtype, *_) = reducer.world, reducer.payload
    place = size, world.rank, world.world_size, reducer.payload.full
    start, stop = tree.deal(*place)
    merges, _ = tree.run_program(*place)
    leaves = [leaf(16 * step + i, length, dtype) for i in range(start, stop)]
    rows = reducer.begin_step(size)
    rounded = reducer.wire.round if reducer.wire else None
    if leaves:
        grads, statistics = map(list, zip(*leaves, strict=True))
        for grad in grads:
            if rounded:
                rounded(grad)
        reducer.node_grads[rows] = tree.accumulate(grads, merges, rounded)
        reducer.node_statistics[rows] = tree.accumulate(statistics, merges)
    for begin in (length, length // 3, length // 3, 0):
        reducer.start(begin)
    reduced = reducer.finish(signal=world.rank % 3)
    assert reduced.signal == min(2, world.world_size - 1)
    assert reduced.grad.shape == (length,)
    assert reduced.grad.dtype == dtype
    assert reduced.finite
    return reduced.grad.tobytes(), reduced.statistics.tobytes()


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1, "float32"),
        (1009, "float32"),
        (1009, "float64"),
        (SMALL_BYTES // 4, "float32"),
        (SMALL_BYTES // 4 + 1, "float32"),
        (5 * BLOCK + 11, "float32"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_reducer_gives_the_bits_of_one_process(world, kind, length, dtype):
    # Full and last batches in turn: even and uneven shares, and fewer leaves than ranks.
    for counts in [(8, 3), (13, 1), (world.world_size,)]:
        payload = Payload(length, np.dtype(dtype), STATISTICS, counts)
        alone, together = Local(World(), payload), KINDS[kind](world, payload)
        for step, size in enumerate([*counts, counts[0]]):
            assert reduce(together, size, step) == reduce(alone, size, step), (counts, step)


HOSTS = {  # the host on which a rank acts
    "one each": lambda rank: rank,
    "two each": lambda rank: rank // 2,
    "uneven": lambda rank: min(rank, 1),
    "out of order": lambda rank: rank % 2,
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("threads_each", [1, 2])
def test_buckets_between_hosts_give_the_bits_of_one_process(hosts, wire, threads_each):
    outer = MpiWorld(None, as_host=HOSTS[hosts](join(mpi=True).rank))
    ranks = outer.world_size * threads_each

    def compare(world: World) -> None:
        # A last bucket and parts of another size, empty parts, more leaves than ranks.
        for length, cap_bytes, counts in [(1009, 404, (13, 3)), (5, 400, (ranks, 1))]:
            payload = Payload(length, np.dtype("f4"), STATISTICS, counts, wire, cap_bytes)
            together = made(Bucketed)(world, payload)
            alone = Local(World(), payload)
            for step, size in enumerate([*counts, counts[0]]):
                assert reduce(together, size, step) == reduce(alone, size, step), (counts, step)

    threads.run(outer, threads_each, compare)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_all_ranks_learn_of_one_element_that_is_not_finite(world, kind, bad):
    reducer = KINDS[kind](world, Payload(30_011, np.dtype("f4"), 1, (world.world_size,)))
    for step in range(3):
        rows = reducer.begin_step(world.world_size)
        reducer.node_grads[rows] = 1.0
        if step == 1 and world.rank == world.world_size - 1:
            reducer.node_grads[rows, 17] = bad
        assert reducer.finish().finite == (step != 1)


def chosen(world: World) -> list[type[Reducer]]:
    lengths = (SMALL_BYTES // 4, SMALL_BYTES // 4 + 1)
    payloads = [Payload(n, np.dtype("f4"), 1, (8,)) for n in lengths]
    return [type(make_reducer(world, payload)) for payload in payloads]


def test_size_and_place_choose_the_reducer(world, monkeypatch):
    assert chosen(world) == [SharedSmall, SharedSlices]
    monkeypatch.setattr(type(world), "shares_memory", False)
    assert chosen(world) == [Gathered, Sliced]


def test_one_rank_without_shared_memory_makes_all_send_messages(world, monkeypatch):
    if world.rank == world.world_size - 1:
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    notes: list[str] = []
    reducer = make_reducer(world, Payload(9, np.dtype("f4"), 1, (8,)), notes.append)
    assert type(reducer) is Gathered
    (note,) = notes
    assert "No space left" in note
    assert "--shm-size" in note


def no_space(*arguments: int) -> None:
    raise OSError(28, "No space left on device")


def test_shared_memory_leaves_no_file(world):
    reducers = [kind(world, Payload(9, np.dtype("f4"), 1, (8,))) for kind in KINDS.values()]
    world.all_gather_object(None)
    assert len(reducers) == len(KINDS)
    mine = f"ddpbp.{world.broadcast(os.getpid())}.*"
    assert not list(Path("/dev/shm").glob(mine))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13, 64])
def test_tree_sum_gives_the_bits_of_one_process(world, size):
    asked = []

    def vector(i: int) -> Any:
        asked.append(i)
        return leaf(i, 5, np.dtype("f8"))[0]

    together = tree_sum(world, vector, size)
    assert asked == list(range(*tree.deal(size, world.rank, world.world_size)))
    assert together.tobytes() == tree_sum(World(), vector, size).tobytes()


def test_a_file_that_a_killed_run_left_is_removed(world, monkeypatch):
    from ddpbp.comm import shared_memory

    names = [f"ddpbp.{pid}.{0:032x}" for pid in (2**22 + 1, os.getpid())]
    gone, living = (shared_memory.FOLDER / name for name in names)
    if world.local_rank == 0:
        gone.touch()
        living.touch()
    monkeypatch.setattr(shared_memory, "YOUNG_SECONDS", -1.0)
    made(SharedSmall)(world, Payload(9, np.dtype("f4"), 1, (8,)))
    if world.local_rank == 0:
        assert not gone.exists()
        assert living.exists()
        living.unlink()
