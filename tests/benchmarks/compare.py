"""ddpbp against PyTorch DDP (gloo), PyTorch, scikit-learn and JAX, in alternation in one run.

    pip install -e '.[mpich]' torch scikit-learn jax       (the README's: torch 2.13.0, jax 0.10.2)
    python tests/benchmarks/compare.py                     (--rounds 5, --json F)
    python tests/benchmarks/compare.py --two-ranks --nets 64-32-10@64 16-64-64-64-4@256:silu

Same net, same global batch, float32, plain SGD, one thread a process, data in memory; each permutes
its rows anew for every epoch, inside the time that is measured. A single process is pinned to one
core. Every worker process waits, blocked, while another kind is measured. The figures are medians
over the rounds; ratios are of medians of the same run. A kind that is not installed is left out.

Kinds, on one process: ddpbp:N (N leaves), jax (a jitted call a step), jax:scan (an epoch as one
call), torch, sklearn. On two: ddpbp:N and ddp.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
    *(f"16-64-64-64-4@256:{name}" for name in ("relu", "tanh", "silu", "gelu")),
    *(f"16-64-64-64-4@4096:{name}" for name in ("relu", "silu")),
    *(f"32-256-256-256-8@1024:{name}" for name in ("relu", "silu")),
)
TWO_RANKS = ("ddp", "ddpbp:8", "ddpbp:2")
ONE_PROCESS = ("torch", "sklearn", "jax", "jax:scan", "ddpbp:1", "ddpbp:8")
NEEDS = {"ddp": "torch", "torch": "torch", "sklearn": "sklearn", "jax": "jax", "ddpbp": "ddpbp"}
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
LEARNING_RATE = 0.01

Step = Callable[[int], float]  # steps to seconds


def shape(net: str) -> tuple[list[int], int, int]:
    """Return the layer sizes, the batch size and the number of examples in memory."""
    sizes, batch = net.partition(":")[0].split("@")
    examples = max(8_192, 8 * int(batch))
    return [int(n) for n in sizes.split("-")], int(batch), examples


def activation(net: str) -> str:
    """Return the activation of the hidden layers."""
    return net.partition(":")[2] or "relu"


def synthetic(net: str, leaves: int) -> Any:
    """Return the configuration of ddpbp for `net`, a batch in `leaves`."""
    from ddpbp import resolve

    sizes, batch, examples = shape(net)
    return resolve(
        None,
        [
            f"model.hidden={sizes[1:-1]}",
            f"model.activation={activation(net)}",
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
    names = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
    kind = names[activation(net)]
    for n_in, n in pairwise(sizes):
        layers += [nn.Linear(n_in, n), kind()]
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


def make_jax(net: str, *, scan: bool) -> Step:
    """JAX on one core: a jitted call for each step, or one for each epoch."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    sizes, batch, examples = shape(net)
    sigma = {"tanh": jnp.tanh}.get(activation(net)) or getattr(jax.nn, activation(net))
    keys = jax.random.split(jax.random.key(0), len(sizes) + 2)
    theta = [
        (jax.random.normal(key, (n_in, n)) / n_in**0.5, jnp.zeros(n))
        for key, (n_in, n) in zip(keys, pairwise(sizes), strict=False)
    ]
    x = jax.random.uniform(keys[-1], (examples, sizes[0]), minval=-1.0)
    y = jax.random.randint(keys[-2], (examples,), 0, sizes[-1])

    def loss(theta: Any, x: Any, y: Any) -> Any:
        for W, b in theta[:-1]:
            x = sigma(x @ W + b)
        W, b = theta[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x @ W + b), y[:, None], 1).mean()

    def step(theta: Any, rows: Any) -> Any:
        value, grad = jax.value_and_grad(loss)(theta, x[rows], y[rows])
        return jax.tree.map(lambda t, g: t - LEARNING_RATE * g, theta, grad), value

    call = jax.jit(step, donate_argnums=0)
    epoch = jax.jit(lambda theta, rows: jax.lax.scan(step, theta, rows), donate_argnums=0)
    permutation = jax.jit(lambda key: jax.random.permutation(key, examples))
    steps_per_epoch, count = examples // batch, 0

    def run(steps: int) -> float:
        nonlocal theta, count
        done, began = 0, time.perf_counter()
        while done < steps:
            count += 1
            order = permutation(jax.random.key(count))[: steps_per_epoch * batch]
            rows = order.reshape(steps_per_epoch, batch)
            if scan:
                theta, value = epoch(theta, rows)
                done += steps_per_epoch
            else:
                for step_rows in np.asarray(rows)[: steps - done]:
                    theta, value = call(theta, step_rows)
                    done += 1
        jax.block_until_ready(value)
        return (time.perf_counter() - began) * steps / done

    return run


def make_sklearn(net: str) -> Step:
    """scikit-learn's MLPClassifier; a step is a batch of its own loop."""
    import warnings

    import numpy as np
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")
    sizes, batch, examples = shape(net)
    assert activation(net) in ("relu", "tanh"), "scikit-learn has no other"
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (examples, sizes[0])).astype(np.float32)
    y = random.integers(0, sizes[-1], examples)
    model = MLPClassifier(
        sizes[1:-1], activation=activation(net), solver="sgd", momentum=0.0, batch_size=batch,
        alpha=0.0, warm_start=True, learning_rate_init=LEARNING_RATE, max_iter=1,
        n_iter_no_change=10**9,
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
    name, _, variant = kind.partition(":")
    run = {
        "ddpbp": lambda: make_ddpbp(net, int(variant or 8)),
        "jax": lambda: make_jax(net, scan=variant == "scan"),
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
                if ranks == 1:
                    line = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *line]
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


def available(kind: str, net: str) -> bool:
    """Return whether a kind is installed and knows the activation."""
    name = kind.partition(":")[0]
    known = name != "sklearn" or activation(net) in ("relu", "tanh")
    return known and importlib.util.find_spec(NEEDS[name]) is not None


def compare(
    net: str, kinds: Sequence[str], ranks: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Return examples per second by kind: medians over alternating rounds."""
    batch = shape(net)[1]
    kinds = [kind for kind in kinds if available(kind, net)]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(kind, net, ranks, folder) for kind in kinds]
        steps = {job.kind: max(2, round(seconds / (job.run(4) / 4))) for job in jobs}
        for _ in range(rounds):
            for job in jobs:
                rates[job.kind].append(batch * steps[job.kind] / job.run(steps[job.kind]))
        for job in jobs:
            job.close()
    return {kind: statistics.median(values) for kind, values in rates.items()}


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--kinds", nargs="+", default=ONE_PROCESS, help="on one process")
    parser.add_argument("--two-ranks", nargs="*", default=TWO_RANKS, help="kinds on two ranks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one kind in one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    rates: dict[str, Any] = {net: {} for net in options.nets}
    for ranks, kinds, base in ((2, options.two_ranks, "ddp"), (1, options.kinds, "jax")):
        if not kinds:
            continue
        print(f"\n{ranks} process{'es' * (ranks > 1)}, examples/s; in brackets ÷ {base}\n")
        print(f"| net @ batch | {' | '.join(kinds)} |\n|---{'|---' * len(kinds)}|", flush=True)
        for net in options.nets:
            one = compare(net, kinds, ranks, options.rounds, options.seconds)
            rates[net][ranks] = one
            cells = [
                f"{one[kind]:,.0f}" + f" ({one[kind] / one[base]:.2f})" * (base in one)
                if kind in one
                else "–"
                for kind in kinds
            ]
            print(f"| {net} | {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
