"""Sums of gradients rounded to 16 bits, which halves the bytes that ranks exchange.

Which sums are exchanged depends on the number of ranks. Results must not, so *every* node of the
tree is rounded: leaves, inner nodes and the root, on one process too. Packing is then exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Wire(NamedTuple):
    """A 16-bit form of float32.

    Attributes
    ----------
    round : (array) -> None
        Rounds float32 in place to the nearest value, ties to even.
    pack : (array, out) -> None
        Writes rounded float32 to uint16, exactly.
    unpack : (packed, out) -> None
        Writes uint16 to float32, exactly.
    """

    round: Callable[[Array], None]
    pack: Callable[[Array, Array], None]
    unpack: Callable[[Array, Array], None]


def _round_bf16(array: Array) -> None:
    # bf16 is the upper half of a float32. Infinity and the processor's NaN stay what they are.
    bits = array.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    odd += np.uint32(0x7FFF)
    bits += odd
    bits &= np.uint32(0xFFFF0000)


def _pack_bf16(array: Array, out: Array) -> None:
    np.right_shift(array.view(np.uint32), 16, out=out, casting="unsafe")


def _unpack_bf16(packed: Array, out: Array) -> None:
    np.left_shift(packed, np.uint32(16), out=out.view(np.uint32))


def _round_fp16(array: Array) -> None:
    # IEEE half precision: beyond 65,504 it is infinity, which stops the run as any infinity does.
    array[...] = array.astype(np.float16)


def _pack_fp16(array: Array, out: Array) -> None:
    np.copyto(out.view(np.float16), array, casting="unsafe")


def _unpack_fp16(packed: Array, out: Array) -> None:
    np.copyto(out, packed.view(np.float16))


WIRES: dict[str, Wire | None] = {
    "none": None,
    "bf16": Wire(_round_bf16, _pack_bf16, _unpack_bf16),
    "fp16": Wire(_round_fp16, _pack_fp16, _unpack_fp16),
}
