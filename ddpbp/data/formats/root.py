"""The ROOT format, through uproot: a tree whose branches are columns."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from ddpbp.data.files import hint, library, reading
from ddpbp.data.formats.typed import Column, Handle, TypedRows, spread
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

KIND = "a ROOT file"
KINDS_OF_TREES = ("TTree", "ROOT::RNTuple")


class RootRows(TypedRows):
    """The entries of a tree."""

    def __init__(
        self, path: Path, handle: Handle, tree: str, rows: int, columns: Sequence[Column]
    ) -> None:
        super().__init__(path, KIND, handle, rows, columns)
        self._tree = tree

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._handle, self._tree, self._count, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    def _field(self, name: str, rows: slice) -> Any:
        branch = self._handle.get()[self._tree][name]
        values = branch.array(entry_start=rows.start, entry_stop=rows.stop, library="np")
        return [str(text) for text in values] if values.dtype == object else values


def open_root(path: Path, options: SourceOptions) -> Contents:
    """Open a tree of a ROOT file as a table."""
    uproot = library("uproot", "root", path)
    handle = Handle(partial(uproot.open, path))
    with reading(path, KIND):
        file = handle.get()
        kinds = file.classnames(cycle=False)
        trees = [name for name, kind in kinds.items() if kind in KINDS_OF_TREES]
    name = options.tree or (trees[0] if len({*trees}) == 1 else "")
    if name not in trees:
        raise DataError(
            f"{path}: {f'no tree {name!r}{hint(name, trees)}' if name else 'several trees'}; "
            f"set data.tree to one of {', '.join(dict.fromkeys(trees)) or '(none)'}"
        )
    with reading(path, KIND):
        tree = file[name]
        columns = [
            column
            for branch in tree.keys(recursive=False)
            if tree.num_entries
            for column in _columns(path, branch, tree[branch])
        ]
    if not columns:
        raise DataError(f"{path}: the tree {name} has no entries; add at least one")
    return Contents(str(path), "", RootRows(path, handle, name, tree.num_entries, columns))


def _columns(path: Path, name: str, branch: Any) -> list[Column]:
    """Tell from its first entry what a branch holds."""
    what = str(branch.typename)
    first = branch.array(entry_start=0, entry_stop=1, library="np")
    if first.dtype == object:
        return [Column(name, None, isinstance(first[0], str), what, name)]
    dtype = first.dtype.newbyteorder("=") if first.dtype.kind in "biuf" else None
    return spread(path, name, first.shape[1:], dtype, what)
