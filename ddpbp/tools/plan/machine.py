"""The measured quantities: the step of a rank, adding vectors, meeting of ranks, the network."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Where ranks are: a number of hosts, and of ranks on each."""

    hosts: int
    ranks_per_host: int

    @property
    def ranks(self) -> int:
        """The ranks of all hosts."""
        return self.hosts * self.ranks_per_host


class Compute(NamedTuple):
    """The step of one rank that sends nothing, in seconds.

    `before` goes by until the backward pass; `complete` lists when, counted from there, the
    gradient is complete from which element on; `local` is what one rank does in place of a
    reduction.
    """

    before: float
    backward: float
    complete: tuple[tuple[float, int], ...]
    local: float
    update: float

    def slower(self, factor: float) -> "Compute":
        """Return the same, all of it stretched."""
        complete = tuple((seconds * factor, begin) for seconds, begin in self.complete)
        rest = (self.local * factor, self.update * factor)
        return Compute(self.before * factor, self.backward * factor, complete, *rest)

    def with_leaves(self, factor: float) -> "Compute":
        """Return the step of a rank with `factor` times the leaves: only the update stays."""
        longer = self.slower(factor)
        return longer._replace(local=self.local, update=self.update)

    @property
    def seconds(self) -> float:
        """All of it but `local`."""
        return self.before + self.backward + self.update


class Machine(NamedTuple):
    """All measurements.

    `alone` and `together` are by leaves of a rank. `add_seconds` and `check_seconds` are those of
    one element, `barrier_seconds` a meeting of the ranks of a host. `latency_seconds` and
    `bytes_per_second` are those between hosts, 0 if unknown. `local_factor` and `network_factor`
    are how much longer a reduction took than predicted from these.
    """

    measured_on: Shape
    alone: dict[int, Compute]
    together: dict[int, Compute]
    add_seconds: float
    check_seconds: float
    barrier_seconds: float
    latency_seconds: float
    bytes_per_second: float
    local_factor: float = 1.0
    network_factor: float = 1.0
