"""Sums over the leaves of all ranks: which reducer, and the sums of small vectors.

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

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
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


def tree_sum(
    world: World, leaf: Callable[[int], npt.NDArray[np.float64]], size: int
) -> npt.NDArray[np.float64]:
    """Sum small vectors over leaves that are computed where they are owned.

    Parameters
    ----------
    world : World
    leaf : int -> (k,) float64
        Computes the vector of one leaf; called for the leaves of this rank, in order.
    size : int
        The number of leaves of all ranks, at least 1.

    Returns
    -------
    (k,) float64
        The same bits for every number of ranks.
    """
    start, stop = tree.deal(size, world.rank, world.world_size)
    merges, _ = tree.run_program(size, world.rank, world.world_size)
    nodes = tree.accumulate((leaf(i) for i in range(start, stop)), merges)
    gathered: list[npt.NDArray[np.float64]] = [
        node for rank in world.all_gather_object(nodes) for node in rank
    ]
    _, root_merges = tree.root_program(size, world.world_size)
    (root,) = tree.accumulate(gathered, root_merges)
    return root
