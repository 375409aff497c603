"""Forward and backward pass over the leaves of one rank, letter for letter as in the text.

Notation   l = 1..L layers, n_l units, B examples of a leaf (columns).
           a[l] (n_l, B)   W[l] (n_l, n_{l-1})   b[l] (n_l, 1)
(F)    zˡ = Wˡ aˡ⁻¹ + bˡ,  aˡ = σ(zˡ)
(BP1)  δᴸ = ∂L/∂aᴸ ⊙ σ′(zᴸ)     L is the mean over the batch: divided once, here
(BP2)  δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)
(BP3)  ∂L/∂bˡ = δˡ               summed over the B columns
(BP4)  ∂L/∂Wˡ = δˡ (aˡ⁻¹)ᵀ       the product sums the columns

These are the equations of dense layers; `layers` has their code, and that of other layers. What is
here is the same for all: the walk over the layers, and the sums over leaves.

A leaf is one micro-batch. Every matrix product has the shape of one leaf on any number of ranks;
`workspace` defines how leaves lie in memory.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import tree
from ddpbp.base.rounding import Wire
from ddpbp.nn.dropout import Dropout
from ddpbp.nn.layers.layer import Call, Calls
from ddpbp.nn.losses import Loss
from ddpbp.nn.network import Network, Parameters
from ddpbp.nn.workspace import Leaves, Memory, Stack

Array = npt.NDArray[Any]

# ∂L/∂W is computed in blocks of this many rows, so that a block is summed over all leaves before it
# leaves the cache. Part of the arithmetic, so it is a constant and no measurement.
GRADIENT_ROWS = 384


class Backprop:
    """Forward and backward over the leaves of one rank, and the sums over these leaves.

    Parameters
    ----------
    network : Network
    loss : Loss
    capacity : int
        The largest number of examples of a step.
    dropout : Dropout, optional
        Masks for the hidden layers; required if `network.dropout` is not 0.
    wire : Wire, optional
        Rounds the gradient of each leaf and every sum of them.

    Attributes
    ----------
    x, y : (capacity, n_0) and (capacity, n_L) float
        The examples and targets of all leaves as rows: the memory of the stacks' x and y.
    stacks : list of Stack
        The leaves as laid out by `arrange`.
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
        self._layers = (network.layers[0], *network.layers)  # at 1..L; 0 is not used
        self._arranged: dict[tuple[tuple[int, int], ...], Leaves] = {}
        self._registers: list[Array] = []
        self._leaves: Leaves
        # The calls of a step by the shapes of the leaves, for the θ of the last forward pass.
        self._theta: Parameters | None = None
        self._forward: dict[tuple[tuple[int, int], ...], list[Call]] = {}
        self._backward: dict[tuple[tuple[int, int], ...], list[Call]] = {}
        self._step: int | None = None
        self._first = 0
        self._examples = np.ones((), network.dtype)
        self.stacks: list[Stack] = []

    def arrange(self, shapes: tuple[tuple[int, int], ...]) -> list[Stack]:
        """Lay the buffers out for leaves of these (count, size); return the stacks."""
        if shapes not in self._arranged:
            self._arranged[shapes] = Leaves(self.network, shapes, self._memory)
        self._leaves = self._arranged[shapes]
        self.stacks = self._leaves.stacks
        return self.stacks

    def forward(self, theta: Parameters, step: int | None = None, first: int = 0) -> None:
        """Compute z[l] and a[l] of all leaves from x; what σ′ does not need may be overwritten.

        Parameters
        ----------
        theta : Parameters
        step : int, optional
            The step whose dropout masks apply; None turns dropout off.
        first : int
            The place in the batch of the first example of these leaves.
        """
        if theta is not self._theta:
            self._theta, self._forward, self._backward = theta, {}, {}
        self._step, self._first = step, first
        shapes = self._leaves.shapes
        if shapes not in self._forward:
            self._forward[shapes] = list(self._forward_calls(theta))
        _run(self._forward[shapes])

    def _forward_calls(self, theta: Parameters) -> Calls:
        first = 0
        for stack in self.stacks:
            for l, layer in enumerate(self.network.layers, start=1):
                for piece in stack.pieces[l]:
                    yield from layer.forward(theta.W[l], theta.b[l], piece.below, piece.z, piece.a)
                if self._dropout is not None and l < self.network.L:
                    yield self._drop, (self._dropout, stack, l, first)
            first += stack.count * stack.size

    def _drop(self, dropout: Dropout, stack: Stack, l: int, first: int) -> None:
        """Write to passed[l] what dropout leaves of a[l]: all of it outside training."""
        if self._step is None:
            np.copyto(stack.passed[l], stack.a[l])
            return
        n, first = self.network.sizes[l], self._first + first
        kept = dropout.keep(self._step, l, first, stack.count * stack.size, n)
        keep = kept.reshape(stack.count, stack.size, n).swapaxes(1, 2)
        np.multiply(stack.a[l], keep, out=stack.passed[l])
        stack.passed[l] *= dropout.scale
        stack.keep[l] = keep

    def losses(self) -> list[float]:
        """Sum the loss over the examples of each leaf."""
        L = self.network.L
        sums: list[float] = []
        for stack in self.stacks:
            self.loss.value(stack.z[L], stack.a[L], stack.y, stack.delta[L])
            sums += np.add.reduce(stack.shares, axis=1, dtype=np.float64).tolist()
        return sums

    def backward(
        self,
        theta: Parameters,
        nodes: Sequence[Parameters],
        merges: Sequence[int],
        examples: int,
    ) -> Iterator[int]:
        """Compute the gradients of all leaves, summed into this rank's nodes of the tree.

        Call it after `forward` with the same θ, and after `losses` if the losses are needed: z and
        the a of hidden layers are overwritten.

        Parameters
        ----------
        theta : Parameters
        nodes : sequence of Parameters
            Where the sums go, one flat vector per node of this rank's cover.
        merges : sequence of int
            The program of `tree.fold` over this rank's leaves.
        examples : int
            The number of examples of the whole batch, over all ranks: the divisor of the mean.

        Yields
        ------
        int
            The index from which the nodes' flat vectors are complete: they fill from the end. It is
            often unchanged, so that the caller can move data between two matrix products.
        """
        self._examples[...] = examples
        if self._leaves.gradients is None:
            yield from self._backward_large(theta, nodes, merges)
            return
        shapes = self._leaves.shapes
        if shapes not in self._backward:
            self._backward[shapes] = list(self._backward_calls(theta))
        _run(self._backward[shapes])
        if self._rounded:
            self._rounded(self._leaves.gradients)
        sums = tree.accumulate(self._leaves.rows, merges, self._rounded)
        for node, value in zip(nodes, sums, strict=True):
            np.copyto(node.flat, value)
        yield 0

    def _backward_calls(self, theta: Parameters) -> Calls:
        """Yield the calls for a small net: one gradient for each leaf, with the fewest calls."""
        for stack in self.stacks:
            yield from self._output_delta(stack)
        for l in range(self.network.L, 0, -1):
            layer, height = self._layers[l], self._layers[l].W_shape[0]
            for stack, gradient in zip(self.stacks, self._leaves.parts, strict=True):
                below, delta, dW = stack.passed[l - 1], stack.delta[l], gradient.W[l]
                yield from layer.bias_gradient(below, delta, gradient.b[l])  # (BP3)
                for i in range(0, height, GRADIENT_ROWS):
                    rows = slice(i, i + GRADIENT_ROWS)
                    yield from layer.weight_gradient(below, delta, rows, dW[:, rows])  # (BP4)
            for stack in self.stacks if l > 1 else []:
                yield from self._hidden_delta(stack, theta, l - 1)

    def _backward_large(
        self, theta: Parameters, nodes: Sequence[Parameters], merges: Sequence[int]
    ) -> Iterator[int]:
        """Compute the gradients of a large net, summed over the leaves layer by layer."""
        begin = self.network.parameter_count
        for stack in self.stacks:
            _run(self._output_delta(stack))
        for l in range(self.network.L, 0, -1):
            for begin in self._sum_gradients(l, nodes, merges):
                yield begin
            for stack in self.stacks if l > 1 else []:
                for call, arguments in self._hidden_delta(stack, theta, l - 1):
                    call(*arguments)
                    yield begin

    def _output_delta(self, stack: Stack) -> Calls:
        """δᴸ = ∂L/∂aᴸ ⊙ σ′(zᴸ)  (BP1), or its closed form where loss and output have one."""
        L = self.network.L
        z, a, y, delta = stack.z[L], stack.a[L], stack.y, stack.delta[L]
        if self.loss.fused == self.network.output:
            yield np.subtract, (a, y, delta)
        else:
            yield self.loss.d_a, (a, y, delta)
            yield self._layers[L].sigma.pull_back, (z, a, delta)
        yield np.divide, (delta, self._examples, delta)

    def _hidden_delta(self, stack: Stack, theta: Parameters, l: int) -> Calls:
        """δˡ = (Wˡ⁺¹)ᵀ δˡ⁺¹ ⊙ σ′(zˡ)  (BP2), with the mask of dropout where there is one."""
        W, above, sigma = theta.W[l + 1], self._layers[l + 1], self._layers[l].sigma
        for piece in stack.pieces[l]:
            yield from above.pull_back(W, piece.passed, piece.delta_above, piece.delta)
            yield sigma.pull_back, (piece.z, piece.a, piece.delta)
        if self._dropout is not None:
            yield self._mask, (self._dropout, stack, l)

    def _mask(self, dropout: Dropout, stack: Stack, l: int) -> None:
        if (keep := stack.keep[l]) is not None:
            stack.delta[l] *= keep
            stack.delta[l] *= dropout.scale

    def _sum_gradients(
        self, l: int, nodes: Sequence[Parameters], merges: Sequence[int]
    ) -> Iterator[int]:
        """Sum the gradients of layer l over the leaves, ∂L/∂W in blocks that stay in the cache.

        Yields the index from which the flat vectors are complete, from the last block to the first.
        """
        layer, rounded = self._layers[l], self._rounded
        db: list[Array] = []
        leaves: list[tuple[Array, Array]] = []
        for stack in self.stacks:
            biases = np.empty((stack.count, *layer.b_shape), self.network.dtype)
            _run(layer.bias_gradient(stack.passed[l - 1], stack.delta[l], biases))  # (BP3)
            db.extend(biases)
            leaves.extend(zip(stack.passed[l - 1], stack.delta[l], strict=True))
        if rounded:
            for value in db:
                rounded(value)
        for node, value in zip(nodes, tree.accumulate(db, merges, rounded), strict=True):
            np.copyto(node.b[l], value)
        height, *rest = layer.W_shape
        for start in reversed(range(0, height, GRADIENT_ROWS)):
            rows = slice(start, min(start + GRADIENT_ROWS, height))
            registers = [node.W[l][rows] for node in nodes]
            depth = 0
            for (below, delta), count in zip(leaves, merges, strict=True):
                if depth == len(registers):
                    registers.append(self._register(registers[0].shape, depth))
                _run(layer.weight_gradient(below, delta, rows, registers[depth]))  # (BP4)
                if rounded:
                    rounded(registers[depth])
                for _ in range(count):
                    depth -= 1
                    registers[depth] += registers[depth + 1]
                    if rounded:
                        rounded(registers[depth])
                depth += 1
            yield layer.span[0] + start * math.prod(rest)

    def _register(self, shape: tuple[int, ...], depth: int) -> Array:
        """Return memory for a block of rows that is `depth` places up the stack.

        Each depth has one buffer as large as the largest block, used by all layers.
        """
        while len(self._registers) <= depth:
            largest = max(
                math.prod((min(height, GRADIENT_ROWS), *rest))
                for height, *rest in (layer.W_shape for layer in self.network.layers)
            )
            self._registers.append(np.empty(largest, self.network.dtype))
        return self._registers[depth][: math.prod(shape)].reshape(shape)


def _run(calls: Iterable[Call]) -> None:
    for call, arguments in calls:
        call(*arguments)
