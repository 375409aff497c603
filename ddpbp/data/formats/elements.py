"""Numbers that follow a header: what IDX, .npy and the members of .npz have in common.

A header is believed only as far as the file goes: what it announces must be what the file holds,
and is compared before memory is taken. Of compressed data the size is known only at their end; they
may announce no more than they can hold (1,032 bytes for each), memory is touched only as the data
arrive, and reading stops where they are longer or shorter than announced. The numbers go straight
into the caller's array: beside it a reader holds a block of `BLOCK_BYTES`. So a small file that
truly holds gigabytes needs them once, and one that only says so needs nothing.
"""

import math
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ddpbp.data.files import Continued, Stream, reading
from ddpbp.data.rows import Array, Rows, Schema
from ddpbp.errors import DataError

BLOCK_BYTES = 2**20


class Header(NamedTuple):
    """What a header announces.

    Attributes
    ----------
    dtype : numpy.dtype
    shape : tuple of int
    start : int
        The bytes before the first number.
    columns_first : bool
        The numbers are in Fortran order.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    columns_first: bool = False


class ElementRows(Rows):
    """The rows of one array in a file; only those that are asked for are read from the disk.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be, with its article, for messages.
    where : str, optional
        The array, for messages; by default the path.

    Raises
    ------
    DataError
        If the header is damaged, or announces what the file does not hold.
    """

    def __init__(self, path: Path, kind: str, where: str = "") -> None:
        self._path, self._kind, self._where = path, kind, where or str(path)
        with reading(path, kind):
            self._file = Continued(path, self._open)
        with reading(path, kind), self._open() as stream:
            self._header, self._slow = self._read_header(stream.file), stream.packed
            self._require_present(stream)

    @abstractmethod
    def _open(self) -> AbstractContextManager[Stream]:
        """Open the bytes of the array, header first."""

    @abstractmethod
    def _read_header(self, file: IO[bytes]) -> Header:
        """Read the header; `file` stands at its begin."""

    @property
    def schema(self) -> Schema:  # noqa: D102 - as the interface has it
        return Schema(self._header.shape[1:], self._header.dtype)

    @property
    def slow(self) -> bool:  # noqa: D102
        return self._slow

    def __len__(self) -> int:
        return self._header.shape[0]

    @property
    def whole(self) -> bool:  # noqa: D102
        return self._slow and self._header.columns_first

    def release(self) -> None:  # noqa: D102
        self._file.close()

    def read(self, rows: slice, out: Array) -> None:  # noqa: D102
        dtype, shape, start, columns_first = self._header
        n, columns = shape[0], self.schema.columns
        with reading(self._path, self._kind):
            if columns_first:
                places = np.arange(columns).reshape(shape[1:], order="F").ravel()
                for place, column in enumerate(np.argsort(places)):
                    first = (place * n + rows.start) * dtype.itemsize
                    self._fill(start + first, out[:, column])
            else:
                self._fill(start + rows.start * columns * dtype.itemsize, out.reshape(-1))
            # The end of compressed data is compared with their checksum.
            if rows.stop == n:
                if self._file.at(self._announced_bytes).read(1):
                    self._fail("too long", "more bytes")
                self._file.close()

    def _fill(self, place: int, out: Array) -> None:
        """Read the numbers that begin at a byte."""
        dtype, file = self._header.dtype, self._file.at(place)
        as_it_is = out.dtype == dtype and out.flags.c_contiguous
        step = BLOCK_BYTES // dtype.itemsize
        for start in range(0, len(out), step):
            part = out[start : start + step]
            raw = part if as_it_is else np.empty(len(part), dtype)
            missing = raw.data.cast("B")
            while missing and (count := file.readinto(missing)):  # type: ignore[attr-defined]
                missing = missing[count:]
            if missing:
                self._fail("cut short", "fewer bytes")
            if not as_it_is:
                part[...] = raw

    def _require_present(self, stream: Stream) -> None:
        """Refuse what is no array of real numbers, and more or less than the file holds."""
        dtype, shape, _, _ = self._header
        if dtype.hasobject:
            raise DataError(
                f"{self._path}: holds a pickled object array, which could run code and is never "
                "loaded; save plain numbers, e.g. array.astype(float)"
            )
        if dtype.kind not in "biuf":
            what = str(dtype)[:40]
            raise DataError(f"{self._where}: numbers of type {what}; real numbers are needed")
        if not shape:
            raise DataError(
                f"{self._where}: a single number; an array with a row per example is needed"
            )
        if min(shape) < 0:
            self._fail("damaged", f"{stream.most_bytes} bytes")
        if not min(shape):
            raise DataError(f"{self._where} is of shape {shape}: no examples; add at least one row")
        present, announced = stream.most_bytes, self._announced_bytes
        if announced > present:
            self._fail("cut short", f"{'' if stream.exact else 'at most '}{present} bytes")
        if stream.exact and announced < present:
            self._fail("too long", f"{present} bytes")

    @property
    def _announced_bytes(self) -> int:
        return self._header.start + math.prod(self._header.shape) * self._header.dtype.itemsize

    def _fail(self, fault: str, held: str) -> None:
        shape = str(self._header.shape)[:80]
        raise DataError(
            f"{self._where}: {fault}: {held} where the header {shape} needs "
            f"{self._announced_bytes}; copy or write it again"
        )
