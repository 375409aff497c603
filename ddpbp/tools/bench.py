"""How fast a configuration is, and where the time goes."""

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpbp.base.phases import PHASES, STEP, Observer, Phase, Pulse
from ddpbp.comm.all_reduce.choose import make_reducer
from ddpbp.comm.all_reduce.reducer import Payload
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.engine.build import make_trainer
from ddpbp.engine.data import open_dataset
from ddpbp.engine.trainer import Trainer
from ddpbp.errors import ConfigError
from ddpbp.nn.backprop import GRADIENT_ROWS, Array, Backprop
from ddpbp.nn.network import Parameters
from ddpbp.tools.launcher import run_on_ranks

STEP_PHASES = tuple(phase.name for phase in STEP)
REPEATS = 5
REPEAT_SECONDS = 0.5
ALL_REDUCE_BYTES = (4_096, 65_536, 400_000, 4_000_000, 48_000_000)
PINGS = ((8, 200), (4_000_000, 5))  # bytes and repeats: for the latency, for the bandwidth


class PhaseTimer(Observer):
    """Adds up the seconds of each phase of a rank.

    Attributes
    ----------
    seconds : dict
        By the name of the phase.
    since : float
        When the present phase began, by `time.perf_counter`.
    """

    def __init__(self, pulse: Pulse) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self.since = pulse.phase, time.perf_counter()
        pulse.observers.append(self)

    def entered(self, phase: Phase) -> None:
        """Add the time to the phase that ends."""
        now = time.perf_counter()
        self.seconds[self._phase.name] += now - self.since
        self._phase, self.since = phase, now

    def reset(self) -> None:
        """Start again from 0 seconds."""
        self.seconds, self.since = dict.fromkeys(PHASES, 0.0), time.perf_counter()


def measure(config: Config, world: World) -> dict[str, Any]:
    """Measure training steps of a configuration on the ranks there are.

    Returns
    -------
    dict
        Medians over the repeats: examples_per_second, seconds_per_step by phase, gemm_fraction
        (bare matrix products at leaf shapes over the whole step) and gemm_fraction_one_leaf (the
        same with this rank's leaves as one), world_size, and the sizes that were measured.
    """
    dataset = open_dataset(config, world)
    trainer, timer = make_trainer(config, dataset, world), PhaseTimer(world.pulse)
    shard = next(trainer.shards.epoch(0))
    run_steps(trainer, timer, 3)
    seconds = min(world.all_gather_object(run_steps(trainer, timer, 5)["step"]))
    steps = max(3, int(REPEAT_SECONDS / seconds))
    rows = max(1, shard.rows)

    def bare(shapes: Sequence[tuple[int, int]], gradient_rows: int) -> Callable[[], float]:
        workspace = Backprop(trainer.network, trainer.backprop.loss, rows)
        return gemm(workspace, trainer.theta, shapes, gradient_rows)

    leaf_gemm, whole_gemm = bare(shard.shapes, GRADIENT_ROWS), bare(((1, rows),), 2**30)
    runs: list[dict[str, float]] = []
    for _ in range(REPEATS):
        one = run_steps(trainer, timer, steps)
        one["gemm"], one["gemm_one_leaf"] = leaf_gemm(), whole_gemm()
        runs.append(one)
    median = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    step = median["step"]
    return {
        "examples_per_second": config.batch_size / step,
        "gemm_fraction": statistics.median(one["gemm"] / one["step"] for one in runs),
        "gemm_fraction_one_leaf": statistics.median(
            one["gemm_one_leaf"] / one["step"] for one in runs
        ),
        "seconds_per_step": {"all": step} | {phase: median[phase] for phase in STEP_PHASES},
        "world_size": world.world_size,
        "network": list(trainer.network.sizes),
        "batch_size": config.batch_size,
        "micro_batch_size": config.leaf_size,
        "repeats": REPEATS,
        "steps": steps,
    }


def run_steps(trainer: Trainer, timer: PhaseTimer, steps: int) -> dict[str, float]:
    """Run full batches; return the seconds of one step, in all and by phase."""
    timer.reset()
    full = min(trainer.shards.batch_size, trainer.shards.examples)
    began, done, epoch = time.perf_counter(), 0, 0
    while done < steps:
        for shard in trainer.shards.epoch(epoch):
            if shard.batch_examples < full:
                continue
            trainer.train_step(shard)
            done += 1
            if done == steps:
                break
        epoch += 1
    step = (time.perf_counter() - began) / steps
    phases = {phase: seconds / steps for phase, seconds in timer.seconds.items()}
    # Finding the indices of a batch happens between two steps: it is data.
    return {"step": step} | phases | {"data": phases["data"] + phases["between"]}


def gemm(
    backprop: Backprop,
    theta: Parameters,
    shapes: Sequence[tuple[int, int]],
    gradient_rows: int,
) -> Callable[[], float]:
    """Return a function that times the bare matrix products of one step, in seconds."""
    network = backprop.network
    calls: list[tuple[Array, Array, Array]] = []
    for stack in backprop.arrange(tuple(shapes)):
        for array in (stack.x, *stack.passed, *stack.delta):
            array.fill(0.5)
        for l in range(1, network.L + 1):
            n, n_in = network.sizes[l], network.sizes[l - 1]
            dW = np.empty((min(n, gradient_rows), n_in), network.dtype)
            for piece in stack.pieces[l]:
                calls.append((theta.W[l], piece.below, piece.z))
                if l < network.L:
                    calls.append((theta.W[l + 1].T, piece.delta_above, piece.delta))
            for delta, below in zip(stack.delta[l], stack.passed[l - 1], strict=True):
                for start in range(0, n, gradient_rows):
                    rows = delta[start : start + gradient_rows]
                    calls.append((rows, below.T, dW[: len(rows)]))

    def run() -> float:
        began = time.perf_counter()
        for left, right, out in calls:
            np.matmul(left, right, out=out)
        return time.perf_counter() - began

    return lambda: statistics.median(run() for _ in range(5))


def all_reduce(world: World) -> list[dict[str, float]]:
    """Time the reduction of float32 vectors against `MPI.Allreduce` over sizes."""
    comm = world.comm
    rows = []
    for bytes_ in ALL_REDUCE_BYTES:
        payload = Payload(bytes_ // 4, np.dtype(np.float32), 1, (world.world_size,))
        reducer = make_reducer(world, payload)
        reducer.node_grads[:] = 1.0
        out = np.ones(bytes_ // 4, np.float32)
        send = np.ones_like(out)
        repeats = max(5, min(500, 100_000_000 // bytes_))

        def ours(reducer: Any = reducer) -> None:
            reducer.begin_step(world.world_size)
            reducer.finish()

        def theirs(send: Any = send, out: Any = out) -> None:
            assert comm is not None
            comm.Allreduce(send, out)

        rounds = [
            (seconds_of(ours, repeats), seconds_of(theirs, repeats) if comm else 0.0)
            for _ in range(5)
        ]
        mine, mpi = (statistics.median(side) for side in zip(*rounds, strict=True))
        rows.append({"bytes": bytes_, "seconds": mine, "mpi_seconds": mpi})
    return rows


class Link(NamedTuple):
    """What a message between two places costs."""

    name: str
    latency_seconds: float
    bytes_per_second: float


def links(world: World) -> list[Link]:
    """Time messages between neighbouring hosts, one pair after the other, or inside the only one.

    Returns
    -------
    list of Link
        The same on every rank; none for one process.
    """
    comm = world.comm
    if comm is None or world.world_size == 1:
        return []
    places = world.all_gather_object((world.local_rank, world.host))
    ends = [rank for rank, (local_rank, _) in enumerate(places) if local_rank == 0]
    ends = ends if len(ends) > 1 else [0, 1]
    measured = []
    for a, b in pairwise([*ends, ends[0]] if len(ends) > 2 else ends):
        seconds: tuple[float, ...] = ()
        if world.rank in (a, b):
            other = a + b - world.rank
            seconds = tuple(
                _ping(comm, other, bytes_, repeats, first=world.rank == a)
                for bytes_, repeats in PINGS
            )
        latency, long = world.all_gather_object(seconds)[a]
        name = f"{places[a][1]} to {places[b][1]}" if places[a][1] != places[b][1] else places[a][1]
        measured.append(Link(name, latency, PINGS[1][0] / long))
    return measured


def _ping(comm: Any, other: int, bytes_: int, repeats: int, *, first: bool) -> float:
    """Send a message there and back; return the median seconds of one way."""
    message, seconds = np.zeros(bytes_, np.uint8), []
    for _ in range(repeats):
        began = time.perf_counter()
        if first:
            comm.Send(message, other)
        comm.Recv(message, other)
        if not first:
            comm.Send(message, other)
        seconds.append((time.perf_counter() - began) / 2)
    return statistics.median(seconds)


def seconds_of(call: Callable[[], None], repeats: int) -> float:
    """Return the seconds of one call, after one to get warm."""
    call()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def numbers(option: str, value: str | None) -> list[int]:
    """Read numbers as in "1,2,4"; an option without a value gives none.

    Raises
    ------
    ConfigError
        Names the option.
    """
    if value is None:
        return []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", value):
        raise ConfigError(f"{option} {value}: expected numbers, as in 1,2,4")
    return [int(number) for number in value.split(",")]


def scaling(config: Config, settings: Sequence[str], ranks: str) -> dict[str, Any]:
    """Run this benchmark on each number of ranks of this host.

    Strong scaling keeps the batch, weak scaling the batch of one rank.

    Parameters
    ----------
    config : Config
    settings : sequence of str
        The arguments `config` was made from.
    ranks : str
        Numbers of ranks, as in "1,2,4".

    Returns
    -------
    dict
        strong_scaling and weak_scaling: what `measure` returned for each number of ranks.

    Raises
    ------
    ConfigError
        If `ranks` is malformed, there is no MPI or a run fails.
    """
    results: dict[str, Any] = {"strong_scaling": [], "weak_scaling": []}
    for count in numbers("--ranks", ranks):
        for kind, batch in (("strong", config.batch_size), ("weak", config.batch_size * count)):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "bench.json"
                words = (*settings, f"batch_size={batch}", "--json", str(file))
                run_on_ranks(count, "bench", *words)
                results[f"{kind}_scaling"].append(json.loads(file.read_text()))
    return results


def text(figures: dict[str, Any]) -> str:
    """Describe a measurement in a few lines."""
    step = figures["seconds_per_step"]
    lines = [
        f"network {'-'.join(map(str, figures['network']))}, batch {figures['batch_size']} "
        f"in leaves of {figures['micro_batch_size']}, {figures['world_size']} rank(s); medians of "
        f"{figures['repeats']} × {figures['steps']} steps",
        f"{figures['examples_per_second']:,.0f} examples/s, {step['all'] * 1e3:.3f} ms a step",
        "  ".join(f"{phase} {step[phase] / step['all']:.0%}" for phase in STEP_PHASES),
        f"bare GEMM time is {figures['gemm_fraction']:.0%} of the step at leaf shapes, "
        f"{figures['gemm_fraction_one_leaf']:.0%} as one leaf",
    ]
    for row in figures.get("all_reduce", []):
        if row["mpi_seconds"]:
            lines.append(
                f"all-reduce {row['bytes']:>11,} bytes  {row['seconds'] * 1e6:>10,.0f} µs  "
                f"MPI.Allreduce {row['mpi_seconds'] * 1e6:>10,.0f} µs  "
                f"{row['mpi_seconds'] / row['seconds']:.2f} ×"
            )
    for kind in ("strong", "weak"):
        rows = figures.get(f"{kind}_scaling", [])
        for row in rows:
            ratio = row["examples_per_second"] / rows[0]["examples_per_second"]
            lines.append(
                f"{kind} scaling  {row['world_size']:>3} rank(s)  batch {row['batch_size']:>6}  "
                f"{row['examples_per_second']:>12,.0f} examples/s  {ratio:.2f} ×"
            )
    return "\n".join(lines)
