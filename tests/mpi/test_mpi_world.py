"""The collectives of MPI ranks, errors that reach every rank, and the comparison of bits."""

import time

import numpy as np
import pytest

from ddpbp.comm.compare_ranks import require_equal, require_in_step
from ddpbp.comm.join import join
from ddpbp.comm.mpi import MpiWorld
from ddpbp.comm.world import World
from ddpbp.errors import ConfigError, DataError, DdpbpError, OutOfStep

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def world() -> World:
    return join()  # according to the launcher's environment


def test_ranks_are_those_of_the_launcher(world):
    from mpi4py import MPI

    assert (world.rank, world.world_size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert world.world_size > 1
    assert world.all_gather_object(world.rank) == list(range(world.world_size))
    # One machine here: all ranks are its local ranks.
    assert (world.local_rank, world.local_size) == (world.rank, world.world_size)
    assert (world.host_index, world.host_count) == (0, 1)


def test_wrong_number_of_ranks_is_the_mpirun_of_another_mpi(world):
    with pytest.raises(ConfigError, match=f"started 99 ranks, .* sees {world.world_size}: mpirun"):
        MpiWorld(99)


def test_arrays_reach_every_rank_in_rank_order(world):
    n = world.world_size
    mine = np.array([world.rank, -world.rank], np.float32)
    gathered = np.empty((n, 2), np.float32)
    world.all_gather(mine, gathered)
    np.testing.assert_array_equal(gathered, [[r, -r] for r in range(n)])

    send = np.array([[100 * world.rank + r] for r in range(n)])
    received = np.empty_like(send)
    world.all_to_all(send, received)
    np.testing.assert_array_equal(received, [[100 * r + world.rank] for r in range(n)])


def test_broadcast_gives_what_rank_0_has(world):
    value = {"seed": 7} if world.rank == 0 else "something else"
    assert world.broadcast(value) == {"seed": 7}


def on(world: World, ranks: list[int], fault: Exception) -> None:
    with world.together():
        if world.rank in ranks:
            raise fault


def test_fault_of_one_rank_becomes_the_fault_of_all(world):
    last = world.world_size - 1
    with pytest.raises(DataError, match=rf"^rank {last} on .*: no such file$") as raised:
        on(world, [last], DataError("no such file"))
    assert raised.value.code == 2


def test_of_several_faults_rank_0s_is_raised(world):
    with pytest.raises(ConfigError, match=r"^rank 0 says$"):
        on(world, [*range(world.world_size)], ConfigError(f"rank {world.rank} says"))


def test_an_os_error_becomes_a_ddpbp_error(world):
    with pytest.raises(DdpbpError, match=r"^rank 1 on .*: No such file or directory: gone$"):
        on(world, [1], FileNotFoundError(2, "No such file or directory", "gone"))


def test_no_fault_passes(world):
    with world.together():
        pass
    assert world.all_gather_object(world.rank) == list(range(world.world_size))


def test_differing_value_names_rank_and_host(world):
    last = world.world_size - 1
    require_equal(world, "data", "same", "look")
    with pytest.raises(OutOfStep, match=rf"^data: rank {last} on {world.host} \(other\).*; look$"):
        require_equal(world, "data", "other" if world.rank == last else "same", "look")


@pytest.mark.parametrize("tensor", ["theta", "optimizer m"])
def test_one_flipped_bit_stops_every_rank(world, tensor):
    last = world.world_size - 1
    tensors = {"theta": np.linspace(-1, 1, 1009, dtype="f4"), "optimizer m": np.zeros(3)}
    require_in_step(world, 41, tensors)
    if world.rank == last:
        tensors[tensor].view(np.uint8)[5] ^= 1
    with pytest.raises(OutOfStep, match=f"^step 42: {tensor}: rank {last} on ") as raised:
        require_in_step(world, 42, tensors)
    assert raised.value.code == 4
    assert len(set(world.all_gather_object(str(raised.value)))) == 1


@pytest.mark.parametrize("through", ["memory", "messages"])
def test_no_rank_leaves_a_local_barrier_before_all_have_come(world, through):
    memory, reason = world.share(8)
    assert memory is not None, reason
    come = memory.view(np.int64)[:, 0]
    barrier = world.local_barrier if through == "memory" else world.local_comm.Barrier
    for meeting in range(1, 300):
        come[world.local_rank] = meeting
        if meeting % 50 == world.local_rank:
            time.sleep(0.01)
        barrier()
        assert (come >= meeting).all()
