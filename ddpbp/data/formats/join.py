"""Several files of one format as one data set."""

from collections.abc import Sequence
from pathlib import Path

from ddpbp.data.formats.table import Format
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Concatenated, Contents, Rows
from ddpbp.errors import DataError


def join(source: str, files: Sequence[tuple[Path, Format]], options: SourceOptions) -> Contents:
    """Join the tables of files, in their order.

    Columns with names are matched by name, whatever their order in a file.

    Raises
    ------
    DataError
        Names a file that is of another format or has other columns than the first one.
    """
    first_path, first_format = files[0]
    tables = list[Rows]()
    contents = first_format.open(first_path, options)
    for path, kind in files:
        if kind != first_format:
            raise DataError(
                f"{path}: {kind.name}, but {first_path} is {first_format.name}; the files of one "
                'data set are of one format: give a pattern such as "folder/*.csv"'
            )
        table = contents.table if path == first_path else kind.open(path, options).table
        if table is None:
            raise DataError(
                f"{path}: holds several arrays; only tables are joined: give one file, or save a "
                "table with targets among its columns"
            )
        tables.append(_like(tables[0], table, first_path, path) if tables else table)
    return Contents(source, contents.needs, Concatenated(tables, [str(path) for path, _ in files]))


def _like(first: Rows, table: Rows, first_path: Path, path: Path) -> Rows:
    """Return a table with its columns in the order of the first one."""
    expected, mine = first.schema, table.schema
    if expected.names is None or mine.names is None:
        if mine.shape != expected.shape or (mine.names is None) != (expected.names is None):
            what = [
                f"rows of shape {schema.shape}{' with names' if schema.names else ''}"
                for schema in (mine, expected)
            ]
            raise DataError(f"{path}: {what[0]}, but {first_path} has {what[1]}")
        return table
    if expected.names == mine.names:
        return table
    for names, others, where, other in (
        (expected.names, mine.names, path, first_path),
        (mine.names, expected.names, first_path, path),
    ):
        missing = [name for name in names if name not in others]
        if missing:
            raise DataError(f"{where}: no column {missing[0]!r}, which {other} has")
    if len({*mine.names}) < len(mine.names):
        raise DataError(f"{path}: two columns have one name; give each a name of its own")
    return table.pick([mine.names.index(name) for name in expected.names])
