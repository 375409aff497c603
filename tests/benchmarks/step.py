"""The step against what NumPy allows: its parts alone, written as plainly as they can be.

    taskset -c 1 python -m tests.benchmarks.step               (--nets 64-32-10@64, --rounds 9)

One process, one core, float32, SGD, softmax and cross-entropy; nets as in `compare.py`, which has
the other trainers. For one leaf and for eight (`micro_batch_size = "auto"`), µs a step:

step      one step of ddpbp as it trains: order, data, forward, loss, backward, sums, update
bare      the forward and backward pass as straight code over arrays that lie ready
rest      order, gather of rows, loss and update, each alone
matmul    the matrix products of `bare` alone

`ratio` is step / (bare + rest), `share` is matmul / step, `eight / one` compares the steps. Every
figure is the median over rounds in which the parts take turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tests.benchmarks.compare import LEARNING_RATE, NETS, THREADS, activation, make_ddpbp, shape

os.environ |= THREADS  # before NumPy is imported

import numpy as np

from ddpbp.data.order import Order
from ddpbp.data.shards import POSITIONS_AT_ONCE
from ddpbp.nn.activations import ACTIVATIONS

Part = Callable[[], object]
ROUND_SECONDS = 0.15


class Bare:
    """The parts of a step over arrays of their own; `leaves` of equal size."""

    def __init__(self, net: str, leaves: int) -> None:
        sizes, batch, examples = shape(net)
        self.sizes, self.batch, m = sizes, batch, batch // leaves
        self.sigma = ACTIVATIONS[activation(net)]
        random = np.random.default_rng(0)

        def empty(*shape: int) -> Any:
            return np.empty(shape, np.float32)

        pairs = list(pairwise(sizes))
        self.W = [
            (random.standard_normal((n, k)) * (2 / k) ** 0.5).astype(np.float32) for k, n in pairs
        ]
        self.b = [np.zeros((n, 1), np.float32) for n in sizes[1:]]
        self.z, self.delta = ([empty(leaves, n, m) for n in sizes[1:]] for _ in range(2))
        in_place = self.sigma.in_place
        hidden = [z if in_place else empty(*z.shape) for z in self.z[:-1]]
        self.x = empty(batch, sizes[0])
        x_columns = self.x.reshape(leaves, m, sizes[0]).swapaxes(1, 2)
        self.a = [x_columns, *hidden, empty(*self.z[-1].shape)]
        self.dW = [empty(leaves, n, k) for k, n in pairs]
        self.db = [empty(leaves, n, 1) for n in sizes[1:]]
        self.ones = np.ones((m, 1), np.float32)
        self.y = empty(batch, sizes[-1])
        self.y_columns = self.y.reshape(leaves, m, sizes[-1]).swapaxes(1, 2)
        self.theta, self.grad = (np.zeros(sum(n * k + n for k, n in pairs), "f4") for _ in "12")
        self.rows = random.uniform(-1, 1, (examples, sizes[0])).astype(np.float32)
        self.labels = random.integers(0, sizes[-1], examples)
        self.one_hot = np.eye(sizes[-1], dtype=np.float32)
        self.indices = random.permutation(examples)[:batch]
        self.order, self.ordered = Order(examples, 0, 0), 0
        self.gather()

    def step(self) -> None:
        """Run the forward and backward pass."""
        W, b, a, z, delta, last = self.W, self.b, self.a, self.z, self.delta, len(self.W) - 1
        for l in range(last + 1):
            np.matmul(W[l], a[l], out=z[l])
            np.add(z[l], b[l], out=z[l])
            if l < last:
                self.sigma.value(z[l], a[l + 1])
        z[-1] -= np.maximum.reduce(z[-1], axis=-2, keepdims=True)
        np.exp(z[-1], out=a[-1])
        a[-1] /= np.add.reduce(a[-1], axis=-2, keepdims=True)
        np.subtract(a[-1], self.y_columns, out=delta[-1])
        delta[-1] /= self.batch
        for l in range(last, -1, -1):
            np.matmul(delta[l], a[l].mT, out=self.dW[l])
            np.matmul(delta[l], self.ones, out=self.db[l])
            if l:
                np.matmul(W[l].T, delta[l], out=delta[l - 1])
                self.sigma.pull_back(z[l - 1], a[l], delta[l - 1])

    def matmul(self) -> None:
        """Run the matrix products of the step."""
        for l in range(len(self.W)):
            np.matmul(self.W[l], self.a[l], out=self.z[l])
        for l in range(len(self.W) - 1, -1, -1):
            np.matmul(self.delta[l], self.a[l].mT, out=self.dW[l])
            if l:
                np.matmul(self.W[l].T, self.delta[l], out=self.delta[l - 1])

    def order_of_batch(self) -> None:
        """Find the rows of a batch, those of many batches at once."""
        self.ordered -= self.batch
        if self.ordered < 0:
            self.ordered += POSITIONS_AT_ONCE
            self.order(np.arange(POSITIONS_AT_ONCE))

    def gather(self) -> None:
        """Copy the rows and the targets of a batch."""
        self.rows.take(self.indices, axis=0, out=self.x, mode="clip")
        labels = self.labels.take(self.indices, mode="clip")
        self.one_hot.take(labels, axis=0, out=self.y, mode="clip")

    def loss(self) -> None:
        """Form the cross-entropy of every leaf."""
        z, a, out = self.z[-1], self.a[-1], self.delta[-1]
        np.subtract(-np.log(np.maximum.reduce(a, axis=-2, keepdims=True)), z, out=out)
        out *= self.y_columns
        np.add.reduce(out.reshape(len(out), -1), axis=1, dtype=np.float64)

    def update(self) -> None:
        """Take a step of gradient descent."""
        np.multiply(self.grad, LEARNING_RATE, out=self.grad)
        np.subtract(self.theta, self.grad, out=self.theta)


def measure(net: str, rounds: int) -> dict[int, dict[str, float]]:
    """Return seconds by part, for one leaf and for eight."""
    parts: dict[tuple[int, str], Callable[[int], float]] = {}
    for leaves in (1, 8):
        bare = Bare(net, leaves)
        parts[leaves, "step"] = make_ddpbp(net, leaves)
        for part in (bare.step, bare.matmul, bare.gather, bare.loss, bare.update):
            parts[leaves, "bare" if part == bare.step else part.__name__] = repeated(part)
        parts[leaves, "order"] = repeated(bare.order_of_batch)
    steps = {key: max(1, round(ROUND_SECONDS / run(3) * 3)) for key, run in parts.items()}
    taken: dict[tuple[int, str], list[float]] = {key: [] for key in parts}
    for _ in range(rounds):
        for key, run in parts.items():
            taken[key].append(run(steps[key]) / steps[key])
    medians = {key: statistics.median(values) for key, values in taken.items()}
    return {
        leaves: {name: seconds for (n, name), seconds in medians.items() if n == leaves}
        for leaves in (1, 8)
    }


def repeated(part: Part) -> Callable[[int], float]:
    """Return a function that times `part` as many times as it is told."""

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            part()
        return time.perf_counter() - began

    return run


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(f"{'net':42} leaves  step µs   bare   rest matmul  ratio  share  eight / one")
    for net in arguments.nets:
        figures = measure(net, arguments.rounds)
        for leaves, part in figures.items():
            rest = sum(part[name] for name in ("order", "gather", "loss", "update"))
            ratio, share = part["step"] / (part["bare"] + rest), part["matmul"] / part["step"]
            against = f"{part['step'] / figures[1]['step']:.2f}" if leaves > 1 else ""
            micros = [1e6 * n for n in (part["step"], part["bare"], rest, part["matmul"])]
            print(
                f"{net:42} {leaves:6} {micros[0]:8.0f} {micros[1]:6.0f} {micros[2]:6.0f} "
                f"{micros[3]:6.0f} {ratio:6.2f} {share:6.2f}  {against:>8}",
                flush=True,
            )


if __name__ == "__main__":
    main()
