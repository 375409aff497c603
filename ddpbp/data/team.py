"""What loading needs of the ranks: they read parts side by side, into one copy for each host."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Value = TypeVar("Value")
Result = TypeVar("Result")
Float64 = npt.NDArray[np.float64]


class Shared(NamedTuple):
    """Memory that ranks of a host have in common, and which run of the filling is this rank's.

    Attributes
    ----------
    memory : (bytes,) uint8
    run, runs : int
        This rank fills run `run` of `runs`; a rank whose memory is private fills all of it.
    common : bool
        The hosts have one copy each, not the ranks.
    """

    memory: npt.NDArray[np.uint8]
    run: int = 0
    runs: int = 1
    common: bool = False


class Team(Protocol):
    """The ranks that load data together. Every rank calls every method, in the same order."""

    def divide(
        self,
        count: int,
        work: Callable[[range], Value],
        combine: Callable[[list[Value]], Result],
        into: Shared | None = None,
    ) -> Result:
        """Do `count` pieces of work, each rank a run of them; combine the values in rank order.

        With `into`, the ranks that hold a copy of it do all the pieces for it.
        """

    def tree_sum(self, leaf: Callable[[int], Float64], size: int) -> Float64:
        """Sum the vectors of leaves along the canonical tree."""

    def meet(self) -> None:
        """Wait for all ranks."""

    def share(self, bytes_: int, what: str, *, scratch: bool = False) -> Shared:
        """Return memory for one copy of `what` on each host, for a short time if it is scratch."""

    def copies(self, values: list[Value], into: Shared) -> list[list[Value]]:
        """Group values of all ranks, in rank order, by the copy they belong to."""

    def copy_index(self, into: Shared) -> int:
        """Return which of `copies` is this rank's."""

    def tick(self, what: str, done: int, count: int) -> None:
        """Note that `done` of this rank's `count` pieces are read."""
