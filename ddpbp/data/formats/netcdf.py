"""The NetCDF format, classic and 4, through netCDF4: variables over dimensions as a table.

The points of some dimensions are the rows, in the order of data.rows; a variable gives a column for
each point of its other dimensions. Packed numbers are unpacked, fill values are missing.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import hint, library, reading
from ddpbp.data.formats.typed import Column, TypedRows
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

KIND = "a NetCDF file"


class NetcdfRows(TypedRows):
    """The points of some dimensions as rows.

    Parameters
    ----------
    path : Path
    file : netCDF4.Dataset
    dimensions : sequence of str
        Whose points are the rows.
    columns : sequence of Column
    """

    def __init__(
        self, path: Path, file: Any, dimensions: Sequence[str], columns: Sequence[Column]
    ) -> None:
        self._sizes = [len(file.dimensions[name]) for name in dimensions]
        super().__init__(path, KIND, prod(self._sizes), columns)
        self._file, self._dimensions = file, dimensions

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._file, self._dimensions, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        filters = (self._file.variables[column.field].filters() for column in self._columns)
        return any(kind and kind.get("zlib") for kind in filters)

    def _field(self, name: str, rows: slice) -> Any:
        """Read whole points of the first dimension, and cut the rows out of them."""
        variable = self._file.variables[name]
        first, inner = self._dimensions[0], prod(self._sizes[1:])
        start, stop = rows.start // inner, -(-rows.stop // inner)
        index = tuple(
            slice(start, stop) if dimension == first else slice(None)
            for dimension in variable.dimensions
        )
        values: Any = np.ma.asarray(variable[index])
        if values.dtype.kind in "iu" and np.ma.is_masked(values):
            values = values.astype(np.float64)
        filled: Any = values.filled(np.nan) if values.dtype.kind == "f" else values.data
        own = [d for d in variable.dimensions if d not in self._dimensions]
        present = [d for d in self._dimensions if d in variable.dimensions]
        filled = filled.transpose([variable.dimensions.index(d) for d in (*present, *own)])
        columns = filled.shape[len(present) :]
        shape = [
            (stop - start if d == first else size) if d in present else 1
            for d, size in zip(self._dimensions, self._sizes, strict=True)
        ]
        whole = np.broadcast_to(
            filled.reshape(*shape, *columns), (stop - start, *self._sizes[1:], *columns)
        ).reshape((stop - start) * inner, -1)
        return whole[rows.start - start * inner : rows.stop - start * inner]


def open_netcdf(path: Path, options: SourceOptions) -> Contents:
    """Open a NetCDF file as a table: by default the rows are the points of what all have."""
    netcdf = library("netCDF4", "netcdf", path)
    with reading(path, KIND):
        file = netcdf.Dataset(path)
    variables = {
        name: variable
        for name, variable in file.variables.items()
        if name not in file.dimensions and variable.dimensions and variable.dtype is not str
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
        first, *others = variables.values()
        dimensions = [d for d in first.dimensions if all(d in other.dimensions for other in others)]
        if not dimensions:
            raise DataError(
                f"{path}: its variables have no dimension in common; name those whose points are "
                f"the rows with data.rows, some of {', '.join(file.dimensions)}"
            )
    if dimensions[0] not in file.dimensions or not prod(
        len(file.dimensions[d]) for d in dimensions
    ):
        raise DataError(f"{path}: the dimensions {', '.join(dimensions)} have no points")
    columns = [
        column
        for name, variable in variables.items()
        for column in _columns(name, variable, dimensions)
    ]
    return Contents(str(path), "", NetcdfRows(path, file, dimensions, columns))


def _columns(name: str, variable: Any, dimensions: Sequence[str]) -> list[Column]:
    dtype = _dtype(variable)
    what = str(variable.dtype)
    sizes = [
        size
        for d, size in zip(variable.dimensions, variable.shape, strict=True)
        if d not in dimensions
    ]
    if not sizes:
        return [Column(name, dtype, False, what, name)]
    return [
        Column(f"{name}[{','.join(map(str, place))}]", dtype, False, what, name, i)
        for i, place in enumerate(np.ndindex(*sizes))
    ]


def _dtype(variable: Any) -> np.dtype[Any] | None:
    """Return the type of the numbers as they are read."""
    if variable.dtype.kind not in "biuf":
        return None
    attributes = variable.ncattrs()
    if {"scale_factor", "add_offset"} & {*attributes}:
        return np.dtype(np.float64)
    if variable.dtype.kind in "iu" and {"_FillValue", "missing_value"} & {*attributes}:
        return np.dtype(np.float64)
    kept: np.dtype[Any] = np.dtype(variable.dtype)
    return kept
