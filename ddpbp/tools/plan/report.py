"""The plan: predictions for the shapes of interest, advice, and both as text."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpbp.base import tree
from ddpbp.comm.world import World, cores
from ddpbp.config.settings import Config
from ddpbp.engine.build import make_network
from ddpbp.engine.data import open_dataset
from ddpbp.errors import ConfigError
from ddpbp.tools.bench import numbers
from ddpbp.tools.dry_run import process_bytes, rank_bytes
from ddpbp.tools.launcher import run_on_ranks, which
from ddpbp.tools.plan.machine import Shape
from ddpbp.tools.plan.measure import measure_machine, payload_of
from ddpbp.tools.plan.predict import predict, shapes


def plan(
    config: Config,
    world: World,
    *,
    hosts: str | None = None,
    ranks_per_host: int = 0,
    bytes_per_second: float = 0.0,
    latency_seconds: float = 0.0,
) -> dict[str, Any]:
    """Measure on these ranks and predict for others.

    Parameters
    ----------
    config : Config
    world : World
    hosts : str, optional
        The numbers of hosts, as in "2,4"; by default powers of two as far as a batch has leaves.
    ranks_per_host : int
        Of a host; by default as here: ranks, or cores of one process.
    bytes_per_second, latency_seconds : float
        Of the network, instead of measuring it; without either there is one host.

    Returns
    -------
    dict
        measured, predictions (one for each number of ranks) and advice.
    """
    private, shared = world.decide(process_bytes(), max)  # Python and its libraries, without data
    dataset = open_dataset(config, world)
    payload = payload_of(config, dataset)
    (leaves,) = payload.leaf_counts
    here = max(world.host_sizes) if world.world_size > 1 else cores(world)
    ranks_per_host = min(ranks_per_host or here, leaves)
    connected = world.host_count > 1 or bytes_per_second > 0
    counts = numbers("--hosts", hosts) or [2**i for i in range(1, leaves.bit_length())]
    wanted = shapes(leaves, ranks_per_host, counts if connected else [])
    measured_on = Shape(world.host_count, max(world.host_sizes))
    owned = {-(-leaves // shape.ranks) for shape in wanted}
    machine = measure_machine(config, dataset, world, sorted(owned, reverse=True))
    if bytes_per_second:
        machine = machine._replace(
            bytes_per_second=bytes_per_second, latency_seconds=latency_seconds, network_factor=1.0
        )
    examples = min(config.batch_size, len(dataset.train))
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    rows = []
    for shape in wanted:
        row = predict(machine, payload, shape)
        parts = rank_bytes(config, dataset, network, shape.ranks, shape.ranks_per_host)
        each = private + sum(parts.values())
        rows.append(
            {
                "hosts": shape.hosts,
                "ranks": shape.ranks,
                "leaves_per_rank": -(-leaves // shape.ranks),
                **row,
                "examples_per_second": examples / row["step_seconds"],
                "memory_bytes_per_host": shared + each * shape.ranks_per_host,
            }
        )
    for row in rows:
        row["speed_up"] = rows[0]["step_seconds"] / row["step_seconds"]
        row["efficiency"] = row["speed_up"] / row["ranks"]
    return {
        "network": list(network.sizes),
        "batch_size": examples,
        "leaves": leaves,
        "measured_on": {"hosts": measured_on.hosts, "ranks": world.world_size},
        "latency_seconds": machine.latency_seconds,
        "bytes_per_second": machine.bytes_per_second,
        "predictions": rows,
        "advice": advice(config, rows, leaves, ranks=world.world_size, connected=connected),
    }


def advice(
    config: Config, rows: Sequence[dict[str, Any]], leaves: int, *, ranks: int, connected: bool
) -> list[str]:
    """Return advice from the predictions, in sentences."""
    best = min(rows, key=lambda row: row["step_seconds"])
    most = rows[-1]
    sentences = [
        f"fastest: {best['ranks']} rank(s) on {best['hosts']} host(s), "
        f"{best['speed_up']:.2f} times one rank"
    ]
    more = "raise batch_size, so that a rank computes more for the bytes it sends"
    if best is not most:
        sentences.append(f"more than {best['ranks']} rank(s) are slower: {more} (or start no more)")
    elif most["efficiency"] < 0.5 and most["ranks"] > 1:
        sentences.append(
            f"{most['ranks']} ranks work at {most['efficiency']:.0%} efficiency: {more}"
        )
    sending = most["step_seconds"] - most["compute_seconds"]
    if most["sent_bytes_per_host"] and sending > most["compute_seconds"] and config.wire == "none":
        sentences.append('the network takes most of the time: wire = "bf16" sends half the bytes')
    if 2 * most["ranks"] > leaves:
        sentences.append(
            f"at most {leaves} ranks: a batch has {leaves} leaves; a smaller micro_batch_size or a "
            "larger batch_size gives more"
        )
    if not connected:
        sentences.append(
            "several hosts: run it there under mpirun or srun, or describe their network with "
            "--bandwidth and --latency"
        )
    if ranks == 1:
        sentences.append("no MPI here: how much ranks slow each other down was not measured")
    return sentences


def plan_under_mpi(config: Config, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Measure and predict on as many ranks as this host has cores.

    Parameters
    ----------
    config : Config
    arguments : sequence of str
        Those of this command.

    Returns
    -------
    dict or None
        As `plan` returns it; None on a single core or leaf, or without MPI.

    Raises
    ------
    ConfigError
        If the ranks fail.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    count = min(cores(World()), leaves)
    if count < 2:
        return None
    try:
        which()
    except ConfigError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        run_on_ranks(count, "plan", *arguments, "--json", str(file))
        return dict(json.loads(file.read_text()))


def text(figures: dict[str, Any]) -> str:
    """Describe a plan as a table, followed by its advice."""
    on = figures["measured_on"]
    lines = [
        f"network {'-'.join(map(str, figures['network']))}, batch {figures['batch_size']} in "
        f"{figures['leaves']} leaves; measured on {on['ranks']} rank(s) of {on['hosts']} host(s)"
    ]
    if figures["bytes_per_second"]:
        lines.append(
            f"between hosts {figures['bytes_per_second'] / 1e6:,.0f} MB/s, "
            f"{figures['latency_seconds'] * 1e6:.0f} µs"
        )
    lines.append(
        "hosts  ranks  leaves/rank     ms/step  examples/s  speed-up  efficiency  "
        "MiB/host  MB sent/host/step"
    )
    lines += [
        f"{row['hosts']:>5}  {row['ranks']:>5}  {row['leaves_per_rank']:>11}  "
        f"{row['step_seconds'] * 1e3:>10.3f}  {row['examples_per_second']:>10,.0f}  "
        f"{row['speed_up']:>8.2f}  {row['efficiency']:>10.0%}  "
        f"{row['memory_bytes_per_host'] / 2**20:>8,.0f}  {row['sent_bytes_per_host'] / 1e6:>17.2f}"
        for row in figures["predictions"]
    ]
    return "\n".join([*lines, *figures["advice"]])
