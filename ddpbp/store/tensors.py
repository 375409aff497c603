"""Tensors in a file: the safetensors format, never pickle.

A file is the length of its header (8 bytes, little-endian), the header (JSON) and the elements of
the tensors. The writer takes views and copies nothing, where the library's own would hold a second
copy of all tensors. The metadata are read without importing NumPy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ddpbp.errors import DataError
from ddpbp.store.files import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

MAX_HEADER_BYTES = 100_000_000  # the limit of the format itself


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> list[Buffer]:
    """Return the pieces of a safetensors file; those of contiguous tensors are views.

    Parameters
    ----------
    tensors : mapping of str to array
        Floating-point arrays of any shape.
    metadata : mapping of str to str
    """
    # The format orders tensors by the size of their elements, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": f"F{8 * tensors[name].itemsize}",
            "shape": tensors[name].shape,
            "data_offsets": (begin, end),
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    elements = [tensors[name].ravel().data.cast("B") for name in names if tensors[name].size]
    return [len(head).to_bytes(8, "little"), head, *elements]


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, without NumPy and without the tensors.

    Raises
    ------
    DataError
        If the file cannot be read or its header is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
                raise DataError(
                    f"{path} is damaged or no safetensors file (its header would have {size:,} "
                    "bytes); a model is a run folder or the model.safetensors in it"
                )
            return msgspec.json.decode(file.read(size), type=_Header).metadata
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None


def read_tensors(path: str | Path) -> dict[str, Array]:
    """Read all tensors of a safetensors file.

    Raises
    ------
    DataError
        If the file cannot be read, is damaged or holds types that NumPy does not have.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None
