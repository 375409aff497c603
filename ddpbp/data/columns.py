"""Which columns of a table are features and which are targets: one place, for every format."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from ddpbp.base.tasks import Task
from ddpbp.data.files import hint
from ddpbp.data.options import SourceOptions
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
    count = schema.columns
    if target is None:
        return [count - 1]
    picks = matching(target, schema, where, "data.target")
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
    schema: Schema, targets: Sequence[int], where: str, options: SourceOptions
) -> list[int]:
    """Return the columns that are features.

    They are those whose names a model knows; else those that the settings name, or all but the
    targets and the excluded ones. A column without a name in a header, such as pandas' index, is
    none.

    Raises
    ------
    DataError
        If a name is missing, or two columns have it: a model finds its features by name.
    """
    if options.columns and schema.names:
        return named_columns(options.columns, schema.names, where)
    taken: Collection[int] = range(schema.columns)
    if options.include is not None:
        taken = {*matching(options.include, schema, where, "data.features")}
    left_out = {*targets}
    if options.exclude is not None:
        left_out |= {*matching(options.exclude, schema, where, "data.exclude")}
    if schema.names:
        left_out |= {i for i, name in enumerate(schema.names) if not name}
    features = [i for i in range(schema.columns) if i in taken and i not in left_out]
    if not features:
        raise DataError(
            f"{where}: no column is left as a feature; see data.features, data.exclude and "
            "data.target"
        )
    if schema.names:
        named_columns([schema.names[column] for column in features], schema.names, where)
    return features


def matching(words: str, schema: Schema, where: str, key: str) -> list[int]:
    """Return the columns that words name, in the order of the words.

    A word is a name; or that of a variable, for all of its columns ("T" for T[0], T[1]); or a
    pattern with * and ?; or an index, of which a negative one counts from the end.

    Parameters
    ----------
    words : str
        Separated by commas.
    schema : Schema
    where : str
        The table, for messages.
    key : str
        The setting, for messages.

    Raises
    ------
    DataError
        Names a word that means no column, or two of one name.
    """
    count, names = schema.columns, schema.names or ()
    picks = []
    for word in _words(words, names):
        pattern = word.replace("[", "[[]")
        if word in names:
            picks += named_columns([word], names, where)
        elif found := [i for i, name in enumerate(names) if name.startswith(f"{word}[")]:
            picks += found
        elif (place := _place(word, count)) is not None:
            picks.append(place)
        elif found := [i for i, name in enumerate(names) if fnmatchcase(name, pattern)]:
            picks += found
        else:
            held = _listed(names)
            raise DataError(
                f"{where}: no column {word[:40]!r}{hint(word, names)}; set {key} to one of "
                f"{held or f'0 to {count - 1}'}"
            )
    return picks


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
