"""One line of the doctor's table."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from ddpbp.comm.world import World


class Finding(NamedTuple):
    """One line of the table: what was checked, its status, what was seen, and the fix."""

    status: Literal["pass", "warn", "fail"]
    what: str
    seen: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.status}  {self.what:<13} {self.seen}"
        return line + (f"\n{'':<20}→ {self.fix}" if self.fix else "")


def ranks_text(world: World) -> str:
    """Describe how many ranks there are, and on how many hosts."""
    if world.world_size == 1:
        return "1 rank"
    hosts = "1 host" if world.host_count == 1 else f"{world.host_count} hosts"
    return f"{world.world_size} ranks on {hosts}"


def listed(things: Iterable[Any]) -> str:
    """Join things by commas."""
    return ", ".join(map(str, things))
