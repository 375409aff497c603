"""From rows of a data set to columns of the workspace: the one place where rows become columns."""

import numpy as np
import numpy.typing as npt

from ddpbp.data.sources import Part
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.losses import smoothed_one_hot

Indices = npt.NDArray[np.int64] | slice


class Loader:
    """Brings examples into the workspace.

    Parameters
    ----------
    smoothing : float
        ε of label smoothing.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self._smoothing = smoothing

    def __call__(
        self,
        backprop: Backprop,
        part: Part,
        indices: Indices,
        shapes: tuple[tuple[int, int], ...],
    ) -> None:
        """Copy rows of `part` into the leaves.

        Parameters
        ----------
        backprop : Backprop
        part : Part
        indices : (rows,) int64 or slice
            Rows of `part`.
        shapes : tuple of (count, size)
            The leaves they form, in order.
        """
        backprop.arrange(shapes)
        rows = sum(count * size for count, size in shapes)
        if isinstance(indices, slice):
            backprop.x[:rows] = part.x[indices]
        else:  # mode "clip" writes straight to `out`; the indices are in range
            part.x.take(indices, axis=0, out=backprop.x[:rows], mode="clip")
        y = part.y[indices]
        if y.ndim == 1:
            smoothed_one_hot(y, self._smoothing, backprop.y[:rows])
        else:
            backprop.y[:rows] = y
