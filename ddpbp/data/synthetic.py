"""Synthetic examples: features from [-1, 1) and the scores of a random linear teacher."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws


def draw(
    seed: int, examples: int, features: int, outputs: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Draw examples; row i is a function of (seed, i, features, outputs) alone.

    Features have 24 bits and the teacher's weights 9, so every score is exact in float64: neither
    BLAS nor the height of a block can change a label.

    Returns
    -------
    x : (examples, features) float32
    scores : (examples, outputs) float64
    """
    stream, weights = (draws.key(seed, p) for p in (draws.FEATURES, draws.TEACHER))
    raw: npt.NDArray[Any] = draws.bits(weights, np.arange(features * outputs, dtype=np.uint64))
    teacher = ((raw >> np.uint64(56)) * 2.0 - 255.0).reshape(features, outputs) / 256.0
    x, scores = np.empty((examples, features), np.float32), np.empty((examples, outputs))
    half = (features + 1) // 2
    rows = max(1, 2**16 // half)
    for start in range(0, examples, rows):
        stop = min(start + rows, examples)
        raw = draws.bits(stream, np.arange(start * half, stop * half, dtype=np.uint64))
        raw = raw.reshape(-1, half)
        block = np.empty((stop - start, features))
        block[:, :half] = raw >> np.uint64(40)
        block[:, half:] = (raw >> np.uint64(16) & np.uint64(2**24 - 1))[:, : features - half]
        block *= 2.0**-23
        block -= 1.0
        x[start:stop] = block
        np.matmul(block, teacher, out=scores[start:stop])
    return x, scores
