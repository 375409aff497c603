"""ddpbp against PyTorch DDP (gloo), plain PyTorch and scikit-learn, in alternation in one run.

    pip install -e '.[mpich]' torch scikit-learn     (torch==2.13.0 is what the README's table used)
    python tests/benchmarks/compare.py               (--nets 64-32-10@64 ..., --rounds 5, --json F)

Same net, same global batch, float32, plain SGD, one thread a process, data in memory. Every worker
process waits, blocked, while another kind is measured. The figures are medians over the rounds;
ratios are of medians of the same run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

NETS = (
    "64-32-10@64",
    "784-128-10@128",
    "784-800-10@256",
    "784-2500-2000-1500-1000-500-10@256",
    "784-2500-2000-1500-1000-500-10@1024",
)
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
LEARNING_RATE = 0.01

Step = Callable[[int], float]  # steps to seconds


def shape(net: str) -> tuple[list[int], int, int]:
    """Return the layer sizes, the batch size and the number of examples in memory."""
    sizes, batch = net.split("@")
    examples = max(8_192, 8 * int(batch))
    return [int(n) for n in sizes.split("-")], int(batch), examples


def synthetic(net: str, leaves: int) -> Any:
    """Return the configuration of ddpbp for `net`, a batch in `leaves`."""
    from ddpbp import resolve

    sizes, batch, examples = shape(net)
    return resolve(
        None,
        [
            f"model.hidden={sizes[1:-1]}",
            f"batch_size={batch}",
            f"micro_batch_size={-(-batch // leaves)}",
            f"optimizer.learning_rate={LEARNING_RATE}",
            "data.source=synthetic",
            "data.standardize=false",
            "data.validation=0.0",
            f"data.examples={examples}",
            f"data.features={sizes[0]}",
            f"data.classes={sizes[-1]}",
        ],
    )


def make_ddpbp(net: str, leaves: int) -> Step:
    """One rank of ddpbp; `leaves` of a batch."""
    from ddpbp import join
    from ddpbp.engine.build import make_trainer
    from ddpbp.engine.data import open_dataset

    config = synthetic(net, leaves)
    world = join()
    trainer = make_trainer(config, open_dataset(config, world), world)
    epoch = 0

    def run(steps: int) -> float:
        nonlocal epoch
        done, began = 0, time.perf_counter()
        while done < steps:
            for batch in trainer.shards.epoch(epoch):
                trainer.train_step(batch)
                done += 1
                if done == steps:
                    break
            epoch += 1
        return time.perf_counter() - began

    return run


def torch_model(net: str) -> Any:
    """Return PyTorch's model of `net`, its layer sizes and the batch size."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes, batch, _ = shape(net)
    layers: list[nn.Module] = []
    for n_in, n in pairwise(sizes):
        layers += [nn.Linear(n_in, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), sizes, batch


def make_torch(net: str, *, ddp: bool) -> Step:
    """One process of PyTorch, alone or as a rank of DDP."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    model, sizes, batch = torch_model(net)
    examples = shape(net)[2]
    ranks = 1
    if ddp:
        torch.distributed.init_process_group("gloo")
        ranks = torch.distributed.get_world_size()
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = nn.CrossEntropyLoss()
    x = torch.rand(examples, sizes[0]) * 2 - 1
    y = torch.randint(sizes[-1], (examples,))
    mine = batch // ranks

    def run(steps: int) -> float:
        done, began = 0, time.perf_counter()
        while done < steps:
            order = torch.randperm(examples)
            for i in range(0, examples - mine + 1, mine):
                rows = order[i : i + mine]
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break
        return time.perf_counter() - began

    return run


def make_sklearn(net: str) -> Step:
    """scikit-learn's MLPClassifier; a step is a batch of its own loop."""
    import warnings

    import numpy as np
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")
    sizes, batch, examples = shape(net)
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (examples, sizes[0])).astype(np.float32)
    y = random.integers(0, sizes[-1], examples)
    model = MLPClassifier(
        sizes[1:-1], solver="sgd", momentum=0.0, batch_size=batch, alpha=0.0, warm_start=True,
        learning_rate_init=LEARNING_RATE, max_iter=1, n_iter_no_change=10**9,
    )  # fmt: skip

    def run(steps: int) -> float:
        model.max_iter = max(1, steps * batch // examples)
        began = time.perf_counter()
        model.fit(x, y)
        took = time.perf_counter() - began
        return took * steps * batch / (int(model.max_iter) * examples)

    return run


def work(address: str, kind: str, net: str) -> None:
    """Be a worker: run as many steps as the parent says, and tell how long they took."""
    name, _, leaves = kind.partition(":")
    run = {
        "ddpbp": lambda: make_ddpbp(net, int(leaves or 8)),
        "ddp": lambda: make_torch(net, ddp=True),
        "torch": lambda: make_torch(net, ddp=False),
        "sklearn": lambda: make_sklearn(net),
    }[name]()
    run(3)
    with Client(address) as parent:
        parent.send("ready")
        while steps := parent.recv():
            parent.send(run(steps))


class Job:
    """The processes of one kind, all waiting for the parent's word."""

    def __init__(self, kind: str, net: str, ranks: int, folder: str) -> None:
        self.kind = kind
        address = f"{folder}/{kind.replace(':', '-')}-{ranks}"
        line = [sys.executable, __file__, "--work", address, kind, net]
        env = os.environ | THREADS
        with Listener(address) as listener:
            if kind.startswith("ddpbp") and ranks > 1:
                mpirun = Path(sys.executable).with_name("mpirun")
                self._processes = [subprocess.Popen([mpirun, "-n", str(ranks), *line], env=env)]
            else:
                rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29581"}
                self._processes = [
                    subprocess.Popen(
                        line,
                        env=env | rendezvous | {"RANK": str(r), "WORLD_SIZE": str(ranks)},
                    )
                    for r in range(ranks)
                ]
            self._workers: list[Connection] = [listener.accept() for _ in range(ranks)]
        for worker in self._workers:
            worker.recv()

    def run(self, steps: int) -> float:
        """Return the seconds of the slowest worker."""
        for worker in self._workers:
            worker.send(steps)
        return max(float(worker.recv()) for worker in self._workers)

    def close(self) -> None:
        """Let the processes end."""
        for worker in self._workers:
            worker.send(0)
        for process in self._processes:
            process.wait()


def compare(net: str, kinds: dict[str, int], rounds: int, seconds: float) -> dict[str, float]:
    """Return examples per second by kind: medians over alternating rounds."""
    batch = shape(net)[1]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(kind, net, ranks, folder) for kind, ranks in kinds.items()]
        steps = {job.kind: max(2, round(seconds / (job.run(4) / 4))) for job in jobs}
        for _ in range(rounds):
            for job in jobs:
                rates[job.kind].append(batch * steps[job.kind] / job.run(steps[job.kind]))
        for job in jobs:
            job.close()
    return {kind: statistics.median(found) for kind, found in rates.items()}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one kind in one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work)
        return
    found: dict[str, Any] = {}
    print("| net @ batch | 2 ranks: DDP ex/s | 8 leaves | 2 leaves | 1 process: torch ex/s |"
          " sklearn | ddpbp, 1 leaf | ÷ better |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for net in given.nets:
        two = compare(net, {"ddp": 2, "ddpbp:8": 2, "ddpbp:2": 2}, given.rounds, given.seconds)
        one = compare(net, {"torch": 1, "sklearn": 1, "ddpbp:1": 1}, given.rounds, given.seconds)
        found[net] = {"two_ranks": two, "one_process": one}
        better = max(one["torch"], one["sklearn"])
        print(
            f"| {net} | {two['ddp']:,.0f} | {two['ddpbp:8'] / two['ddp']:.2f} × | "
            f"{two['ddpbp:2'] / two['ddp']:.2f} × | {one['torch']:,.0f} | {one['sklearn']:,.0f} | "
            f"{one['ddpbp:1']:,.0f} | {one['ddpbp:1'] / better:.2f} × |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
