"""Which reducer sums the gradient.

===============  ==================================================================
`Local`          one rank: nothing to send
`SharedSmall`    ranks of one host, small vectors: every rank adds all nodes
`SharedSlices`   ranks of one host: every rank adds a slice in shared memory
`Bucketed`       several hosts: travels while the backward pass continues
`Gathered`       any ranks, small vectors: all nodes in one message to every rank
`Sliced`         any ranks, without shared memory: exchange of slices, all-gather
===============  ==================================================================
"""

from collections.abc import Callable

from ddpbp.comm.all_reduce.bucketed import Bucketed
from ddpbp.comm.all_reduce.portable import Gathered, Sliced
from ddpbp.comm.all_reduce.reducer import Local, Payload, Reducer
from ddpbp.comm.all_reduce.shared import SharedSlices, SharedSmall
from ddpbp.comm.world import World

SMALL_BYTES = 65_536  # up to this size it is faster that every rank adds all nodes, ...
MOST_SMALL_BYTES = 2**20  # ... unless they are so many that all of them are more than this


def is_small(payload: Payload, world_size: int) -> bool:
    """Return whether every rank receives and adds all nodes, instead of a slice of each."""
    size = payload.grad_bytes
    return size <= SMALL_BYTES and size * world_size <= MOST_SMALL_BYTES


def make_reducer(
    world: World, payload: Payload, note: Callable[[str], None] | None = None
) -> Reducer:
    """Choose the reducer by the ranks, where they are, and how much there is to send.

    Parameters
    ----------
    world : World
    payload : Payload
    note : callable, optional
        Called with one line if a slower way has to be taken.
    """
    if world.world_size == 1:
        return Local(world, payload)
    small = is_small(payload, world.world_size)
    one_host = world.host_count == 1
    if world.shares_memory and (one_host or not small):
        kind = Bucketed if not one_host else SharedSmall if small else SharedSlices
        reducer, reason = kind.make(world, payload)
        if reducer is not None:
            return reducer
        if note:
            note(f"no shared memory, reducing through MPI messages: {reason}")
    return Gathered(world, payload) if small else Sliced(world, payload)
