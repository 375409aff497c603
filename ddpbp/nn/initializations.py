"""Initializations: how the first weights are drawn, as a table.

To add one, give it an entry in `INITIALIZATIONS`; nothing else names it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ddpbp.base import draws

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Initialization:
    """How the elements of a W (n, n_in) are drawn: with mean 0, independently.

    Attributes
    ----------
    variance : (n_in, n) -> float
    distribution : (key, places, variance) -> (places) float64
        Draws one value for each place, a uint64, with random bits of the stream `key`.
    """

    variance: Callable[[int, int], float]
    distribution: Callable[[int, draws.U64, float], Array]


def _xavier(n_in: int, n: int) -> float:
    # Glorot and Bengio 2010
    return 2.0 / (n_in + n)


def _he(n_in: int, n: int) -> float:
    # He et al. 2015
    return 2.0 / n_in


def _uniform(key: int, places: draws.U64, variance: float) -> Array:
    # U(-limit, limit), limit² = 3 · variance
    return (2.0 * draws.uniform(key, places) - 1.0) * math.sqrt(3.0 * variance)


def _normal(key: int, places: draws.U64, variance: float) -> Array:
    return draws.normal(key, places) * math.sqrt(variance)


INITIALIZATIONS: dict[str, Initialization] = {
    "xavier_uniform": Initialization(_xavier, _uniform),
    "xavier_normal": Initialization(_xavier, _normal),
    "he_uniform": Initialization(_he, _uniform),
    "he_normal": Initialization(_he, _normal),
}
