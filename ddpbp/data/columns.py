"""Which columns of a table are features and which are targets: one place, for every format."""

from collections.abc import Sequence

from ddpbp.base.tasks import Task
from ddpbp.data.files import hint
from ddpbp.data.rows import Schema
from ddpbp.errors import DataError


def target_columns(
    schema: Schema, where: str, target: str | None, task: Task | None = None
) -> list[int]:
    """Return the target columns, by default the last one.

    Parameters
    ----------
    schema : Schema
        Of the table.
    where : str
        The table, for messages.
    target : str or None
        Names or indices, separated by commas.
    task : Task, optional
        A task with a single target refuses several.

    Raises
    ------
    DataError
        Names a column that does not exist, or what is wrong with the choice.
    """
    count, names = schema.columns, schema.names or ()
    if target is None:
        return [count - 1]
    picks = []
    for word in _words(target, names):
        if word in names:
            picks += named_columns([word], names, where)
        elif (place := _place(word, count)) is not None:
            picks.append(place)
        else:
            held = _listed(names)
            raise DataError(
                f"{where}: no column {word[:40]!r}{hint(word, names)}; set data.target to one of "
                f"{held or f'0 to {count - 1}'}"
            )
    if len(picks) > 1 and task and task.single:
        raise DataError(
            f"{where}: data.target {target!r} names {len(picks)}; {task.name} takes one"
        )
    if len(set(picks)) < len(picks) or len(picks) >= count:
        raise DataError(
            f"{where}: data.target {target!r} names a column twice or leaves no features; "
            f"there are {count} columns"
        )
    return picks


def feature_columns(
    schema: Schema, targets: Sequence[int], names: Sequence[str] | None, where: str
) -> list[int]:
    """Return the columns with these names, or all but the targets where there are no names.

    Raises
    ------
    DataError
        If a name is missing, or two columns have it: a model finds its features by name.
    """
    if names and schema.names:
        return named_columns(names, schema.names, where)
    features = [column for column in range(schema.columns) if column not in targets]
    if schema.names:
        named_columns([schema.names[column] for column in features], schema.names, where)
    return features


def targets_present(schema: Schema, where: str, target: str | None, features: int) -> list[int]:
    """Return the target columns of a table to predict from, which may have none.

    They are there if the table has columns to spare for them, or a column of one of their names.

    Parameters
    ----------
    schema, where, target
        As `target_columns` has them.
    features : int
        The number of features that the model takes.
    """
    names = schema.names or ()
    words = [] if target is None else _words(target, names)
    table = len(schema.shape) == 1
    whole = table and schema.columns == features + max(1, len(words))
    if whole or any(word in names for word in words):
        return target_columns(schema, where, target)
    return []


def named_columns(wanted: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Return where the columns that a model was trained on stand among `names`.

    Raises
    ------
    DataError
        Names the first column that is missing or there twice.
    """
    places: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        places.setdefault(name, []).append(column)
    missing = [name for name in wanted if name not in places]
    if missing:
        raise DataError(
            f"{where}: no column {missing[0]!r} among {_listed(names)}; the model was "
            f"trained on {_listed(wanted)}"
        )
    twice = [name for name in wanted if len(places[name]) > 1]
    if twice:
        raise DataError(f"{where}: two columns are named {twice[0]!r}; give each a name of its own")
    return [places[name][0] for name in wanted]


def _place(word: str, count: int) -> int | None:
    """Return the column that an index means; a negative one counts from the end."""
    digits = word.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(count))):
        return None
    return int(word) % count if -count <= int(word) < count else None


def _listed(names: Sequence[str]) -> str:
    """Return the first names, for a message."""
    return ", ".join(name[:40] for name in names[:12]) + ", ..." * (len(names) > 12)


def _words(target: str, names: Sequence[str]) -> list[str]:
    return [target] if target in names else [word.strip() for word in target.split(",")]
