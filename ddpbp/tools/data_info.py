"""What a source of data holds, column by column, and what `train` would make of it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.config.settings import Config
from ddpbp.data.checks import number_or_gap
from ddpbp.data.columns import feature_columns, target_columns
from ddpbp.data.rows import Rows, block_rows, block_slice, read_rows
from ddpbp.data.sources import files_of, open_rows
from ddpbp.engine.data import source_options
from ddpbp.errors import DataError

SAMPLE_ROWS = 10_000  # by which columns of text are told from columns of numbers
MOST_DISTINCT = 1_000  # values of a column that are counted one by one
MOST_CLASSES = 100
MOST_LISTED = 200  # columns that are printed


@dataclass
class Column:
    """What one column holds.

    Attributes
    ----------
    name : str
    kind : str
        "number" or "text".
    use : str
        feature, target or nothing.
    least, greatest, mean : float or None
        Of the numbers that are there.
    gaps, infinite : int
        The rows without a number or text, and those that are not finite.
    counts : dict of str to int, or None
        How often each value occurs, unless there are too many.
    """

    name: str
    kind: str = "number"
    use: str = ""
    least: float | None = None
    greatest: float | None = None
    mean: float | None = None
    gaps: int = 0
    infinite: int = 0
    counts: dict[str, int] | None = field(default_factory=dict)

    @property
    def distinct(self) -> str:
        """How many values there are, as text."""
        return f"> {MOST_DISTINCT:,}" if self.counts is None else f"{len(self.counts):,}"

    def add(self, values: npt.NDArray[np.float64], words: Sequence[str] | None) -> None:
        """Count the values of some rows; with words, they are indices of these."""
        found, counts = np.unique(values, return_counts=True)
        names = (
            [words[int(v)] for v in found] if words is not None else [f"{v:.17g}" for v in found]
        )
        if words is not None:
            self.gaps += sum(
                int(count) for name, count in zip(names, counts, strict=True) if not name
            )
        for name, count in zip(names, counts.tolist(), strict=True):
            if self.counts is not None and name not in ("", "nan"):
                self.counts[name] = self.counts.get(name, 0) + count
                if len(self.counts) > MOST_DISTINCT:
                    self.counts = None
        if words is None:
            self.gaps += int(np.count_nonzero(np.isnan(values)))
            self.infinite += int(np.count_nonzero(np.isinf(values)))


@dataclass
class Info:
    """What a source holds.

    Attributes
    ----------
    source : str
    rows : int
    disk_bytes, memory_bytes : int
        The size of its files, and that of its numbers in the type of the model.
    columns : list of Column
    faults : list of str
        What `train` would refuse.
    arrays : dict of str to str
        The shape and type of each array, where there is no table.
    """

    source: str
    rows: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    columns: list[Column] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    arrays: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def inspect(config: Config) -> Info:
    """Read a source once, in blocks; gaps and text are counted, not refused.

    Raises
    ------
    DataError
        If it cannot be opened.
    """
    source, options = config.data.source, source_options(config)
    contents = open_rows(source, options)
    info = Info(source, disk_bytes=sum(path.stat().st_size for path in files_of(source)))
    itemsize = np.dtype(config.model.dtype).itemsize
    if contents.table is None:
        for name, opened in contents.arrays.items():
            rows = opened()
            shape = ", ".join(map(str, (len(rows), *rows.schema.shape)))
            info.arrays[name] = f"({shape}) {rows.schema.dtype}"
            info.memory_bytes += len(rows) * rows.schema.columns * itemsize
            info.rows = max(info.rows, len(rows))
        return info
    table = contents.table.allow_gaps()
    schema = table.schema
    names = schema.names or [str(i) for i in range(schema.columns)]
    info.rows = len(table)
    info.memory_bytes = info.rows * schema.columns * itemsize
    info.columns = [Column(name) for name in names]
    texts = _texts(table)
    for i in texts:
        info.columns[i].kind = "text"
    try:
        _count(table.allow_text(texts), info.columns)
    except DataError as error:
        info.faults.append(str(error))
    try:
        targets = target_columns(schema, contents.where, options.target)
        features = feature_columns(schema, targets, contents.where, options)
    except DataError as error:
        info.faults.append(str(error))
        return info
    for uses, chosen in (("feature", features), ("target", targets)):
        for i in chosen:
            info.columns[i].use = uses
    info.faults += _faults(info.columns)
    return info


def _texts(table: Rows) -> set[int]:
    """Return the columns of text, as the first rows show them."""
    every = table.allow_text(range(table.schema.columns))
    if not every.texts:
        return set()
    picked = every.pick(sorted(every.texts))
    sample = read_rows(picked, slice(0, min(len(table), SAMPLE_ROWS)), float)
    words = picked.words
    found = set()
    for place, column in enumerate(sorted(every.texts)):
        used = [words[int(code)] for code in np.unique(sample[:, place])]
        if any(number_or_gap(word) == np.inf for word in used):
            found.add(column)
    return found


def _count(table: Rows, columns: list[Column]) -> None:
    sums, counts = np.zeros(len(columns)), np.zeros(len(columns))
    least, greatest = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    for block in _blocks(table):
        for i, column in enumerate(columns):
            values = block[:, i]
            if i in table.texts:
                column.add(values, table.words)
                continue
            column.add(values, None)
            there = values[np.isfinite(values)]
            if there.size:
                least[i] = min(least[i], there.min())
                greatest[i] = max(greatest[i], there.max())
                sums[i] += there.sum()
                counts[i] += there.size
    for i, column in enumerate(columns):
        if counts[i]:
            column.least, column.greatest = float(least[i]), float(greatest[i])
            column.mean = float(sums[i] / counts[i])


def _blocks(table: Rows) -> Iterator[npt.NDArray[np.float64]]:
    size = block_rows(table.schema.columns)
    for block in range(-(-len(table) // size)):
        yield read_rows(table, block_slice(block, size, len(table)), np.float64)


def _faults(columns: Sequence[Column]) -> list[str]:
    """Return what `train` would refuse, with the setting that helps."""
    faults = []
    for column in columns:
        name = column.name
        if column.use == "feature" and column.kind == "text":
            faults.append(f'"{name}" is text: leave it out with data.exclude={name}')
        elif column.use and (gaps := column.gaps + column.infinite):
            faults.append(f'"{name}": {gaps:,} of its values are missing or infinite: fill them in')
    return faults


def advice(columns: Sequence[Column]) -> list[str]:
    """Return what the targets look like, and what else is worth knowing."""
    lines = []
    for column in columns:
        if column.use == "target":
            lines.append(f"target {column.name}: {_task(column)}")
        elif column.use == "feature" and column.counts is not None and len(column.counts) == 1:
            lines.append(f"feature {column.name}: has one value only, and tells nothing")
    return lines


def _task(column: Column) -> str:
    counts = column.counts
    if counts is not None and (column.kind == "text" or _whole(column)):
        listed = ", ".join(
            f"{name} {count:,}"
            for name, count in sorted(counts.items(), key=lambda item: -item[1])[:12]
        )
        more = ", ..." * (len(counts) > 12)
        if column.kind == "text" or len(counts) <= MOST_CLASSES:
            return f"{len(counts)} classes, a classification: {listed}{more}"
    return "numbers, a regression: train with loss.name=squared_error"


def _whole(column: Column) -> bool:
    assert column.counts is not None
    return all(float(value).is_integer() for value in column.counts)


def as_text(info: Info) -> str:
    """Return everything as lines for a person."""
    size = f"{info.disk_bytes / 1e6:,.1f} MB on disk, " if info.disk_bytes else ""
    lines = [
        f"{info.source}: {info.rows:,} rows, {size}{info.memory_bytes / 1e6:,.1f} MB in memory"
    ]
    lines += [f"{name:<12}{what}" for name, what in info.arrays.items()]
    if info.columns:
        table = [["column", "kind", "least", "greatest", "mean", "gaps", "distinct", "used as"]]
        for column in info.columns[:MOST_LISTED]:
            numbers = (column.least, column.greatest, column.mean)
            shown = ["" if value is None else f"{value:.6g}" for value in numbers]
            gaps = f"{column.gaps + column.infinite:,}"
            use = column.use or "not used"
            table.append(
                [column.name[:40] or "(no name)", column.kind, *shown, gaps, column.distinct, use]
            )
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        if len(info.columns) > MOST_LISTED:
            lines.append(f"... and {len(info.columns) - MOST_LISTED:,} columns more")
    lines += advice(info.columns)
    lines += [f"train would refuse: {fault}" for fault in info.faults]
    return "\n".join(lines)


def write(info: Info, path: Path) -> None:
    """Write everything as JSON."""
    from ddpbp.store.files import json_text, write_whole

    write_whole(path, [json_text(info.as_dict())])
