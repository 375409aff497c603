"""Forward and backward pass over a run of leaves, letter for letter as the page has them.

Notation   l = 1..L layers, n_l units, B examples of a leaf (columns).
           a[l] (n_l, B)   W[l] (n_l, n_{l-1})   b[l] (n_l, 1)
(F)    zˡ = Wˡ aˡ⁻¹ + bˡ,  aˡ = σ(zˡ)
(BP1)  δᴸ = ∂L/∂aᴸ ⊙ σ′(zᴸ)
(BP2)  δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)
(BP3)  ∂L/∂bˡ = δˡ               summed over the B columns
(BP4)  ∂L/∂Wˡ = δˡ (aˡ⁻¹)ᵀ       the product sums the columns

A leaf is one micro-batch. Leaves of equal shape are stacked, (leaves, n_l, B), which saves Python
calls and changes no bit: every matrix product has the shape of one leaf, whoever computes it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp import tree
from ddpbp.nn.activations import softmax_pullback
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.losses import Loss
from ddpbp.nn.network import Network, Parameters

Array = npt.NDArray[Any]

# Part of the arithmetic, never measured: ∂L/∂W is computed in blocks of this many rows, so that a
# block of every leaf is summed before it leaves the cache.
GRADIENT_ROWS = 96
# No part of the arithmetic: how much is handled by one call.
SMALL_NET_BYTES = 65_536
CALL_BYTES = 262_144


class Stack:
    """Buffers of `count` leaves of `size` examples: views of the workspace's memory.

    Attributes
    ----------
    x : (count, size, n_0) float
        The examples as rows.
    z, a, passed, delta : lists of (count, n_l, size) float
        By layer. `passed` is what layer l hands on: a, or a after dropout; passed[0] = a[0] = x,
        its rows seen as columns.
    y : (count, n_L, size) float
        The targets.
    """

    def __init__(self, network: Network, count: int, size: int, memory: "_Memory") -> None:
        self.count, self.size = count, size
        self.z = [memory.take("z", l, count, n, size) for l, n in enumerate(network.sizes)]
        self.a = [memory.take("a", l, count, n, size) for l, n in enumerate(network.sizes)]
        self.delta = [memory.take("delta", l, count, n, size) for l, n in enumerate(network.sizes)]
        self.x = memory.take("x", 0, count, network.sizes[0], size).reshape(count, size, -1)
        self.a[0] = self.x.swapaxes(1, 2)
        self.passed = list(self.a)
        self.keep: list[Array | None] = [None] * (network.L + 1)
        if network.dropout:
            for l in range(1, network.L):
                self.passed[l] = memory.take("passed", l, count, network.sizes[l], size)
        self.y = memory.take("y", network.L, count, network.sizes[-1], size)
        # Which leaves one call handles, by layer: all, or so many that they stay in the cache.
        bytes_ = [n * size * network.dtype.itemsize for n in network.sizes]
        self.parts = [
            [slice(i, i + step) for i in range(0, count, step)]
            for step in (max(1, CALL_BYTES // max(1, b)) for b in bytes_)
        ]


class _Memory:
    """One flat vector by name and layer, handed out in consecutive pieces; made once."""

    def __init__(self, network: Network, capacity: int) -> None:
        self._network, self._capacity = network, capacity
        self._flat: dict[tuple[str, int], Array] = {}
        self._used: dict[tuple[str, int], int] = {}

    @property
    def rows_of_x(self) -> Array:
        """The memory of x as (capacity, n_0)."""
        return self._flat["x", 0].reshape(self._capacity, -1)

    def restart(self) -> None:
        self._used.clear()

    def take(self, name: str, l: int, count: int, n: int, size: int) -> Array:
        if l == 0 and name != "x":  # layer 0 has nothing but the examples
            return np.empty(0, self._network.dtype)
        where = (name, l)
        if where not in self._flat:
            self._flat[where] = np.empty(self._capacity * n, self._network.dtype)
        start = self._used.get(where, 0)
        self._used[where] = start + count * n * size
        return self._flat[where][start : self._used[where]].reshape(count, n, size)


class Backprop:
    """A workspace for the leaves of one rank: forward, backward, sums over leaves.

    Parameters
    ----------
    network : Network
    loss : Loss
    capacity : int
        The most examples a step may bring.
    dropout : Dropout, optional
        Masks for the hidden layers; required if `network.dropout` is not 0.
    """

    def __init__(
        self, network: Network, loss: Loss, capacity: int, dropout: Dropout | None = None
    ) -> None:
        self.network, self.loss = network, loss
        self._dropout = dropout if network.dropout else None
        self._memory = _Memory(network, capacity)
        self._shapes: dict[tuple[tuple[int, int], ...], list[Stack]] = {}
        self._scratch: dict[tuple[int, ...], Array] = {}
        self._small = network.parameter_count * network.dtype.itemsize <= SMALL_NET_BYTES
        self.stacks: list[Stack] = []

    @property
    def x(self) -> Array:
        """The examples of all leaves as rows, (capacity, n_0): the stacks' x in a row."""
        return self._memory.rows_of_x

    def arrange(self, shapes: Sequence[tuple[int, int]]) -> list[Stack]:
        """Lay the buffers out for leaves of the given (count, size); return the stacks."""
        shapes = tuple(shapes)
        if shapes not in self._shapes:
            self._memory.restart()
            self._shapes[shapes] = [
                Stack(self.network, count, size, self._memory) for count, size in shapes
            ]
        self.stacks = self._shapes[shapes]
        return self.stacks

    def forward(self, theta: Parameters, step: int | None = None, first: int = 0) -> None:
        """Compute z[l] and a[l] of all leaves from passed[0].

        Parameters
        ----------
        theta : Parameters
        step : int, optional
            The step whose dropout masks apply; None leaves dropout out.
        first : int
            The place in the batch of the first example of these leaves.
        """
        for stack in self.stacks:
            if self._dropout is not None and step is not None:
                self._draw_masks(stack, step, first)
            for l in range(1, self.network.L + 1):
                sigma = self.network.activation(l).value
                for part in stack.parts[l]:
                    z = stack.z[l][part]
                    np.matmul(theta.W[l], stack.passed[l - 1][part], out=z)  # (F)
                    z += theta.b[l]
                    sigma(z, stack.a[l][part])
                self._pass_on(stack, l, step)
            first += stack.count * stack.size

    def _draw_masks(self, stack: Stack, step: int, first: int) -> None:
        assert self._dropout is not None
        for l in range(1, self.network.L):
            n = self.network.sizes[l]
            keep = self._dropout.keep(step, l, first, stack.count * stack.size, n)
            stack.keep[l] = keep.reshape(stack.count, stack.size, n).swapaxes(1, 2)

    def _pass_on(self, stack: Stack, l: int, step: int | None) -> None:
        if self._dropout is None or l == self.network.L:
            return
        if step is None:
            np.copyto(stack.passed[l], stack.a[l])
        else:
            keep = stack.keep[l]
            assert keep is not None
            np.multiply(stack.a[l], keep, out=stack.passed[l])
            stack.passed[l] *= self._dropout.scale

    def losses(self) -> npt.NDArray[np.float64]:
        """Sum the loss over the examples of each leaf; float64, one per leaf."""
        L = self.network.L
        sums = []
        for stack in self.stacks:
            share = stack.delta[L]
            self.loss.value(stack.z[L], stack.a[L], stack.y, share)
            per_example = np.add.reduce(share, axis=1).astype(np.float64)
            sums.append(np.add.reduce(per_example, axis=1))
        return np.concatenate(sums) if sums else np.zeros(0)

    def backward(
        self, theta: Parameters, nodes: Sequence[Parameters], merges: Sequence[int]
    ) -> Iterator[int]:
        """Compute the gradients of all leaves, summed into my nodes of the tree.

        Call it after `forward`, and after `losses` if they are wanted; z is overwritten.

        Parameters
        ----------
        theta : Parameters
        nodes : sequence of Parameters
            Where the sums go, one flat vector per node of my cover.
        merges : sequence of int
            The program of `tree.fold` over my leaves.

        Yields
        ------
        int
            The layers L, L - 1, ..., 1, each as its sums are complete.
        """
        L = self.network.L
        for stack in self.stacks:
            self._output_delta(stack)
        if self._small:
            yield from self._backward_small(theta, nodes, merges)
            return
        for l in range(L, 0, -1):
            self._sum_gradients(l, nodes, merges)
            yield l
            if l > 1:
                for stack in self.stacks:
                    self._hidden_delta(stack, theta, l - 1)

    def _output_delta(self, stack: Stack) -> None:
        """δᴸ = ∂L/∂aᴸ ⊙ σ′(zᴸ)  (BP1), or its closed form where loss and output have one."""
        L = self.network.L
        z, a, y, delta = stack.z[L], stack.a[L], stack.y, stack.delta[L]
        if self.loss.fused == self.network.output:
            np.subtract(a, y, out=delta)
            return
        self.loss.d_a(a, y, delta)
        if self.network.output == "softmax":
            d_a = delta.copy()
            softmax_pullback(a, d_a, delta)
            return
        slope = self.network.activation(L).slope
        if slope is not None:
            slope(z, a, z)
            delta *= z

    def _hidden_delta(self, stack: Stack, theta: Parameters, l: int) -> None:
        """δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)  (BP2), with the mask of dropout where there is one."""
        slope = self.network.activation(l).slope
        W_T = theta.W[l + 1].T
        for part in stack.parts[l]:
            delta, z = stack.delta[l][part], stack.z[l][part]
            np.matmul(W_T, stack.delta[l + 1][part], out=delta)
            if slope is not None:
                slope(z, stack.a[l][part], z)
                delta *= z
        keep = stack.keep[l]
        if keep is not None and self._dropout is not None:
            stack.delta[l] *= keep
            stack.delta[l] *= self._dropout.scale

    def _backward_small(
        self, theta: Parameters, nodes: Sequence[Parameters], merges: Sequence[int]
    ) -> Iterator[int]:
        """Do the same for a small net with the fewest calls: all gradients, then one sum."""
        network, leaves = self.network, len(merges)
        flat = self._buffer((leaves, network.parameter_count))
        for l in range(network.L, 0, -1):
            start_W, start_b, end = network.spans[l - 1]
            n, n_in = network.sizes[l], network.sizes[l - 1]
            first = 0
            for stack in self.stacks:
                last = first + stack.count
                dW = flat[first:last, start_W:start_b].reshape(stack.count, n, n_in)
                for i in range(0, n, GRADIENT_ROWS):
                    rows = slice(i, i + GRADIENT_ROWS)
                    a_T = stack.passed[l - 1].swapaxes(1, 2)
                    np.matmul(stack.delta[l][:, rows], a_T, out=dW[:, rows])  # (BP4)
                np.add.reduce(stack.delta[l], axis=2, out=flat[first:last, start_b:end])  # (BP3)
                if l > 1:
                    self._hidden_delta(stack, theta, l - 1)
                first = last
        for node, value in zip(nodes, tree.accumulate(flat, merges), strict=True):
            np.copyto(node.flat, value)
        yield from range(network.L, 0, -1)

    def _sum_gradients(self, l: int, nodes: Sequence[Parameters], merges: Sequence[int]) -> None:
        n = self.network.sizes[l]
        pairs = [
            (stack.delta[l][i], stack.passed[l - 1][i].T)
            for stack in self.stacks
            for i in range(stack.count)
        ]
        for start in range(0, n, GRADIENT_ROWS):
            rows = slice(start, min(start + GRADIENT_ROWS, n))
            self._sum_block(
                [(delta[rows], a_T) for delta, a_T in pairs],
                [node.W[l][rows] for node in nodes],
                merges,
            )
        db = self._buffer((len(merges), n))
        first = 0
        for stack in self.stacks:
            np.add.reduce(stack.delta[l], axis=2, out=db[first : first + stack.count])  # (BP3)
            first += stack.count
        for node, value in zip(nodes, tree.accumulate(db, merges), strict=True):
            np.copyto(node.b[l][:, 0], value)

    def _sum_block(
        self, pairs: Sequence[tuple[Array, Array]], out: Sequence[Array], merges: Sequence[int]
    ) -> None:
        """Form rows of ∂L/∂W of every leaf and add them along the tree while they are in cache."""
        if not pairs:
            return
        depth, registers = 0, list(out)
        for (delta, a_T), count in zip(pairs, merges, strict=True):
            if depth == len(registers):
                registers.append(self._buffer(out[0].shape, depth))
            np.matmul(delta, a_T, out=registers[depth])  # (BP4)
            for _ in range(count):
                registers[depth - 1] += registers[depth]
                depth -= 1
            depth += 1

    def _buffer(self, shape: tuple[int, ...], tag: int = 0) -> Array:
        where = (tag, *shape)
        if where not in self._scratch:
            self._scratch[where] = np.empty(shape, self.network.dtype)
        return self._scratch[where]
