"""Work that ranks divide: each does a run of it, and rank 0 combines what they found."""

from collections.abc import Callable
from typing import TypeVar, cast

from ddpbp.base import tree
from ddpbp.comm.world import World, fault_of
from ddpbp.errors import DdpbpError

Value = TypeVar("Value")
Result = TypeVar("Result")


def divide(
    world: World,
    count: int,
    work: Callable[[range], Value],
    combine: Callable[[list[Value]], Result],
    share: tuple[int, int] | None = None,
) -> Result:
    """Do `count` pieces of work on all ranks, each a run of them, and combine the results.

    Parameters
    ----------
    world : World
    count : int
    work : range -> value
        Does the pieces of this rank, in order; called once, also for an empty run.
    combine : list of values -> result
        Called on rank 0, with the values in rank order.
    share : (index, size), optional
        Which of how many runs is this rank's; by default its rank in the world.

    Returns
    -------
    result
        On all ranks.

    Raises
    ------
    DdpbpError
        On every rank, if a piece of work raised one: that of the first piece, as one rank alone
        would have raised it.
    """
    index, size = share or (world.rank, world.world_size)
    value: Value | None = None
    fault: tuple[type[DdpbpError], str] | None = None
    try:
        value = work(range(*tree.deal(count, index, size)))
    except (DdpbpError, OSError) as error:
        fault = fault_of(error)
    home = world.host
    world.wait_idly()  # MPI itself would wait on a core that another rank may need

    def verdict(
        every: list[tuple[Value, tuple[type[DdpbpError], str] | None, str]],
    ) -> tuple[Result | None, tuple[type[DdpbpError], str] | None]:
        for _, fault, host in every:
            if fault:
                kind, message = fault
                return None, (kind, message if host == home else f"{host}: {message}")
        return combine([value for value, _, _ in every]), None

    result, first = world.decide((value, fault, world.host), verdict)
    if first is not None:
        kind, message = first
        raise kind(message)
    return cast(Result, result)
