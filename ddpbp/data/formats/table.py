"""The table of formats: which file names mean which format, and how it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ddpbp.data.files import hint, open_stream, reading
from ddpbp.data.formats.csv import open_csv
from ddpbp.data.formats.hdf5 import open_hdf5
from ddpbp.data.formats.idx import open_idx
from ddpbp.data.formats.netcdf import open_netcdf
from ddpbp.data.formats.npy import open_npy
from ddpbp.data.formats.npz import open_npz
from ddpbp.data.formats.parquet import open_parquet
from ddpbp.data.formats.root import open_root
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    name : str
        The value of data.format.
    patterns : tuple of str
        File names that mean it, as `fnmatch` has them, in lower case, without ".gz" or ".zst".
    open : callable
        Opens a path.
    folder : tuple of str
        File names that make a folder one of this format.
    """

    name: str
    patterns: tuple[str, ...]
    open: Callable[[Path, SourceOptions], Contents]
    folder: tuple[str, ...] = ()


FORMATS = {
    entry.name: entry
    for entry in (
        Format("csv", ("*.csv", "*.tsv", "*.txt", "*.dat"), open_csv),
        Format("npy", ("*.npy",), open_npy),
        Format("npz", ("*.npz",), open_npz),
        Format("idx", ("*.idx", "*-idx*"), open_idx, folder=("train-*", "t10k-*", "test-*")),
        Format("parquet", ("*.parquet", "*.pq"), open_parquet),
        Format("hdf5", ("*.h5", "*.hdf5", "*.he5"), open_hdf5),
        Format("netcdf", ("*.nc", "*.nc4", "*.cdf", "*.netcdf"), open_netcdf),
        Format("root", ("*.root",), open_root),
    )
}


def format_of(path: Path, name: str | None) -> Format:
    """Return the format called `name`, or the one that the name of an existing path means.

    Raises
    ------
    DataError
        If there is none.
    """
    if name is not None:
        if name not in FORMATS:
            raise DataError(
                f"{path}: unknown data.format {name!r}{hint(name, FORMATS)}; "
                f"allowed: {', '.join(FORMATS)}"
            )
        return FORMATS[name]
    plain = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if path.is_dir():
        return FORMATS["idx"]  # which says what it needs
    for entry in FORMATS.values():
        if any(fnmatch(plain, p) for p in entry.patterns):
            return entry
    known = ", ".join(pattern for entry in FORMATS.values() for pattern in entry.patterns)
    ending = Path(plain).suffix
    what = f"{ending} files are not read" if ending else "a name without an ending"
    advice = "convert it to CSV, .npy or Parquet" + (
        ", or set data.format=csv if it is CSV" if _is_text(path) else ""
    )
    raise DataError(f"{path}: {what}; known are {known}; {advice}")


def is_format(folder: Path) -> bool:
    """Return whether a folder is of a format of its own, or empty; others hold files to join."""
    names = [path.name for path in folder.iterdir() if path.name[0] not in "._"]
    patterns = [pattern for entry in FORMATS.values() for pattern in entry.folder]
    return not names or any(fnmatch(name, p) for name in names for p in patterns)


def _is_text(path: Path) -> bool:
    with reading(path, "a file"), open_stream(path) as stream:
        return b"\0" not in stream.file.read(1_024)
