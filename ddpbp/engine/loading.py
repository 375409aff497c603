"""From rows of a data set to columns of the workspace: the one place where rows become columns."""

import numpy as np
import numpy.typing as npt

from ddpbp.data.dataset import Part
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
    x = backprop.x[: sum(count * size for count, size in shapes)]
    if isinstance(indices, slice):
        found, y = part.x[indices], part.y[indices]
    else:
        as_it_is = part.scale is None and part.x.dtype == x.dtype
        # Mode "clip" writes straight to `out`; the indices are in range
        found = part.x.take(indices, axis=0, out=x if as_it_is else None, mode="clip")
        y = part.y.take(indices, axis=0, mode="clip")
    if part.scale:
        part.scale.apply_to(found, x)
    elif found is not x:
        x[...] = found
    backprop.loss.write_targets(y, backprop.y[: len(x)])
