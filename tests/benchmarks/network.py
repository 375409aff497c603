"""A step between simulated hosts on slow links, compared with its parts and with PyTorch DDP.

    pip install -e '.[mpich]' torch==2.13.0
    python -m tests.benchmarks.network --hosts 2 --batch 1024      (root; iproute2, openssh-server)

One rank a host, float32, plain SGD, one thread a rank. `compute` is the step with a reducer that
sends nothing, `transfer` the reduction alone; with perfect overlap a step takes the longer of them.
The three are measured in turn in the same processes; then the same for PyTorch DDP (gloo).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.compare import THREADS, synthetic, torch_model
from tests.cluster.hosts import Hosts, missing

PHASES = ("compute", "transfer", "step")
Measured = dict[str, list[float]]


def in_turn(runs: dict[str, Callable[[], None]], rounds: int, steps: int) -> Measured:
    """Time `steps` of each phase, round after round; seconds of one step."""
    seconds: Measured = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(steps):
                run()
            seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def measure_ddpbp(net: str, leaves: int, rounds: int, steps: int) -> Measured | None:
    """Measure one rank of ddpbp; rank 0 returns the figures."""
    import numpy as np

    from ddpbp import join
    from ddpbp.comm.all_reduce.reducer import Reduced, Reducer
    from ddpbp.engine.build import make_trainer
    from ddpbp.engine.data import open_dataset

    class Mute(Reducer):
        """Sends nothing, to measure the cost of everything else."""

        def finish(self, signal: int = 0) -> Reduced:
            return Reduced(self.node_grads[0], np.zeros(1), True, 0)

    config = synthetic(net, leaves)
    world = join()
    trainer = make_trainer(config, open_dataset(config, world), world)
    batch = next(trainer.shards.epoch(0))
    real, count = trainer.reducer, batch.leaf_count
    mute = Mute(world, real.payload)
    mute.node_grads[...] = 0.0

    def step_with(reducer: Reducer) -> None:
        trainer.reducer = reducer
        trainer._nodes = [trainer.network.views(row) for row in reducer.node_grads]
        trainer.train_step(batch)

    def transfer() -> None:
        real.begin_step(count)
        real.start(0)
        real.finish()

    def meet(run: Callable[[], None]) -> Callable[[], None]:
        def together() -> None:
            world.comm.Barrier()
            run()

        return together

    runs = {
        "compute": meet(lambda: step_with(mute)),
        "transfer": meet(transfer),
        "step": meet(lambda: step_with(real)),
    }
    seconds = in_turn(runs, rounds, steps)
    return seconds if world.rank == 0 else None


def measure_ddp(net: str, rounds: int, steps: int) -> Measured | None:
    """Measure one rank of PyTorch DDP with gloo; rank 0 returns the figures."""
    import torch
    from torch import distributed, nn

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    model, sizes, batch = torch_model(net)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mine = batch // distributed.get_world_size()
    x, y = torch.rand(mine, sizes[0]) * 2 - 1, torch.randint(sizes[-1], (mine,))
    gradient = torch.zeros(sum(p.numel() for p in model.parameters()))

    def step_of(network: nn.Module) -> None:
        distributed.barrier()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    def transfer() -> None:
        distributed.barrier()
        distributed.all_reduce(gradient)

    runs = {
        "compute": lambda: step_of(model),
        "transfer": transfer,
        "step": lambda: step_of(parallel),
    }
    seconds = in_turn(runs, rounds, steps)
    return seconds if distributed.get_rank() == 0 else None


def start(hosts: Hosts, kind: str, words: list[str]) -> Measured:
    """Run one kind on all hosts and return what its rank 0 measured."""
    python, folder = Path(sys.executable), hosts.folder
    file = folder / f"{kind}.json"
    line = [str(python), "-m", "tests.benchmarks.network", "--work", kind, str(file), *words]
    count = len(hosts.names)
    if kind == "ddpbp":
        env = os.environ | THREADS | {"UCX_TLS": "tcp"}
        done = hosts.run("h1", [*hosts.mpiexec([1] * count), *line], seconds=900, env=env)
    else:
        import threading

        env = os.environ | THREADS | {"MASTER_ADDR": hosts.addresses["h1"], "MASTER_PORT": "29582"}
        env |= {"GLOO_SOCKET_IFNAME": "eth0", "WORLD_SIZE": str(count)}

        def rank(r: int) -> None:
            hosts.run(hosts.names[r], line, seconds=900, env=env | {"RANK": str(r)})

        others = [threading.Thread(target=rank, args=(r,)) for r in range(1, count)]
        for other in others:
            other.start()
        done = hosts.run("h1", line, seconds=900, env=env | {"RANK": "0"})
        for other in others:
            other.join()
    if done.returncode:
        sys.exit(f"{kind}: {done.stdout}{done.stderr}")
    seconds: Measured = json.loads(file.read_text())
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="784-2500-2000-1500-1000-500-10")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["ddpbp", "ddp"])
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    net = f"{options.net}@{options.batch}"
    if options.work:
        kind, file = options.work
        if kind == "ddpbp":
            seconds = measure_ddpbp(net, options.leaves, options.rounds, options.steps)
        else:
            seconds = measure_ddp(net, options.rounds, options.steps)
        if seconds:
            Path(file).write_text(json.dumps(seconds))
        return
    if reason := missing():
        sys.exit(f"simulated hosts: {reason}")
    words = [f"--{name}={getattr(options, name)}" for name in ("net", "batch", "leaves", "rounds")]
    words.append(f"--steps={options.steps}")
    with Hosts(options.hosts) as hosts:
        hosts.shape(options.rate)
        for kind in options.kinds:
            seconds = start(hosts, kind, words)
            median = {name: statistics.median(seconds[name]) for name in PHASES}
            ratio = median["step"] / max(median["compute"], median["transfer"])
            figures = "  ".join(f"{name} {v * 1e3:.0f} ms" for name, v in median.items())
            print(
                f"{options.hosts} hosts  {net}  {kind:<6} {figures}  "
                f"step ÷ max(compute, transfer) {ratio:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
