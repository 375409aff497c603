"""The NetCDF format, classic and 4, through netCDF4: variables over dimensions as a table.

The points of some dimensions are the rows, in the order of data.rows; a variable gives a column for
each point of its other dimensions. Packed numbers are unpacked, fill values are missing.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import hint, library, reading
from ddpbp.data.formats.typed import Column, Handle, TypedRows, require_plausible, spread
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Contents
from ddpbp.errors import DataError

KIND = "a NetCDF file"
PACKED = {"scale_factor", "add_offset"}
GAPS = {"_FillValue", "missing_value", "_Unsigned"}
CLASSIC = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET")
COMPRESSIONS = ("zlib", "szip", "zstd", "bzip2", "blosc")


class NetcdfRows(TypedRows):
    """The points of some dimensions as rows.

    Parameters
    ----------
    path : Path
    handle : Handle
    dimensions : sequence of (name, size)
        Whose points are the rows.
    columns : sequence of Column
    """

    def __init__(
        self,
        path: Path,
        handle: Handle,
        dimensions: Sequence[tuple[str, int]],
        columns: Sequence[Column],
    ) -> None:
        super().__init__(path, KIND, handle, prod(size for _, size in dimensions), columns)
        self._dimensions = dimensions

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._handle, self._dimensions, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        variables = self._handle.get().variables
        filters = (variables[column.field].filters() or {} for column in self._columns)
        return any(bool(kind.get(name)) for kind in filters for name in COMPRESSIONS)

    def _field(self, name: str, rows: slice) -> Any:
        variable = self._handle.get().variables[name]
        boxes = boxes_of(rows.start, rows.stop, [size for _, size in self._dimensions])
        parts = [self._box(variable, box) for box in boxes]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _box(self, variable: Any, box: Sequence[slice]) -> Array:
        """Read the points of a box, each a row."""
        chosen = {name: part for (name, _), part in zip(self._dimensions, box, strict=True)}
        order = variable.dimensions
        values = _unpacked(variable, tuple(chosen.get(name, slice(None)) for name in order))
        own = [name for name in order if name not in chosen]
        present = [name for name in chosen if name in order]
        values = values.transpose([order.index(name) for name in (*present, *own)])
        columns = values.shape[len(present) :]
        lengths = [part.stop - part.start for part in box]
        shape = [
            length if name in present else 1 for name, length in zip(chosen, lengths, strict=True)
        ]
        whole = np.broadcast_to(values.reshape(*shape, *columns), (*lengths, *columns))
        return whole.reshape(prod(lengths), -1)


def boxes_of(start: int, stop: int, sizes: Sequence[int]) -> list[tuple[slice, ...]]:
    """Return boxes of points that together are a range of all points, in their order."""
    if len(sizes) == 1:
        return [(slice(start, stop),)]
    inner = prod(sizes[1:])
    (first, begin), (last, end) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        return [(slice(first, first + 1), *box) for box in boxes_of(begin, end, sizes[1:])]
    found = []
    if begin:
        found += [(slice(first, first + 1), *box) for box in boxes_of(begin, inner, sizes[1:])]
        first += 1
    if first < last:
        found.append((slice(first, last), *(slice(0, size) for size in sizes[1:])))
    if end:
        found += [(slice(last, last + 1), *box) for box in boxes_of(0, end, sizes[1:])]
    return found


def _unpacked(variable: Any, index: tuple[slice, ...]) -> Array:
    """Read numbers; packed ones are unpacked in float64, missing ones are NaN."""
    variable.set_auto_scale(False)
    stored = np.ma.asarray(variable[index])
    attributes = variable.ncattrs()
    unsigned = "_Unsigned" in attributes and str(variable.getncattr("_Unsigned")) == "true"
    values = stored.data
    if unsigned and values.dtype.kind == "i":
        values = values.view(f"{values.dtype.byteorder}u{values.dtype.itemsize}")
    if _dtype(variable) == np.float64:
        values = values.astype(np.float64)
    if values.dtype.kind == "f" and np.ma.is_masked(stored):
        values = np.where(np.ma.getmaskarray(stored), values.dtype.type(np.nan), values)
    if PACKED & {*attributes}:
        scale, offset = (
            float(variable.getncattr(name)) if name in attributes else default
            for name, default in (("scale_factor", 1.0), ("add_offset", 0.0))
        )
        values = values * scale + offset
    return np.asarray(values)


def open_netcdf(path: Path, options: SourceOptions) -> Contents:
    """Open a NetCDF file as a table: by default the rows are the points of what all have."""
    netcdf = library("netCDF4", "netcdf", path)
    handle = Handle(partial(netcdf.Dataset, path))
    with reading(path, KIND):
        file = handle.get()
        held = path.stat().st_size
        if file.data_model in CLASSIC and held < (announced := _classic_bytes(file)):
            raise DataError(
                f"{path}: cut short: {held:,} bytes where its header needs {announced:,}; copy it "
                "again"
            )
    named = f"{options.include},{options.target},{','.join(options.columns or ())}".split(",")
    variables = {
        name: variable
        for name, variable in file.variables.items()
        if variable.dimensions
        and variable.dtype is not str
        and (name not in file.dimensions or name in named)
    }
    if not variables:
        raise DataError(f"{path}: holds no variables with dimensions; it is no table")
    if options.dimensions:
        dimensions = [word.strip() for word in options.dimensions.split(",")]
        for name in dimensions:
            if name not in file.dimensions:
                raise DataError(
                    f"{path}: no dimension {name!r}{hint(name, file.dimensions)}; set data.rows "
                    f"to some of {', '.join(file.dimensions)}"
                )
    else:
        first, *others = (v for name, v in variables.items() if name not in file.dimensions)
        dimensions = [d for d in first.dimensions if all(d in other.dimensions for other in others)]
        if not dimensions:
            raise DataError(
                f"{path}: its variables have no dimension in common; name those whose points are "
                f"the rows with data.rows, some of {', '.join(file.dimensions)}"
            )
    rows = [(name, len(file.dimensions[name])) for name in dimensions]
    if not prod(size for _, size in rows):
        raise DataError(f"{path}: the dimensions {', '.join(dimensions)} have no points")
    columns = list[Column]()
    for name, variable in variables.items():
        require_plausible(path, name, variable.size * variable.dtype.itemsize, held)
        sizes = [
            size
            for dimension, size in zip(variable.dimensions, variable.shape, strict=True)
            if dimension not in dimensions
        ]
        columns += spread(path, name, sizes, _dtype(variable), str(variable.dtype))
    return Contents(str(path), "", NetcdfRows(path, handle, rows, columns))


def _dtype(variable: Any) -> np.dtype[Any] | None:
    """Return the type of the numbers as they are read."""
    if variable.dtype.kind not in "biuf":
        return None
    attributes = {*variable.ncattrs()}
    if attributes & PACKED or (variable.dtype.kind in "iu" and attributes & GAPS):
        return np.dtype(np.float64)
    kept: np.dtype[Any] = np.dtype(variable.dtype)
    return kept


def _classic_bytes(file: Any) -> int:
    """Return the least size of a classic file, whose library takes what is missing for zeros.

    See the format of "NetCDF classic", section 2: lists of names and numbers of four bytes, then
    the variables, then the records, all in multiples of four bytes.
    """

    def name(text: str) -> int:
        return 4 + _four(len(text.encode()))

    def attributes(owner: Any) -> int:
        total = 8
        for key in owner.ncattrs():
            value = owner.getncattr(key)
            size = len(value.encode()) if isinstance(value, str) else np.asarray(value).nbytes
            total += name(key) + 8 + _four(size)
        return total

    place = 4 if file.data_model == "NETCDF3_CLASSIC" else 8
    total = 8 + 8 + sum(name(key) + 4 for key in file.dimensions) + attributes(file) + 8
    fixed, records, last = 0, list[int](), 0
    count = 0
    for key, variable in file.variables.items():
        total += name(key) + 4 + 4 * variable.ndim + attributes(variable) + 8 + place
        size = variable.size * variable.dtype.itemsize
        if variable.ndim and file.dimensions[variable.dimensions[0]].isunlimited():
            count = variable.shape[0]
            records.append(size // max(1, count))
        else:
            fixed, last = fixed + _four(size), _four(size) - size
    if records and count:
        each = records[0] if len(records) == 1 else sum(map(_four, records))
        return total + fixed + count * each - (_four(records[-1]) - records[-1])
    return total + fixed - last


def _four(size: int) -> int:
    """Round up to a multiple of four."""
    return -(-size // 4) * 4
