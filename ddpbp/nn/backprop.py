"""Forward and backward pass over a run of leaves, letter for letter as the page has them.

Notation   l = 1..L layers, n_l units, B examples of a leaf (columns).
           a[l] (n_l, B)   W[l] (n_l, n_{l-1})   b[l] (n_l, 1)
(F)    zˡ = Wˡ aˡ⁻¹ + bˡ,  aˡ = σ(zˡ)
(BP1)  δᴸ = ∂L/∂aᴸ ⊙ σ′(zᴸ)     L is the mean over the batch: divided once, here
(BP2)  δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)
(BP3)  ∂L/∂bˡ = δˡ               summed over the B columns
(BP4)  ∂L/∂Wˡ = δˡ (aˡ⁻¹)ᵀ       the product sums the columns

A leaf is one micro-batch. Every matrix product has the shape of one leaf, whoever computes it;
`workspace` says how leaves lie in memory.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.base.rounding import Wire
from ddpbp.nn.activations import softmax_pullback
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.losses import Loss
from ddpbp.nn.network import Network, Parameters
from ddpbp.nn.workspace import Leaves, Memory, Stack

Array = npt.NDArray[Any]

# Part of the arithmetic, never measured: ∂L/∂W is computed in blocks of this many rows, so that a
# block of every leaf is summed before it leaves the cache.
GRADIENT_ROWS = 384


class Backprop:
    """Forward and backward over the leaves of one rank, and the sums over these leaves.

    Parameters
    ----------
    network : Network
    loss : Loss
    capacity : int
        The most examples a step may bring.
    dropout : Dropout, optional
        Masks for the hidden layers; required if `network.dropout` is not 0.
    wire : Wire, optional
        What rounds the gradient of each leaf and every sum of them.

    Attributes
    ----------
    x, y : (capacity, n_0) and (capacity, n_L) float
        The examples and targets of all leaves as rows: the stacks' x and y, one after the other.
    stacks : list of Stack
        The leaves as `arrange` laid them out.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        capacity: int,
        dropout: Dropout | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.network, self.loss = network, loss
        self._rounded = wire.round if wire else None
        self._dropout = dropout if network.dropout else None
        self._memory = Memory(network, capacity)
        self.x = self._memory.flat("x", 0).reshape(capacity, -1)
        self.y = self._memory.flat("y", network.L).reshape(capacity, -1)
        self._sigma = [network.activation(max(l, 1)) for l in range(network.L + 1)]
        self._arranged: dict[tuple[tuple[int, int], ...], Leaves] = {}
        self._registers: list[Array] = []
        self._leaves: Leaves
        self.stacks: list[Stack] = []

    def arrange(self, shapes: Sequence[tuple[int, int]]) -> list[Stack]:
        """Lay the buffers out for leaves of the given (count, size); return the stacks."""
        shapes = tuple(shapes)
        if shapes not in self._arranged:
            self._arranged[shapes] = Leaves(self.network, shapes, self._memory)
        self._leaves = self._arranged[shapes]
        self.stacks = self._leaves.stacks
        return self.stacks

    def forward(self, theta: Parameters, step: int | None = None, first: int = 0) -> None:
        """Compute z[l] and a[l] of all leaves from x.

        Parameters
        ----------
        theta : Parameters
        step : int, optional
            The step whose dropout masks apply; None leaves dropout out.
        first : int
            The place in the batch of the first example of these leaves.
        """
        for stack in self.stacks:
            for l in range(1, self.network.L + 1):
                W, b, sigma = theta.W[l], theta.b[l], self._sigma[l].value
                for piece in stack.pieces[l]:
                    np.matmul(W, piece.below, out=piece.z)  # (F)
                    np.add(piece.z, b, out=piece.z)
                    sigma(piece.z, piece.a)
                if self._dropout is not None and l < self.network.L:
                    self._drop(self._dropout, stack, l, step, first)
            first += stack.count * stack.size

    def _drop(self, dropout: Dropout, stack: Stack, l: int, step: int | None, first: int) -> None:
        """Hand on what dropout leaves of a[l]: all of it outside training."""
        if step is None:
            np.copyto(stack.passed[l], stack.a[l])
            return
        n = self.network.sizes[l]
        kept = dropout.keep(step, l, first, stack.count * stack.size, n)
        keep = kept.reshape(stack.count, stack.size, n).swapaxes(1, 2)
        np.multiply(stack.a[l], keep, out=stack.passed[l])
        stack.passed[l] *= dropout.scale
        stack.keep[l] = keep

    def losses(self) -> list[float]:
        """Sum the loss over the examples of each leaf."""
        L = self.network.L
        sums: list[float] = []
        for stack in self.stacks:
            share = stack.delta[L]
            self.loss.value(stack.z[L], stack.a[L], stack.y, share)
            per_example = np.add.reduce(share, axis=1).astype(np.float64)
            sums += np.add.reduce(per_example, axis=1).tolist()
        return sums

    def backward(
        self,
        theta: Parameters,
        nodes: Sequence[Parameters],
        merges: Sequence[int],
        examples: int,
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
        examples : int
            The number of examples of the whole batch, over all ranks: what the sum is divided by.

        Yields
        ------
        int
            Where the complete part of the nodes' flat vectors begins: it grows from their end.
            Often the same as before, so that others can use the moment.
        """
        L, begin = self.network.L, self.network.parameter_count
        gradients = self._leaves.gradients
        for stack in self.stacks:
            self._output_delta(stack)
            stack.delta[L] /= examples
        for l in range(L, 0, -1):
            if gradients is not None:
                self._leaf_gradients(l)
            else:
                start_W, n_in = self.network.spans[l - 1][0], self.network.sizes[l - 1]
                for row in self._sum_gradients(l, nodes, merges):
                    begin = start_W + row * n_in
                    yield begin
            if l > 1:
                for stack in self.stacks:
                    for _ in self._hidden_delta(stack, theta, l - 1):
                        yield begin
        if gradients is not None:
            if self._rounded:
                self._rounded(gradients)
            sums = tree.accumulate(gradients, merges, self._rounded)
            for node, value in zip(nodes, sums, strict=True):
                np.copyto(node.flat, value)
            yield 0

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
        slope = self._sigma[L].slope
        if slope is not None:
            slope(z, a, z)
            delta *= z

    def _hidden_delta(self, stack: Stack, theta: Parameters, l: int) -> Iterator[None]:
        """δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)  (BP2), with the mask of dropout where there is one."""
        W_T, slope = theta.W[l + 1].T, self._sigma[l].slope
        for piece in stack.pieces[l]:
            np.matmul(W_T, piece.delta_above, out=piece.delta)
            if slope is not None:
                slope(piece.z, piece.a, piece.z)
                np.multiply(piece.delta, piece.z, out=piece.delta)
            yield
        keep = stack.keep[l]
        if self._dropout is not None and keep is not None:
            stack.delta[l] *= keep
            stack.delta[l] *= self._dropout.scale

    def _leaf_gradients(self, l: int) -> None:
        """Keep the gradient of every leaf of a small net: the fewest calls."""
        for stack, gradient in zip(self.stacks, self._leaves.parts, strict=True):
            delta, a_T, dW = stack.delta[l], stack.passed[l - 1].swapaxes(1, 2), gradient.W[l]
            for i in range(0, delta.shape[1], GRADIENT_ROWS):
                rows = slice(i, i + GRADIENT_ROWS)
                np.matmul(delta[:, rows], a_T, out=dW[:, rows])  # (BP4)
            np.add.reduce(delta, axis=2, out=gradient.b[l])  # (BP3)

    def _sum_gradients(
        self, l: int, nodes: Sequence[Parameters], merges: Sequence[int]
    ) -> Iterator[int]:
        """Form rows of ∂L/∂W of every leaf and add them along the tree while they are in cache.

        Yields the first complete row: from the last block up, as the flat vector is completed.
        """
        rounded = self._rounded
        db = [
            value
            for stack in self.stacks
            for value in np.add.reduce(stack.delta[l], axis=2)  # (BP3)
        ]
        if rounded:
            for value in db:
                rounded(value)
        for node, value in zip(nodes, tree.accumulate(db, merges, rounded), strict=True):
            np.copyto(node.b[l][:, 0], value)
        pairs = [
            (delta, below.T)
            for stack in self.stacks
            for delta, below in zip(stack.delta[l], stack.passed[l - 1], strict=True)
        ]
        n = self.network.sizes[l]
        for start in reversed(range(0, n, GRADIENT_ROWS)):
            rows = slice(start, min(start + GRADIENT_ROWS, n))
            registers = [node.W[l][rows] for node in nodes]
            depth = 0
            for (delta, a_T), count in zip(pairs, merges, strict=True):
                if depth == len(registers):
                    registers.append(self._register(registers[0].shape, depth))
                np.matmul(delta[rows], a_T, out=registers[depth])  # (BP4)
                if rounded:
                    rounded(registers[depth])
                for _ in range(count):
                    depth -= 1
                    registers[depth] += registers[depth + 1]
                    if rounded:
                        rounded(registers[depth])
                depth += 1
            yield start

    def _register(self, shape: tuple[int, ...], depth: int) -> Array:
        """Return memory for a block of rows that waits for its neighbours, the same for all layers.

        What is `depth` places up the stack is at home in one buffer as large as the largest block.
        """
        sizes = self.network.sizes
        while len(self._registers) <= depth:
            largest = max(min(n, GRADIENT_ROWS) * n_in for n_in, n in pairwise(sizes))
            self._registers.append(np.empty(largest, self.network.dtype))
        return self._registers[depth][: math.prod(shape)].reshape(shape)
