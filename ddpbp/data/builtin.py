"""The named sources: data sets that are known without a path.

A new one is a function here and its line in `NAMED`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ddpbp.data.formats.idx import open_idx
from ddpbp.data.formats.npz import NpzRows
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, ArrayRows, Contents, Rows, read_all
from ddpbp.data.synthetic import draw
from ddpbp.errors import DataError

DIGITS = Path(__file__).parent / "digits" / "digits.npz"
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
# fmt: off
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on


def _digits(options: SourceOptions) -> Contents:
    """Open the 1,797 digits of the package; see digits/README.md."""
    x, y, test = (NpzRows(DIGITS, name) for name in ("x", "y", "test"))
    held_out = read_all(test, np.bool_)[:, 0]

    def chosen(rows: Rows, mask: Array) -> ArrayRows:
        return ArrayRows(read_all(rows, rows.schema.dtype)[mask], str(DIGITS))

    arrays = {
        f"{name}_{part}": partial(chosen, rows, mask)
        for part, mask in (("train", ~held_out), ("test", held_out))
        for name, rows in (("x", x), ("y", y))
    }
    return Contents(str(DIGITS), "", arrays=arrays, classes=tuple("0123456789"))


def _fashion(options: SourceOptions) -> Contents:
    """Open Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) as the Debian package holds it."""
    folder = Path(options.folder or FASHION_FOLDER).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder, so no fashion-mnist; run `apt-get install "
            "dataset-fashion-mnist`, or set data.folder to where its four IDX files are"
        )
    return replace(open_idx(folder, options), classes=FASHION_CLASSES)


def _synthetic(options: SourceOptions) -> Contents:
    """Draw examples and label them by a random linear teacher; see `synthetic`."""
    task = options.task
    outputs = options.classes if task.classes else 1 if task.single else options.targets
    for key, value, least, example in (
        ("data.examples", options.examples, 1, 10_000),
        ("data.features", options.features, 1, 20),
        ("data.classes" if task.classes else "data.targets", outputs, 1 + task.classes, 3),
    ):
        if value < least:
            raise DataError(
                f"synthetic: {key} is {value}; at least {least} is needed for {task.name}, "
                f"e.g. {key}={example}"
            )
    x, scores = draw(options.seed, options.examples, options.features, outputs)
    y: Array
    if task.classes:
        y = scores.argmax(1)
    elif task.zero_or_one:
        y = scores > 0
    else:
        y = scores / np.sqrt(options.features)
    arrays = {name: partial(ArrayRows, a, "synthetic") for name, a in (("x", x), ("y", y))}
    classes = tuple(map(str, range(outputs))) if task.classes else None
    return Contents("synthetic", "", arrays=arrays, classes=classes)


NAMED: dict[str, Callable[[SourceOptions], Contents]] = {
    "digits": _digits,
    "fashion-mnist": _fashion,
    "synthetic": _synthetic,
}
