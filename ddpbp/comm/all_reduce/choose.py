"""Which reducer sums the gradient.

===============  ==================================================================
`Local`          one rank: nothing to send
`SharedSmall`    ranks of one machine, small vectors: each reads and adds all nodes
`SharedSlices`   ranks of one machine: each adds a slice in shared memory
`Bucketed`       several machines: travels while the backward pass goes on
`Gathered`       any ranks, small vectors: all nodes in one call
`Sliced`         any ranks, without shared memory: exchange of slices, all-gather
===============  ==================================================================
"""

from collections.abc import Callable

from ddpbp.comm.all_reduce.bucketed import Bucketed
from ddpbp.comm.all_reduce.portable import Gathered, Sliced
from ddpbp.comm.all_reduce.reducer import Layout, Local, Reducer
from ddpbp.comm.all_reduce.shared import SharedSlices, SharedSmall
from ddpbp.comm.world import World

SMALL_BYTES = 65_536  # up to here it is faster that everybody adds everything


def make_reducer(world: World, layout: Layout, say: Callable[[str], None] | None = None) -> Reducer:
    """Choose the reducer: by the ranks, where they are, and how much there is to send.

    Parameters
    ----------
    world : World
    layout : Layout
    say : callable, optional
        Told in one line if a slower way has to be taken.
    """
    if world.world_size == 1:
        return Local(world, layout)
    small = layout.grad_bytes <= SMALL_BYTES
    alone = world.node_count == 1
    if world.shares_memory and (alone or not small):
        kind = Bucketed if not alone else SharedSmall if small else SharedSlices
        reducer, reason = kind.make(world, layout)
        if reducer is not None:
            return reducer
        if say:
            say(f"no shared memory, reducing through MPI messages: {reason}")
    return Gathered(world, layout) if small else Sliced(world, layout)
