"""The memory of a forward and backward pass: made once, used through views.

Leaves of equal shape are stacked, (leaves, n_l, B), which saves Python calls and changes no bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpbp.nn.network import Network, Parameters

Array = npt.NDArray[Any]

# How much one call handles; not part of the arithmetic.
CALL_BYTES = 262_144
SMALL_NET_BYTES = 65_536


class Piece(NamedTuple):
    """Views (leaves, n, B) of layer l over as many leaves as fit in the cache.

    `below` is the output of layer l - 1 after dropout, `passed` that of layer l; `delta_above` is δ
    of layer l + 1 (of L itself at L).
    """

    below: Array
    z: Array
    a: Array
    passed: Array
    delta: Array
    delta_above: Array


class Stack:
    """Buffers of `count` leaves of `size` examples.

    Attributes
    ----------
    x : (count, size, n_0) float
        The examples as rows.
    y : (count, n_L, size) float
        The targets: rows seen as columns.
    z, a, passed, delta : lists of (count, n_l, size) float
        By layer. Where σ of a hidden layer works in place, z is a. `passed` is the output of layer
        l: a, or a after dropout; passed[0] = a[0] = x, its rows seen as columns.
    shares : (count, n_L * size) float
        The memory of delta[L], where the losses are formed first.
    keep : list of (count, n_l, size) bool or None
        The masks of dropout.
    pieces : list of lists of Piece
        The same memory by layer, cut into parts that one call handles.
    """

    def __init__(self, network: Network, count: int, size: int, memory: "Memory") -> None:
        self.count, self.size = count, size
        sizes, L = network.sizes, network.L

        def columns(name: str, first: int, last: int) -> list[Array]:
            none = np.empty(0, network.dtype)
            inside = range(first, last + 1)
            return [
                memory.take(name, l, (count, n, size)) if l in inside else none
                for l, n in enumerate(sizes)
            ]

        self.x = memory.take("x", 0, (count, size, sizes[0]))
        self.y = memory.take("y", L, (count, size, sizes[L])).swapaxes(1, 2)
        self.z, self.delta = columns("z", 1, L), columns("delta", 1, L)
        self.shares = self.delta[L].reshape(count, -1)
        self.a = columns("a", L, L)
        for l in range(1, L):
            in_place = network.activation(l).in_place
            self.a[l] = self.z[l] if in_place else memory.take("a", l, (count, sizes[l], size))
        self.a[0] = self.x.swapaxes(1, 2)
        self.passed = list(self.a)
        self.keep: list[Array | None] = [None] * (L + 1)
        if network.dropout:
            self.passed[1:L] = columns("passed", 1, L - 1)[1:L]
        self.pieces: list[list[Piece]] = [[]]
        for l in range(1, L + 1):
            step = max(1, CALL_BYTES // (sizes[l] * size * network.dtype.itemsize))
            self.pieces.append(
                [
                    Piece(
                        self.passed[l - 1][i : i + step],
                        self.z[l][i : i + step],
                        self.a[l][i : i + step],
                        self.passed[l][i : i + step],
                        self.delta[l][i : i + step],
                        self.delta[min(l + 1, L)][i : i + step],
                    )
                    for i in range(0, count, step)
                ]
            )


class Memory:
    """One flat vector by name and layer, handed out in consecutive pieces."""

    def __init__(self, network: Network, capacity: int) -> None:
        self._network, self._capacity = network, capacity
        self._flat: dict[tuple[str, int], Array] = {}
        self._used: dict[tuple[str, int], int] = {}

    def flat(self, name: str, l: int) -> Array:
        """Return all the memory of a name at layer l: capacity × n_l elements."""
        where = (name, l)
        if where not in self._flat:
            self._flat[where] = np.empty(
                self._capacity * self._network.sizes[l], self._network.dtype
            )
        return self._flat[where]

    def restart(self) -> None:
        """Start handing out from the beginning again."""
        self._used.clear()

    def take(self, name: str, l: int, shape: tuple[int, int, int]) -> Array:
        """Hand out the next piece, C-contiguous in `shape`."""
        start = self._used.get((name, l), 0)
        end = start + shape[0] * shape[1] * shape[2]
        self._used[name, l] = end
        return self.flat(name, l)[start:end].reshape(shape)


class Leaves:
    """All leaves that a rank computes in a step, as consecutive stacks.

    Attributes
    ----------
    shapes : tuple of (count, size)
    stacks : list of Stack
    gradients : (leaves, parameter_count) float, or None
        For small nets: one gradient per leaf.
    rows : list of (parameter_count,) float
        Its rows.
    parts : list of Parameters
        For small nets: the same memory by stack, as W[l] and b[l] with an axis for its leaves.
    """

    def __init__(self, network: Network, shapes: Sequence[tuple[int, int]], memory: Memory) -> None:
        memory.restart()
        self.shapes = tuple(shapes)
        self.stacks = [Stack(network, count, size, memory) for count, size in shapes]
        self.gradients: Array | None = None
        self.rows: list[Array] = []
        self.parts: list[Parameters] = []
        if network.parameter_count * network.dtype.itemsize > SMALL_NET_BYTES:
            return
        counts = [count for count, _ in shapes]
        self.gradients = np.empty((sum(counts), network.parameter_count), network.dtype)
        self.rows = list(self.gradients)
        for first, count in zip(np.cumsum([0, *counts]).tolist(), counts, strict=False):
            self.parts.append(network.views(self.gradients[first : first + count]))
