"""How many ranks and threads a run may have."""

from ddpbp.base import tree
from ddpbp.comm.world import World, cores
from ddpbp.config.settings import Config
from ddpbp.errors import ConfigError

# Below this many operations a leaf (6 per parameter and example) threads gained nothing: measured.
THREAD_FLOPS = 300_000_000


def require_enough_leaves(config: Config, world_size: int) -> None:
    """Refuse more ranks than a batch has leaves.

    Raises
    ------
    ConfigError
        Names the two settings to change.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    if world_size > leaves:
        raise ConfigError(
            f"{world_size} ranks, but a batch has only {leaves} leaves (batch_size = "
            f"{config.batch_size}, micro_batch_size = {config.leaf_size}): start at most {leaves} "
            "ranks, raise batch_size or lower micro_batch_size (each thread is a rank here)"
        )


def choose_threads(config: Config, parameters: int, world: World) -> int:
    """Return the threads of each process: as configured, or as many as it has cores.

    Threads pay only if a leaf is big enough: `THREAD_FLOPS`, measured.

    Raises
    ------
    ConfigError
        If all threads of all processes are more ranks than a batch has leaves.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size) // world.world_size
    if config.threads != "auto":
        require_enough_leaves(config, world.world_size * config.threads)
        return config.threads
    big = 6 * parameters * config.leaf_size >= THREAD_FLOPS
    mine = min(cores(world), leaves) if big else 1
    fewest: int = world.decide(max(1, mine), min)
    return fewest
