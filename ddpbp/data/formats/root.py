"""The ROOT format, through uproot: a tree whose branches are columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ddpbp.data.files import hint, library, reading
from ddpbp.data.formats.typed import Column, TypedRows
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Contents
from ddpbp.errors import DataError

KIND = "a ROOT file"
KINDS_OF_TREES = ("TTree", "ROOT::RNTuple")


class RootRows(TypedRows):
    """The entries of a tree."""

    def __init__(self, path: Path, tree: Any, columns: Sequence[Column]) -> None:
        super().__init__(path, KIND, tree.num_entries, columns)
        self._tree = tree

    def _copy(self, columns: Sequence[Column]) -> Self:
        return type(self)(self._path, self._tree, columns)

    @property
    def slow(self) -> bool:  # noqa: D102
        return True

    def _field(self, name: str, rows: slice) -> Any:
        values = self._tree[name].array(entry_start=rows.start, entry_stop=rows.stop, library="np")
        return [str(text) for text in values] if values.dtype == object else values


def open_root(path: Path, options: SourceOptions) -> Contents:
    """Open a tree of a ROOT file as a table."""
    uproot = library("uproot", "root", path)
    with reading(path, KIND):
        file = uproot.open(path)
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
            for column in _columns(branch, tree[branch])
        ]
    if not columns:
        raise DataError(f"{path}: the tree {name} has no entries; add at least one")
    return Contents(str(path), "", RootRows(path, tree, columns))


def _columns(name: str, branch: Any) -> list[Column]:
    """Tell from its first entry what a branch holds."""
    what = str(branch.typename)
    first = branch.array(entry_start=0, entry_stop=1, library="np")
    if first.dtype == object:
        return [Column(name, None, isinstance(first[0], str), what, name)]
    dtype = first.dtype.newbyteorder("=") if first.dtype.kind in "biuf" else None
    if first.ndim == 1:
        return [Column(name, dtype, False, what, name)]
    return [
        Column(f"{name}[{','.join(map(str, place))}]", dtype, False, what, name, i)
        for i, place in enumerate(np.ndindex(first.shape[1:]))
    ]
