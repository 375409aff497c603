"""Files of predictions, written leaf by leaf: CSV, .npy, Parquet."""

import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ddpbp.comm.world import World
from ddpbp.data.files import library
from ddpbp.errors import ConfigError
from ddpbp.run.output import print_text
from ddpbp.store.files import whole_file
from ddpbp.store.model_file import StoredModel

Array = npt.NDArray[Any]
Write = Callable[[Any], object]

MEMORY_BYTES = 2**24  # of text for standard output, which is shown when all of it is there


def require_writable_name(output: Path | None) -> None:
    """Refuse an output whose format its name does not give.

    Raises
    ------
    ConfigError
        Names the endings that are allowed.
    """
    if output is not None and output.suffix not in FORMS:
        *others, last = (f"*{suffix}" for suffix in FORMS)
        raise ConfigError(f"--output {output}: allowed are {', '.join(others)} and {last}")


class Form(NamedTuple):
    """How predictions are written: first rendered, by the rank that computed them, then stored.

    Attributes
    ----------
    render : callable
        Takes the outputs of a leaf, (examples, n_L).
    writer : callable
        Takes the model, the number of predictions and a file; a context that gives a function,
        which takes what `render` returned.
    """

    render: Callable[[StoredModel, Array], Any]
    writer: Callable[[StoredModel, int, IO[bytes]], AbstractContextManager[Write]]


def form_of(output: Path | None) -> Form:
    """Return how a file of this name is written; None is standard output."""
    return FORMS[output.suffix if output else ".csv"]


@contextmanager
def writing(model: StoredModel, n: int, output: Path | None, world: World) -> Iterator[Write]:
    """Open a file for n predictions; the block gets what stores those of a leaf, on rank 0.

    A classification gives the name of the class and the outputs of all classes. Other tasks give
    the outputs, under the names of the targets where the training file had a header.

    Parameters
    ----------
    model : StoredModel
    n : int
    output : Path or None
        Its name gives the format; None is standard output.
    world : World

    Raises
    ------
    DdpbpError
        On every rank, if it cannot be written; then an earlier file stays as it was.
    """
    with ExitStack() as stack:
        write: Write = _ignore
        with world.together():
            if world.rank == 0:
                write = stack.enter_context(_opened(model, n, output))
        yield write
        with world.together():
            stack.close()


def _ignore(_: Any) -> None:
    """Write nothing, as all ranks but one."""


@contextmanager
def _opened(model: StoredModel, n: int, output: Path | None) -> Iterator[Write]:
    writer = form_of(output).writer
    if output is not None:
        with whole_file(output) as file, writer(model, n, file) as write:
            yield write
        return
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as text:
        with writer(model, n, cast(IO[bytes], text)) as write:
            yield write
        text.seek(0)
        while part := text.read(MEMORY_BYTES):
            print_text(part.decode(errors="surrogateescape"), end="")


def _names(model: StoredModel) -> list[str]:
    """Return the names of the outputs."""
    if model.classes:
        return [*model.classes]
    n, target = model.network.sizes[-1], model.target or ""
    names = target.split(",") if n > 1 else [target]
    return names if target and len(names) == n else [f"output_{j}" for j in range(n)]


def _csv_lines(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _csv_text(model: StoredModel, a: Array) -> bytes:
    if not model.classes:
        return _csv_lines(a.tolist())
    best = (model.classes[i] for i in a.argmax(axis=1))
    return _csv_lines([name, *row] for name, row in zip(best, a.tolist(), strict=True))


@contextmanager
def _csv(model: StoredModel, n: int, file: IO[bytes]) -> Iterator[Write]:
    file.write(_csv_lines([["prediction"] * bool(model.classes) + _names(model)]))
    yield file.write


@contextmanager
def _npy(model: StoredModel, n: int, file: IO[bytes]) -> Iterator[Write]:
    shape, dtype = (n, model.network.sizes[-1]), model.network.dtype
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    yield file.write


@contextmanager
def _parquet(model: StoredModel, n: int, file: IO[bytes]) -> Iterator[Write]:
    pyarrow = library("pyarrow", "arrow", Path("predictions"))
    parquet = library("pyarrow.parquet", "arrow", Path("predictions"))
    names = _names(model)
    kind = pyarrow.from_numpy_dtype(model.network.dtype)
    fields = [pyarrow.field(name, kind) for name in names]
    if model.classes:
        fields.insert(0, pyarrow.field("prediction", pyarrow.string()))

    def write(a: Array) -> None:
        columns = [pyarrow.array(column) for column in np.ascontiguousarray(a.T)]
        if model.classes:
            columns.insert(0, pyarrow.array([model.classes[i] for i in a.argmax(axis=1)]))
        held.append(pyarrow.record_batch(columns, schema=writer.schema))
        if sum(batch.num_rows for batch in held) >= GROUP_ROWS:
            flush()

    def flush() -> None:
        if held:
            writer.write_table(pyarrow.Table.from_batches(held))
            held.clear()

    held: list[Any] = []
    with parquet.ParquetWriter(file, pyarrow.schema(fields)) as writer:
        yield write
        flush()


GROUP_ROWS = 2**16  # of a group of rows in a Parquet file

FORMS = {
    ".csv": Form(_csv_text, _csv),
    ".npy": Form(lambda _, a: a.tobytes(), _npy),
    ".parquet": Form(lambda _, a: a, _parquet),
}
