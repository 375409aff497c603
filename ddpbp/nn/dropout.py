"""Dropout (Srivastava et al. 2014), with masks that are a function of the step, not of a state."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws

_UNITS_PER_DRAW = 4  # 16 of its 64 bits for each


class Dropout:
    """The masks of one run: functions of (seed, step, layer, place of the example in the batch).

    Parameters
    ----------
    rate : float
        The share of units left out, in [0, 1); rounded to a multiple of 2⁻¹⁶.
    seed : int
    """

    def __init__(self, rate: float, seed: int) -> None:
        self._threshold = round((1.0 - rate) * 65536)
        self._seed = seed
        self.scale = 65536 / self._threshold

    def keep(
        self, step: int, l: int, start: int, examples: int, units: int
    ) -> npt.NDArray[np.bool_]:
        """Return which units of layer l stay for examples [start, start + examples) of the batch.

        Returns
        -------
        (examples, units) bool
        """
        words = -(-units // _UNITS_PER_DRAW)
        counter = np.arange(start * words, (start + examples) * words, dtype=np.uint64)
        raw: npt.NDArray[Any] = draws.bits(
            draws.key(self._seed, draws.DROPOUT, step, l), counter, out=counter
        )
        parts = raw.astype("<u8", copy=False).view("<u2").reshape(examples, -1)
        return parts[:, :units] < self._threshold
