"""Describe a run without training: data, network, memory, leaves and their balance, steps."""

import resource
from pathlib import Path

from ddpbp.base import tree
from ddpbp.comm.shared_memory import memory_left_bytes
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset
from ddpbp.data.shards import leaf_shapes
from ddpbp.engine.build import make_network, make_optimizer, make_shards, shares_update
from ddpbp.engine.data import open_dataset
from ddpbp.nn.network import Network
from ddpbp.run.ranks import require_enough_leaves

MIB = 2**20


def describe(config: Config, ranks: int) -> str:
    """Describe a run of `config` on `ranks` ranks; nothing is trained and nothing written.

    Raises
    ------
    ConfigError
        If a batch has fewer leaves than ranks.
    """
    require_enough_leaves(config, ranks)
    before, left = peak_bytes(), memory_left_bytes()
    dataset = open_dataset(config, World())
    loading = peak_bytes() - before
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    most = tree.leaf_count(config.batch_size, config.leaf_size)
    sizes = rank_bytes(config, dataset, network, ranks)
    rows = {
        "data": dataset.description,
        "examples": _examples(dataset),
        "network": f"{'-'.join(map(str, network.sizes))}, {network.parameter_count:,} parameters",
        "memory": _memory(sizes),
        "host": _host(ranks * (before + sum(sizes.values())), ranks, left),
        "loading": f"{loading / MIB:,.1f} MiB on one rank at its peak, as measured here",
        "leaves": _leaves(config, ranks),
        "steps": _steps(config, len(dataset.train)),
        "ranks": f"{ranks}: can run; at most {most}",
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items())


def _examples(dataset: Dataset) -> str:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return ", ".join(f"{name} {len(part):,}" for name, part in parts.items() if part)


def _memory(sizes: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {size / MIB:,.1f} MiB" for name, size in sizes.items())
    return f"{parts}: {sum(sizes.values()) / MIB:,.1f} MiB per rank"


def _host(needed: int, ranks: int, left: int) -> str:
    """Tell whether all ranks fit on one host like this one, Python and its libraries included."""
    text = f"{needed / MIB:,.0f} MiB for {ranks} ranks; this one has {left / MIB:,.0f} MiB left"
    return text if needed < left else f"{text}: too much, take more hosts or fewer ranks"


def _leaves(config: Config, ranks: int) -> str:
    leaves = [
        sum(count for count, _ in leaf_shapes(config.batch_size, config.leaf_size, r, ranks)[2])
        for r in range(ranks)
    ]
    return (
        f"{sum(leaves)} of {config.leaf_size} examples; per rank {min(leaves)} to {max(leaves)}, "
        f"balance {sum(leaves) / (ranks * max(leaves)):.0%}"
    )


def _steps(config: Config, examples: int) -> str:
    steps = make_shards(config, examples, 0, 1).steps_per_epoch
    return f"{steps:,} an epoch, {steps * config.epochs:,} in all"


def rank_bytes(
    config: Config, dataset: Dataset, network: Network, ranks: int, ranks_per_host: int = 0
) -> dict[str, int]:
    """Return the memory that the fullest of `ranks` ranks needs to train, by what it holds.

    All ranks are on one host unless `ranks_per_host` is given.
    Loading the data needs more for a while: see `peak_bytes`.
    """
    size = tree.leaf_count(min(config.batch_size, len(dataset.train)), config.leaf_size)
    rows = config.leaf_size * -(-size // ranks)
    nodes = max(tree.root_program(size, ranks)[0])
    optimizer = make_optimizer(config, network)
    state, holders = len(optimizer.state), 1
    if shares_update(config.optimizer.shard, optimizer):
        holders = ranks_per_host or ranks
    item, parameters = network.dtype.itemsize, network.parameter_count
    held = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    return {
        "weights, gradient sums, optimizer": (1 + nodes) * parameters * item
        + state * parameters * item // holders,
        "copy to be saved (rank 0)": (1 + state) * parameters * item,
        "activations": 3 * sum(network.sizes) * rows * item,
        "a share of the data (one copy a host)": sum(part.x.nbytes + part.y.nbytes for part in held)
        // (ranks_per_host or ranks),
    }


def process_bytes() -> tuple[int, int]:
    """Return the memory that this process holds alone, and what it shares with others."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    held = {name: int(value.split()[0]) * 1024 for name, value in (x.split(":") for x in lines)}
    private = held["Private_Clean"] + held["Private_Dirty"]
    return private, held["Rss"] - private


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
