"""The sum of small vectors over all leaves, such as losses and metrics."""

from collections.abc import Callable
from itertools import chain

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.comm.work import divide
from ddpbp.comm.world import World


def tree_sum(
    world: World, leaf: Callable[[int], npt.NDArray[np.float64]], size: int
) -> npt.NDArray[np.float64]:
    """Sum a small vector over all leaves; each rank computes those of its own leaves.

    Rank 0 receives all nodes and adds them along the tree.

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

    Raises
    ------
    DdpbpError
        On every rank, if a leaf raised one.
    """
    merges, _ = tree.run_program(size, world.rank, world.world_size)

    def nodes(run: range) -> list[npt.NDArray[np.float64]]:
        return tree.accumulate((leaf(i) for i in run), merges)

    def root(every: list[list[npt.NDArray[np.float64]]]) -> npt.NDArray[np.float64]:
        _, merges = tree.root_program(size, world.world_size)
        (total,) = tree.accumulate(chain.from_iterable(every), merges)
        return total

    return divide(world, size, nodes, root)
