"""The order of the examples as a function: π(seed, epoch, position), for any position alone.

π is a Feistel network over pairs (l, r) with l < A, r < B, A·B ≥ n just above n, additions modulo
A and B instead of exclusive-or (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002), and cycle walking for the few values from n to A·B.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws

_ROUNDS = 4

Words = npt.NDArray[
    Any
]  # uint32 up to 2³² examples, else uint64: the halves of a place fit in half


class Order:
    """A bijection of [0, n), computable at any position.

    Parameters
    ----------
    n : int
        The number of examples, below 2⁶².
    words : int
        The key: seed, what it is for (`draws`), epoch.
    """

    def __init__(self, n: int, *words: int) -> None:
        self.n = n
        self._a = max(1, math.isqrt(n - 1) + 1) if n else 1
        self._b = max(1, -(-n // self._a))
        self._keys = [draws.key(*words, i) for i in range(2 * _ROUNDS)]
        self._word: type[np.uint32 | np.uint64] = np.uint32 if n <= 2**32 else np.uint64

    def __call__(self, positions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the indices of the examples at `positions`.

        Parameters
        ----------
        positions : (m,) int
            Places in the epoch, each in [0, n).

        Returns
        -------
        (m,) int64
        """
        return self._walk(self._once, positions)

    def places(self, examples: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the positions at which `examples` stand: the inverse.

        Parameters
        ----------
        examples : (m,) int
            Each in [0, n).

        Returns
        -------
        (m,) int64
        """
        return self._walk(self._back, examples)

    def _walk(
        self, step: Callable[[Words], Words], values: npt.NDArray[Any]
    ) -> npt.NDArray[np.int64]:
        """Take a step, and more where it leads outside [0, n)."""
        v = step(values.astype(self._word))
        outside = np.flatnonzero(v >= self.n)
        while outside.size:
            v[outside] = step(v[outside])
            outside = outside[v[outside] >= self.n]
        return v.astype(np.int64)

    def _back(self, v: Words) -> Words:
        """Undo `_once`."""
        a, b = self._word(self._a), self._word(self._b)
        r = v // a
        l = v - r * a
        for i in reversed(range(_ROUNDS)):
            r -= _below(self._keys[2 * i + 1], l, b)
            np.minimum(r, r + b, out=r)  # modulo: a number below 0 wraps around to a huge one
            l -= _below(self._keys[2 * i], r, a)
            np.minimum(l, l + a, out=l)
        r *= a
        r += l
        return r

    def _once(self, v: Words) -> Words:
        a, b = self._word(self._a), self._word(self._b)
        r = v // a
        l = v - r * a
        for i in range(_ROUNDS):
            l += _below(self._keys[2 * i], r, a)
            np.minimum(l, l - a, out=l)  # modulo: l - a wraps around to a huge number if l < a
            r += _below(self._keys[2 * i + 1], l, b)
            np.minimum(r, r - b, out=r)
        r *= a
        r += l
        return r


def _below(key: int, counter: Words, limit: np.uint32 | np.uint64) -> Words:
    """Draw one number in [0, limit) per counter, limit at most 2¹⁶ for words of 32 bits."""
    narrow = counter.dtype == np.uint32
    v: Words = draws.bits32(key, counter) if narrow else draws.bits(key, counter)
    half = type(limit)(16 if narrow else 32)
    v >>= half
    v *= limit
    v >>= half
    return v
