"""Check that all ranks hold the same bits: hashes are compared, a difference stops the run."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base.hashing import digest
from ddpbp.comm.world import World
from ddpbp.errors import OutOfStep


def require_equal(world: World, what: str, value: str, advice: str) -> None:
    """Stop unless all ranks hold the same `value`.

    Parameters
    ----------
    world : World
    what : str
        What is compared; the message begins with it.
    value : str
        This rank's, usually a hash.
    advice : str
        What the user can do; the message ends with it.

    Raises
    ------
    OutOfStep
        On every rank: names the ranks and hosts that differ from the most common value.
    """
    if difference := world.decide((value, world.host), _difference):
        raise OutOfStep(f"{what}: {difference}; {advice}")


def _difference(everyone: list[tuple[str, str]]) -> str:
    """Describe whose value is not the most common one; return "" if all are equal."""
    [(usual, count)] = Counter(value for value, _ in everyone).most_common(1)
    if count == len(everyone):
        return ""
    others = [
        f"rank {rank} on {host} ({value[:12]})"
        for rank, (value, host) in enumerate(everyone)
        if value != usual
    ]
    return f"{', '.join(others)} differ from the rest ({usual[:12]})"


def require_in_step(world: World, step: int, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Stop unless all ranks hold the same bits in every tensor; costs one exchange of 8 bytes.

    Raises
    ------
    OutOfStep
        On every rank: names rank, host, tensor and step.
    """
    if world.world_size == 1:
        return
    mine = np.frombuffer(bytes.fromhex(digest(tensors.values())[:16]), np.uint64)
    hashes = np.empty((world.world_size, 1), np.uint64)
    world.all_gather(mine, hashes)
    if (hashes == hashes[0]).all():
        return
    for name, tensor in tensors.items():
        require_equal(
            world,
            f"step {step}: {name}",
            digest([tensor]),
            "memory fault or a library that differs; the run is stopped, not repaired",
        )
