"""What targets mean: from the numbers or texts of a source to the targets of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base.tasks import Task
from ddpbp.data.checks import number
from ddpbp.data.rows import Array, Rows, block_rows, block_slice, read_rows
from ddpbp.data.team import Team
from ddpbp.errors import DataError

REGRESSION_HINT = "to predict a number, set loss.name=squared_error"

Found = dict[str, int] | Array
"""The distinct texts with the first row of each, or the distinct numbers."""


@dataclass(frozen=True)
class Labels:
    """How the targets of one source become those of the task.

    Attributes
    ----------
    task : Task
    classes : tuple of str or None
        The names of the classes of a classification.
    words : dict of str to int, or None
        The index of each text, where the source has texts.
    known : (classes,) array or None
        The number that means each class, where it has numbers.
    translation : (classes,) int64 or None
        The index of each class among the classes of another source.
    """

    task: Task
    classes: tuple[str, ...] | None = None
    words: dict[str, int] | None = None
    known: Array | None = None
    translation: npt.NDArray[np.int64] | None = None

    @property
    def dtype(self) -> type[np.int64 | np.float64]:
        """The type of the targets."""
        return np.int64 if self.task.classes else np.float64

    def shape(self, n: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the targets of n examples."""
        return (n,) if self.task.classes else (n, columns)

    def targets(self, raw: Array, words: Sequence[str], where: str, first: int) -> Array:
        """Check targets and bring them into the form of `Part.y`.

        Parameters
        ----------
        raw : (n, columns) array
            As they are stored.
        words : sequence of str
            The texts, if these are indices of texts.
        where : str
            For messages.
        first : int
            The number of the first row.
        """
        if self.words is not None:
            index = np.array([self.words.get(word, -1) for word in words], np.int64)
            y = index[raw[:, 0].astype(np.int64)]
        elif self.task.classes or self.task.zero_or_one:
            y = self._index(raw, where, first)
        else:
            return np.ascontiguousarray(raw, np.float64)
        return y if self.translation is None else self.translation[y]

    def _index(self, raw: Array, where: str, first: int) -> Array:
        classes = self.task.classes
        allowed = self.known if self.known is not None and classes else np.array([0, 1])
        index: npt.NDArray[np.int64] = np.searchsorted(allowed, raw).clip(max=len(allowed) - 1)
        wrong = allowed[index] != raw
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            shown = ", ".join(str(value) for value in allowed[:12]) + ", ..." * (len(allowed) > 12)
            raise DataError(
                f"{where}: row {first + row} (from 0) holds {raw[row, column]}; "
                f"allowed for {self.task.name}: {shown}"
            )
        return index[:, 0].astype(np.int64) if classes else index.astype(np.float64)

    def translated(self, classes: tuple[str, ...] | None, name: str) -> "Labels":
        """Return labels of the same source as indices of these classes, matched by name.

        Raises
        ------
        DataError
            Names a class of the source `name` that is not among them.
        """
        if classes is None or self.classes is None or classes == self.classes:
            return self
        unknown = [word for word in self.classes if word not in classes]
        if unknown:
            raise DataError(
                f"{name}: class {unknown[0]!r} does not occur in the training part, "
                f"whose classes are {', '.join(classes)}"
            )
        translation = np.array([classes.index(word) for word in self.classes], np.int64)
        return replace(self, classes=classes, translation=translation)


def find_labels(
    task: Task, y: Rows, classes: tuple[str, ...] | None, where: str, column: str, team: Team
) -> Labels:
    """Find the classes of a source, in one pass over its targets.

    Parameters
    ----------
    task : Task
    y : Rows
        The targets.
    classes : tuple of str or None
        The names of the classes 0, 1, ..., where the source has them.
    where, column : str
        The targets, and their column if they are texts, for messages.
    team : Team

    Raises
    ------
    DataError
        If a label is neither text nor an integer.
    """
    if not task.classes:
        return Labels(task)
    if classes is not None:
        return Labels(task, classes, known=np.arange(len(classes)))
    size = block_rows(y.schema.columns)
    blocks = -(-len(y) // size)

    def find(run: range) -> Found | None:
        texts, numbers = dict[str, int](), list[Array]()
        for block in run:
            rows = block_slice(block, size, len(y))
            raw = read_rows(y, rows, y.schema.dtype)
            if y.texts:
                _note_texts(texts, raw, y.words, rows.start)
            else:
                numbers = [np.unique(np.concatenate([*numbers, labels_of(raw, where)]))]
        return texts or (numbers[0] if numbers else None)

    found = team.divide(blocks, find, _merge)
    if isinstance(found, dict):
        names = sort_texts(found, column)
        return Labels(task, tuple(dict.fromkeys(names.values())), _indices(names))
    return Labels(task, tuple(str(int(label)) for label in found), known=found)


def _note_texts(texts: dict[str, int], raw: Array, words: Sequence[str], first: int) -> None:
    codes, rows = np.unique(raw[:, 0].astype(np.int64), return_index=True)
    for code, row in zip(codes.tolist(), rows.tolist(), strict=True):
        texts.setdefault(words[code], first + row)


def _merge(every: list[Found | None]) -> Found:
    """Join what the ranks found, in the order of rows."""
    texts = dict[str, int]()
    for found in every:
        if isinstance(found, dict):
            for word, row in found.items():
                texts.setdefault(word, row)
    if texts:
        return texts
    return np.unique(np.concatenate([found for found in every if isinstance(found, np.ndarray)]))


def labels_of(table: Array, where: str) -> Array:
    """Return the distinct values of an array of class indices: integers from 0."""
    labels = np.unique(table)
    wrong = labels[(labels < 0) | (labels != np.floor(labels))]
    if wrong.size:
        raise DataError(
            f"{where}: found {wrong[0]}; the index of a class is an integer, 0, 1, 2, ...; "
            f"{REGRESSION_HINT}"
        )
    return labels


def sort_texts(rows: dict[str, int], column: str) -> dict[str, str]:
    """Return the class of each text, in the order of integers if all are integers, else of text.

    Integers from 2⁵³ on are taken as text: as numbers, two of them could be one.

    Parameters
    ----------
    rows : dict of str to int
        The distinct texts, each with the first row that holds it.
    column : str
        For messages.
    """
    numbers = [number(word) for word in rows]
    numeric = None not in numbers
    for word, row in sorted(rows.items(), key=lambda item: item[1]):
        if not word or (numeric and not float(word).is_integer()):
            raise DataError(
                f"{column} holds {word[:40]!r}, first in row {row} (from 0); "
                f"a class label is text or an integer; {REGRESSION_HINT}"
            )
    exact = numeric and all(abs(float(word)) < 2**53 for word in rows)
    labels: dict[str, Any] = {word: int(float(word)) if exact else word for word in rows}
    return {word: str(labels[word]) for word in sorted(rows, key=lambda word: labels[word])}


def _indices(names: dict[str, str]) -> dict[str, int]:
    """Return the index of the class of each text; names stand in the order of the classes."""
    index = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
    return {word: index[name] for word, name in names.items()}
