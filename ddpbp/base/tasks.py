"""The tasks: what the targets of a data set are. Everything special about one stands here."""

from typing import NamedTuple


class Task(NamedTuple):
    """One task.

    Attributes
    ----------
    name : str
    classes : bool
        The target of an example is the index of its class: y is (n,) int64. Otherwise y is
        (n, targets) float64.
    single : bool
        An example has exactly one target.
    zero_or_one : bool
        Every target is 0 or 1.
    """

    name: str
    classes: bool = False
    single: bool = False
    zero_or_one: bool = False


CLASSIFICATION = Task("classification", classes=True, single=True)
BINARY = Task("binary", single=True, zero_or_one=True)
MULTILABEL = Task("multilabel", zero_or_one=True)
REGRESSION = Task("regression")

TASKS = {task.name: task for task in (CLASSIFICATION, BINARY, MULTILABEL, REGRESSION)}
