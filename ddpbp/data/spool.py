"""Numbers of sources that are slow to read, such as text, kept once a host while loading."""

from dataclasses import replace

import numpy as np

from ddpbp.data.rows import Array, ArrayRows, Rows, block_rows, block_slice
from ddpbp.data.sources import Examples
from ddpbp.data.team import Team


def spooled(examples: Examples, team: Team, *, only_y: bool = False) -> Examples:
    """Return the same examples, read once into common memory if reading them again is slow.

    Parameters
    ----------
    examples : Examples
    team : Team
    only_y : bool
        Leave the features where they are, if the targets are stored apart from them.
    """
    x, y, table = examples.x, examples.y, examples.table
    if table is None:
        if x.slow and not only_y:
            x = x.over(_numbers(x, examples.where, team))
        if y.slow:
            y = y.over(_numbers(y, examples.where, team))
        return replace(examples, x=x, y=y)
    if not table.slow:
        return examples
    columns = [*range(table.schema.columns)]
    mine, others = columns[: examples.features], columns[examples.features :]
    numbers = _numbers(table, examples.where, team)
    return replace(
        examples, x=x.over(numbers.pick(mine)), y=y.over(numbers.pick(others)), table=numbers
    )


def _numbers(rows: Rows, where: str, team: Team) -> ArrayRows:
    """Read rows into memory that the ranks of a host have in common, each rank its part."""
    n, schema = len(rows), rows.schema
    shape, itemsize = (n, schema.columns), schema.dtype.itemsize
    shared = team.share(n * schema.columns * itemsize, f"{where}, as numbers", scratch=True)
    array: Array = shared.memory.view(schema.dtype).reshape(shape)
    size = n if rows.whole else block_rows(schema.columns)
    mine = slice(0, 0)

    def read(run: range) -> list[str]:
        nonlocal mine
        mine = slice(run.start * size, min(run.stop * size, n))
        for done, block in enumerate(run):
            team.tick(where, done, len(run))
            part = block_slice(block, size, n)
            rows.read(part, array[part])
        return list(rows.words)

    def union(every: list[list[str]]) -> list[str]:
        return list(dict.fromkeys(word for words in every for word in words))

    words = team.divide(-(-n // size), read, union, shared)
    if rows.texts:
        place = {word: i for i, word in enumerate(words)}
        index = np.array([place[word] for word in rows.words] or [0])
        for column in rows.texts:
            array[mine, column] = index[array[mine, column].astype(np.int64)]
        team.meet()  # before another rank reads them
    return ArrayRows(array, where, words, rows.texts)
