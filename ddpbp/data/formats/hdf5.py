"""The HDF5 format, through h5py: data sets of one length as a table, or arrays x and y."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import library, reading
from ddpbp.data.formats.typed import Column, Handle, TypedRows, require_plausible, spread
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents, Rows
from ddpbp.errors import DataError

KIND = "an HDF5 file"
CACHE_BYTES = 2**26  # of decompressed chunks, for each data set
ARRAYS = {"x", "x_train", "x_test"}


class Hdf5Rows(TypedRows):
    """The rows of data sets of one length."""

    def __init__(self, path: Path, handle: Handle, rows: int, columns: Sequence[Column]) -> None:
        super().__init__(path, KIND, handle, rows, columns)

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._handle, self._count, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        return any(self._handle.get()[column.field].compression for column in self._columns)

    def _field(self, name: str, rows: slice) -> Any:
        stored = self._handle.get()[name]
        if _is_text(stored):
            return [str(text) for text in stored.asstr()[rows]]
        values: Any = stored[rows]
        return values


def open_hdf5(path: Path, options: SourceOptions) -> Contents:
    """Open an HDF5 file: arrays x and y as in .npz, or a table of all data sets of one length."""
    h5py = library("h5py", "hdf5", path)
    stored, seen = dict[str, Any](), set[int]()

    def note(group: Any, before: str) -> None:
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # a group may be a member of itself
            return
        seen.add(address)
        for name in group:  # in the order of the file
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue  # another link may lead nowhere
            thing = group[name]
            if isinstance(thing, h5py.Dataset) and thing.ndim:
                held = thing.id.get_storage_size()
                require_plausible(path, before + name, thing.nbytes, held)
                stored[before + name] = thing
            elif isinstance(thing, h5py.Group):
                note(thing, f"{before}{name}/")

    handle = Handle(partial(h5py.File, path, "r", rdcc_nbytes=CACHE_BYTES, locking=False))
    with reading(path, KIND):
        note(handle.get(), "")
    if ARRAYS & stored.keys():
        arrays = {
            name: partial(_array, path, handle, name, thing) for name, thing in stored.items()
        }
        return Contents(str(path), "x and y, or x_train and y_train", arrays=arrays)
    if not stored:
        raise DataError(f"{path}: holds no data sets with rows")
    lengths = {thing.shape[0] for thing in stored.values()}
    if len(lengths) > 1:
        listed = ", ".join(f"{name} {thing.shape}" for name, thing in [*stored.items()][:8])
        raise DataError(
            f"{path}: its data sets have different numbers of rows: {listed}; a table needs one "
            "number: store them apart, or name the arrays x and y"
        )
    (rows,) = lengths
    if not rows:
        raise DataError(f"{path}: holds no rows; add at least one row")
    columns = [column for name, thing in stored.items() for column in _columns(path, name, thing)]
    return Contents(str(path), "", Hdf5Rows(path, handle, rows, columns))


def _array(path: Path, handle: Handle, name: str, thing: Any) -> Rows:
    if not thing.shape[0]:
        raise DataError(f"{path}: {name} is of shape {thing.shape}: no examples; add a row")
    return Hdf5Rows(path, handle, thing.shape[0], _columns(path, name, thing))


def _is_text(stored: Any) -> bool:
    import h5py

    return h5py.check_string_dtype(stored.dtype) is not None


def _columns(path: Path, name: str, stored: Any) -> list[Column]:
    dtype = np.dtype(stored.dtype) if stored.dtype.kind in "biuf" else None
    what = str(stored.dtype)
    if stored.ndim == 1 and _is_text(stored):
        return [Column(name, None, True, what, name)]
    return spread(path, name, stored.shape[1:], dtype, what)
