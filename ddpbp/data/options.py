"""How a source is opened: the settings of the data, as this room takes them."""

from dataclasses import dataclass

from ddpbp.base.tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened, beside its name or path.

    Attributes
    ----------
    task : Task
        What the targets are.
    format : str or None
        The format of a path; by default the one that its name means.
    target : str or None
        The target column of a table (name or index), by default the last; several, separated by
        commas, for multilabel and regression. In a .npz file the name of the array, by default
        "y". Names may be patterns.
    columns : tuple of str or None
        The names of the features: from a table with names these columns are taken, in this order,
        whatever else it holds.
    include, exclude : str or None
        The features of a table, and columns that are none: names, names of variables with several
        columns, or patterns as "a,b*"; by default all but the targets.
    dimensions : str or None
        The dimensions of a NetCDF file whose points are the rows, as "time,lat,lon".
    tree : str or None
        The name of a tree of a ROOT file.
    separator, decimal, encoding : str or None
        How a text is written; by default as its first line shows, with a point, in UTF-8.
    folder : str or None
        Where the four files of fashion-mnist are.
    examples, features, classes, targets, seed : int
        The shape and the seed of synthetic data.
    """

    task: Task = CLASSIFICATION
    format: str | None = None
    target: str | None = None
    columns: tuple[str, ...] | None = None
    include: str | None = None
    exclude: str | None = None
    dimensions: str | None = None
    tree: str | None = None
    separator: str | None = None
    decimal: str = "."
    encoding: str | None = None
    folder: str | None = None
    examples: int = 0
    features: int = 0
    classes: int = 0
    targets: int = 0
    seed: int = 0
