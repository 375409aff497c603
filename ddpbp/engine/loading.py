"""From rows of a data set to columns of the workspace: the one place where rows become columns."""

import numpy as np
import numpy.typing as npt

from ddpbp.data.sources import Part
from ddpbp.nn.backprop import Backprop

Indices = npt.NDArray[np.int64] | slice


def load(
    backprop: Backprop, part: Part, indices: Indices, shapes: tuple[tuple[int, int], ...]
) -> None:
    """Copy examples into the leaves of the workspace, with the targets as the loss takes them.

    Parameters
    ----------
    backprop : Backprop
    part : Part
    indices : (rows,) int64 or slice
        Rows of `part`, with both ends if it is a slice.
    shapes : tuple of (count, size)
        The leaves they form, in order.
    """
    backprop.arrange(shapes)
    if isinstance(indices, slice):
        rows = indices.stop - indices.start
        backprop.x[:rows], y = part.x[indices], part.y[indices]
    else:
        rows = len(indices)
        # Mode "clip" writes straight to `out`; the indices are in range
        part.x.take(indices, axis=0, out=backprop.x[:rows], mode="clip")
        y = part.y.take(indices, axis=0, mode="clip")
    backprop.loss.write_targets(y, backprop.y[:rows])
