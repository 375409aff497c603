"""Forward and backward pass: against plain loops, finite differences, and bit for bit."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpbp.base import tree
from ddpbp.config.read import parse
from ddpbp.data.dataset import Part
from ddpbp.data.shards import leaf_shapes
from ddpbp.engine.build import make_backprop, make_network
from ddpbp.engine.loading import load
from ddpbp.nn.activations import ACTIVATIONS, Activation, Array, hidden_activations
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.losses import LOSSES
from ddpbp.nn.network import initialize
from ddpbp.tools.gradient_check import TOLERANCE, TensorCheck, check, check_config


class Problem:
    """A small net with examples, and its gradients over any leaves."""

    def __init__(
        self,
        sizes: tuple[int, ...] = (5, 6, 4, 3),
        n: int = 8,
        leaf: int = 8,
        *,
        hidden: str = "tanh",
        output: str | None = None,
        loss: str = "squared_error",
        dropout: float = 0.0,
        smoothing: float = 0.0,
        dtype: str = "float64",
    ) -> None:
        model = {"hidden": list(sizes[1:-1]), "activation": hidden, "output": output}
        self.config = parse(
            {
                "batch_size": n,
                "micro_batch_size": leaf,
                "model": {**model, "dropout": dropout, "dtype": dtype},
                "loss": {"name": loss, "label_smoothing": smoothing, "huber_delta": 0.5},
            }
        )
        rng = np.random.default_rng(7)
        x = rng.standard_normal((n, sizes[0])).astype(dtype)
        y: Array
        if loss == "cross_entropy":
            y = rng.integers(0, sizes[-1], n)
        elif loss == "binary_cross_entropy":
            y = rng.integers(0, 2, (n, sizes[-1])).astype(np.float64)
        else:
            y = rng.standard_normal((n, sizes[-1]))
        self.part = Part(x, y)
        self.network = make_network(self.config, sizes[0], sizes[-1])
        self.theta = initialize(self.network, "xavier_normal", 0)
        for b in self.theta.b[1:]:
            b[...] = 0.3 * rng.standard_normal(b.shape)

    def check(self) -> list[TensorCheck]:
        return check(self.config, self.network, self.theta, self.part)

    def forward(
        self, leaves: tree.Span | None = None, backprop: Backprop | None = None
    ) -> Backprop:
        """Run the forward pass over leaves [start, stop), by default all."""
        n, leaf = len(self.part), self.config.leaf_size
        start, stop = leaves or (0, tree.leaf_count(n, leaf))
        rows = slice(start * leaf, min(stop * leaf, n))
        _, _, shapes = leaf_shapes(rows.stop - rows.start, leaf, 0, 1)
        backprop = backprop or make_backprop(self.config, self.network, n)
        load(backprop, self.part, rows, shapes)
        backprop.forward(self.theta, 0, rows.start)
        return backprop

    def backward(self, backprop: Backprop, merges: Sequence[int]) -> Array:
        nodes = np.full((len(merges) - sum(merges), self.network.parameter_count), np.nan)
        nodes = nodes.astype(self.network.dtype)
        views = [self.network.views(node) for node in nodes]
        done = np.full_like(nodes, np.nan)  # what was handed over must be complete by then
        begins = [self.network.parameter_count]
        for begin in backprop.backward(self.theta, views, merges, len(self.part)):
            assert begin <= begins[-1]
            done[:, begin : begins[-1]] = nodes[:, begin : begins[-1]]
            begins.append(begin)
        assert begins[-1] == 0
        np.testing.assert_array_equal(done, nodes)
        return done

    def sums(
        self,
        leaves: tree.Span | None = None,
        merges: Sequence[int] | None = None,
        backprop: Backprop | None = None,
    ) -> tuple[list[float], Array]:
        """Return losses and gradients of the nodes that the program `merges` forms of leaves."""
        backprop = self.forward(leaves, backprop)
        losses = list(backprop.losses())
        merges = [0] * len(losses) if merges is None else merges
        return tree.accumulate(losses, merges), self.backward(backprop, merges)


# --- against a slow, plain reference -------------------------------------------------------------


def reference(
    W: Sequence[Any], b: Sequence[Any], x: list[float], y: list[float], n: int
) -> tuple[list[Any], ...]:
    """Return z, a, δ, ∂L/∂b, ∂L/∂W of one of n examples, in plain loops.

    The net is tanh, then sigmoid; L = ½ Σ (a - y)², its mean over n. Each is a list over l = 0..L
    whose place 0 means nothing (but for a[0] = x).
    """
    L = len(W) - 1
    z: list[list[float]] = [[]]
    a, delta = [list(x)], [list[float]()]
    for l in range(1, L + 1):
        z.append([sum(w * v for w, v in zip(row, a[l - 1], strict=True)) for row in W[l]])
        z[l] = [value + bias for value, (bias,) in zip(z[l], b[l], strict=True)]
        a.append([math.tanh(v) if l < L else 1 / (1 + math.exp(-v)) for v in z[l]])
        delta.append([])
    delta[L] = [(v - t) * v * (1 - v) / n for v, t in zip(a[L], y, strict=True)]
    for l in range(L - 1, 0, -1):
        for j, v in enumerate(z[l]):
            back = sum(W[l + 1][i][j] * delta[l + 1][i] for i in range(len(delta[l + 1])))
            delta[l].append(back / math.cosh(v) ** 2)
    dW = [[[d * v for v in a[l - 1]] for d in delta[l]] if l else [] for l in range(L + 1)]
    return z, a, delta, delta, dW


@pytest.fixture(params=["small net", "blocks"])
def compared(request, monkeypatch):
    """Return (actual, expected): z, a, δ by example, the sums ∂L/∂b and ∂L/∂W, for l = 1..L."""
    if request.param == "blocks":
        monkeypatch.setattr("ddpbp.nn.workspace.SMALL_NET_BYTES", 0)
    problem = Problem(n=5, leaf=2, output="sigmoid")  # two leaves of 2 and one of 1
    L, theta = problem.network.L, problem.theta
    backprop = problem.forward()

    def by_example(name: str) -> list[Array]:
        stacks = [getattr(stack, name)[1:] for stack in backprop.stacks]
        return [np.concatenate([v for s in stacks for v in s[l].copy()], axis=1) for l in range(L)]

    actual = {"z": by_example("z")[-1:], "a": by_example("a")}  # tanh works in place: z is a
    merges, _ = tree.fold([(0, 1), (1, 2), (2, 3)], 3)
    grad = problem.network.views(problem.backward(backprop, merges)[0])
    actual |= {"delta": by_example("delta"), "db": [b[:, 0] for b in grad.b[1:]], "dW": grad.W[1:]}
    plain = [
        reference([W.tolist() for W in theta.W], [b.tolist() for b in theta.b], x, y, 5)
        for x, y in zip(problem.part.x.tolist(), problem.part.y.tolist(), strict=True)
    ]
    expected: dict[str, list[Any]] = {
        name: [np.transpose([example[i][l] for example in plain]) for l in range(1, L + 1)]
        for i, name in enumerate(("z", "a", "delta"))
    }
    expected["z"] = expected["z"][-1:]
    for i, name in ((3, "db"), (4, "dW")):
        expected[name] = [sum(np.array(e[i][l]) for e in plain) for l in range(1, L + 1)]
    return actual, expected


def assert_same(compared: Any, *names: str) -> None:
    actual, expected = compared
    for name in names:
        for l, (mine, plain) in enumerate(zip(actual[name], expected[name], strict=True), 1):
            np.testing.assert_allclose(mine, plain, rtol=1e-12, atol=1e-14, err_msg=f"{name}[{l}]")


def test_f_forward_pass(compared):
    assert_same(compared, "z", "a")


def test_bp1_output_delta(compared):
    actual, expected = compared
    assert_same(({"delta": actual["delta"][-1:]}, {"delta": expected["delta"][-1:]}), "delta")


def test_bp2_hidden_deltas(compared):
    assert_same(compared, "delta")


def test_bp3_biases_sum_the_deltas(compared):
    assert_same(compared, "db")


def test_bp4_weights_sum_the_products(compared):
    assert_same(compared, "dW")


# --- against finite differences ------------------------------------------------------------------


def assert_gradient_is_right(problem: Problem) -> None:
    worst = max(problem.check(), key=lambda row: row.error)
    assert worst.error <= TOLERANCE, worst


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden", hidden_activations())
def test_gradient_of_every_hidden_activation_and_loss(hidden, loss):
    assert_gradient_is_right(Problem(hidden=hidden, loss=loss))


@pytest.mark.parametrize("output", hidden_activations())
@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.outputs is None])
def test_gradient_of_every_output_activation_and_free_loss(loss, output):
    assert_gradient_is_right(Problem(output=output, loss=loss))


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.outputs is None])
def test_gradient_of_softmax_with_a_loss_that_has_no_closed_form(loss):
    problem = Problem(loss=loss)
    problem.network = replace(problem.network, output="softmax")
    assert_gradient_is_right(problem)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_with_dropout_and_label_smoothing(loss):
    smoothing = 0.1 if loss == "cross_entropy" else 0.0
    assert_gradient_is_right(Problem((5, 16, 12, 3), loss=loss, dropout=0.4, smoothing=smoothing))


def test_gradcheck_finds_a_wrong_derivative(monkeypatch):
    def wrong(z, a, out):  # 1 - a instead of 1 - a²
        np.subtract(1.0, a, out=out)

    right = ACTIVATIONS["tanh"]
    monkeypatch.setitem(ACTIVATIONS, "tanh", Activation(right.value, wrong))
    errors = {(row.layer, row.tensor): row.error for row in Problem().check()}
    assert max(errors[3, "W"], errors[3, "b"]) <= TOLERANCE  # above the fault all is well
    assert min(errors[l, tensor] for l in (1, 2) for tensor in "Wb") > 1e-3

    data = {"source": "synthetic", "examples": 40, "features": 5, "classes": 3}
    config = parse({"batch_size": 8, "data": data, "model": {"activation": "tanh"}})
    text, good = check_config(config)
    assert not good
    assert "WRONG" in text
    monkeypatch.setitem(ACTIVATIONS, "tanh", right)
    text, good = check_config(config)
    assert good
    assert "correct" in text


# --- bits ----------------------------------------------------------------------------------------

# (sizes, examples, micro-batch): more rows than a gradient block, last leaves that are short, one
# example a leaf, one feature, one output, all three, and no hidden layer.
SHAPES = [
    ((20, 130, 7, 3), 41, 8),
    ((5, 7, 3), 6, 1),
    ((5, 7, 3), 9, 4),
    ((1, 7, 3), 12, 3),
    ((5, 7, 1), 12, 3),
    ((1, 7, 1), 5, 1),
    ((1, 1, 1), 6, 4),
    ((9, 1), 13, 5),
    ((64, 100, 10), 33, 32),
]


def same_bits(actual: Any, expected: Any) -> bool:
    (losses, gradients), (expected_losses, expected_gradients) = actual, expected
    return list(losses) == list(expected_losses) and (
        np.asarray(gradients).tobytes() == np.asarray(expected_gradients).tobytes()
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("sizes", "n", "leaf"), SHAPES)
def test_stacked_leaves_have_the_bits_of_leaves_one_by_one(sizes, n, leaf, dtype, monkeypatch):
    for small_net_bytes in (0, 2**30):
        monkeypatch.setattr("ddpbp.nn.workspace.SMALL_NET_BYTES", small_net_bytes)
        for loss, dropout in (("cross_entropy", 0.0), ("squared_error", 0.3)):
            problem = Problem(
                sizes, n, leaf, hidden="silu", loss=loss, dropout=dropout, dtype=dtype
            )
            count = tree.leaf_count(n, leaf)
            single = [problem.sums((i, i + 1)) for i in range(count)]
            for k in range(1, count + 1):
                losses = [loss for actual, _ in single[:k] for loss in actual]
                gradients = np.concatenate([actual for _, actual in single[:k]])
                assert same_bits(problem.sums((0, k)), (losses, gradients)), (k, loss)


@pytest.mark.parametrize(("sizes", "n", "leaf"), SHAPES)
def test_how_much_one_call_handles_changes_no_bit(sizes, n, leaf, monkeypatch):
    problem = Problem(sizes, n, leaf, hidden="gelu", dropout=0.2, dtype="float32")
    count = tree.leaf_count(n, leaf)
    merges, _ = tree.fold(((i, i + 1) for i in range(count)), count)
    whole = problem.sums(merges=merges)
    for small_net_bytes, call_bytes in ((0, 2**30), (2**30, 2**30), (0, 1), (2**30, 1)):
        monkeypatch.setattr("ddpbp.nn.workspace.SMALL_NET_BYTES", small_net_bytes)
        monkeypatch.setattr("ddpbp.nn.workspace.CALL_BYTES", call_bytes)
        assert same_bits(problem.sums(merges=merges), whole), (small_net_bytes, call_bytes)


SPLIT = {
    kind: Problem(sizes, 45, 4, hidden="relu", loss="cross_entropy", dropout=0.25, dtype="float32")
    for kind, sizes in (("small net", (6, 9, 3)), ("blocks", (100, 150, 12)))
}


@pytest.mark.parametrize("kind", SPLIT)
@settings(max_examples=40, deadline=None)
@given(leaves=st.integers(1, 12), cuts=st.sets(st.integers(1, 11)))
def test_sums_over_any_split_into_runs_equal_the_whole(kind, leaves, cuts):
    problem = SPLIT[kind]
    everything, root = tree.fold(((i, i + 1) for i in range(leaves)), leaves)
    assert root == [(0, leaves)]
    whole = problem.sums((0, leaves), everything)
    edges = [0, *sorted(cut for cut in cuts if cut < leaves), leaves]
    losses, gradients, cover = [], [], []
    for run in pairwise(edges):
        merges, nodes = tree.fold(((i, i + 1) for i in range(*run)), leaves)
        actual = problem.sums(run, merges)
        losses += actual[0]
        gradients += list(actual[1])
        cover += nodes
    merges, _ = tree.fold(cover, leaves)
    assert same_bits((tree.accumulate(losses, merges), tree.accumulate(gradients, merges)), whole)


def test_a_workspace_may_be_used_again_for_other_leaves():
    problem = Problem((6, 9, 3), 45, 4, loss="cross_entropy", dropout=0.25)
    used = make_backprop(problem.config, problem.network, 45)
    for leaves in ((0, 5), (9, 12), (2, 3), (0, 5)):
        assert same_bits(problem.sums(leaves, backprop=used), problem.sums(leaves))
