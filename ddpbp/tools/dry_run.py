"""What a run would be: settings, size, memory, leaves and their balance."""

from ddpbp.base import tree
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.config.write import to_toml
from ddpbp.data.batches import Batches, leaf_shapes
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import make_network, make_optimizer
from ddpbp.engine.data import open_dataset
from ddpbp.nn.network import Network
from ddpbp.run.ranks import require_enough_leaves


def describe(config: Config, ranks: int) -> str:
    """Describe a run of `config` on `ranks` ranks; nothing is trained and nothing written.

    Raises
    ------
    ConfigError
        If so many ranks cannot run.
    """
    require_enough_leaves(config, ranks)
    dataset = open_dataset(config, World())
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    batches = Batches(
        len(dataset.train), config.batch_size, config.leaf_size, config.seed, 0, ranks
    )
    leaves = [
        sum(count for count, _ in leaf_shapes(config.batch_size, config.leaf_size, r, ranks)[2])
        for r in range(ranks)
    ]
    mib = {name: n / 2**20 for name, n in rank_bytes(config, dataset, network, ranks).items()}
    sizes = {
        name: part and len(part)
        for name, part in (
            ("train", dataset.train),
            ("validation", dataset.validation),
            ("test", dataset.test),
        )
    }
    balance = sum(leaves) / (ranks * max(leaves))
    return "\n".join(
        [
            to_toml(config),
            f"data        {dataset.description}",
            "examples    " + ", ".join(f"{name} {n:,}" for name, n in sizes.items() if n),
            f"network     {'-'.join(map(str, network.sizes))}, "
            f"{network.parameter_count:,} parameters",
            "memory      "
            + ", ".join(f"{k} {v:.1f} MiB" for k, v in mib.items())
            + f": {sum(mib.values()):.1f} MiB per rank",
            f"leaves      {sum(leaves)} of {config.leaf_size} examples; per rank "
            f"{min(leaves)} to {max(leaves)}, balance {balance:.0%}",
            f"steps       {batches.steps_per_epoch:,} an epoch, "
            f"{batches.steps_per_epoch * config.epochs:,} in all",
            f"ranks       {ranks}: can run; at most {sum(leaves)}",
        ]
    )


def rank_bytes(config: Config, dataset: Dataset, network: Network, ranks: int) -> dict[str, int]:
    """Return the memory that the fullest of `ranks` ranks needs, by what it holds."""
    size = tree.leaf_count(min(config.batch_size, len(dataset.train)), config.leaf_size)
    rows = config.leaf_size * -(-size // ranks)
    nodes = max(tree.root_program(size, ranks)[0])
    state = len(make_optimizer(config, network).state)
    item, parameters = network.dtype.itemsize, network.parameter_count
    held = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    return {
        "weights, gradient sums, optimizer": (1 + nodes + state) * parameters * item,
        "copy to be saved (rank 0)": (1 + state) * parameters * item,
        "activations": 3 * sum(network.sizes) * rows * item,
        "data": sum(part.x.nbytes + part.y.nbytes for part in held),
    }
