"""Every format and named source: the rows it gives, and one message for what is wrong with it."""

import gzip
import io
import os
import resource
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from ddpbp.base.tasks import TASKS
from ddpbp.comm.world import World
from ddpbp.data import sources
from ddpbp.data.builtin import DIGITS, FASHION_CLASSES, NAMED
from ddpbp.data.dataset import Part, labels_of
from ddpbp.data.formats.table import FORMATS
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Columns, Rows, read_all
from ddpbp.data.sources import Examples, open_features, open_rows
from ddpbp.data.spool import spooled
from ddpbp.engine.team import Team
from ddpbp.errors import DataError
from tests.faults.mutate import npy_with
from tests.faults.mutate import npz as zipped


class Opened(NamedTuple):
    """Everything that a source holds, as numbers."""

    train: Part
    test: Part | None
    classes: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    target: str | None


def open_source(source: str, *, task: str = "classification", **options: Any) -> Opened:
    team = Team(World())
    opened = sources.open_source(source, SourceOptions(task=TASKS[task], **options))
    labels, train = labels_of(opened, opened.train, team)

    def part(examples: Examples) -> Part:
        x, raw = examples.read(slice(0, len(examples)))
        return Part(x, labels.targets(raw, examples.y.words, f"{examples.where} labels", 0))

    test = part(spooled(opened.test, team)) if opened.test else None
    return Opened(part(spooled(train, team)), test, labels.classes, opened.columns, opened.target)


def read_features(source: str, options: SourceOptions, features: int) -> npt.NDArray[Any]:
    rows = open_features(source, options, features)
    return read_all(rows, rows.schema.dtype)


def npy(array: npt.ArrayLike) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def idx(values: npt.ArrayLike) -> bytes:
    array = np.asarray(values, np.uint8)
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


IMAGES = idx(np.arange(24).reshape(6, 2, 2))
LABELS = idx([0, 1, 2, 0, 1, 2])
X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


def written(folder: Path, **files: str | bytes) -> str:
    """Write files; `a__b` stands for a.b, and the last one's path is returned."""
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_", "-")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_digits_split_is_the_one_its_readme_states():
    source = open_source("digits")
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (1442, 355)
    assert source.train.x.shape[1] == 64
    assert source.train.x.dtype == np.uint8
    assert source.train.x.max() == 16
    assert source.classes == tuple("0123456789")
    with np.load(DIGITS) as stored:
        test = np.zeros(len(stored["y"]), bool)
        for c in range(10):
            test[np.flatnonzero(stored["y"] == c)[4::5]] = True
        np.testing.assert_array_equal(stored["test"], test)
        np.testing.assert_array_equal(source.test.y, stored["y"][test])


def test_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*data\.folder"):
        open_source("fashion-mnist", folder=str(tmp_path / "none"))


def test_fashion_mnist_names_its_classes(tmp_path):
    written(tmp_path, train_images=IMAGES, train_labels=LABELS)
    source = open_source("fashion-mnist", folder=str(tmp_path))
    assert source.classes == FASHION_CLASSES
    assert source.classes[9] == "Ankle boot"
    assert source.test is None


def test_sources_are_these():
    assert [*NAMED, *FORMATS] == [
        "digits",
        "fashion-mnist",
        "synthetic",
        "csv",
        "npy",
        "npz",
        "idx",
        "parquet",
        "hdf5",
        "netcdf",
        "root",
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_folder_gives_rows_of_bytes_and_its_test_part(tmp_path, pack):
    files = {"train_images": IMAGES, "train_labels": LABELS}
    files |= {"t10k_images": idx([[[9, 8], [7, 6]]]), "t10k_labels": idx([2])}
    written(tmp_path, **{name: pack(content) for name, content in files.items()})
    source = open_source(str(tmp_path))
    assert source.test is not None
    np.testing.assert_array_equal(source.train.x, np.arange(24).reshape(6, 4))
    np.testing.assert_array_equal(source.train.y, Y)
    np.testing.assert_array_equal(source.test.x, [[9, 8, 7, 6]])
    assert source.train.x.dtype == np.uint8
    assert source.train.x.flags.c_contiguous
    assert source.train.y.dtype == np.int64


def test_npy_takes_the_last_column_or_the_one_named(tmp_path):
    path = written(tmp_path, t__npy=npy(np.c_[Y, X, Y[::-1]]))
    last = open_source(path)
    np.testing.assert_array_equal(last.train.x, np.c_[Y, X])
    np.testing.assert_array_equal(last.train.y, Y[::-1])
    both = open_source(path, task="regression", target="0,-1")
    np.testing.assert_array_equal(both.train.x, X)
    np.testing.assert_array_equal(both.train.y, np.c_[Y, Y[::-1]])
    assert both.classes is None


def test_npz_parts_flattens_and_keeps_the_labels(tmp_path):
    arrays = {"x_train": np.float32(X).reshape(6, 2, 1), "kind_train": Y}
    path = written(tmp_path, t__npz=npz(**arrays, x_test=X[:2], kind_test=np.array([1.0, 2.0])))
    source = open_source(path, target="kind")
    assert source.test is not None
    assert source.train.x.shape == (6, 2)
    assert source.train.x.dtype == np.float32
    assert source.classes == ("0", "1", "2")
    np.testing.assert_array_equal(source.test.y, [1, 2])


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", ">f4", ">f8", "g"])
def test_any_real_type_ends_as_uint8_or_native_float(tmp_path, dtype):
    x = np.asfortranarray((X > 5).astype(dtype))
    source = open_source(written(tmp_path, t__npz=npz(x=x, y=Y)))
    np.testing.assert_array_equal(source.train.x, x)
    assert source.train.x.dtype.isnative
    assert source.train.x.dtype in (np.uint8, np.float32, np.float64)
    assert source.train.x.flags.c_contiguous


@pytest.mark.parametrize(
    ("text", "target", "classes", "y"),
    [
        ("a,b,kind\n1,2,dog\n3,4,cat\n", None, ("cat", "dog"), [1, 0]),
        ("1,2,dog\n3,4,cat\n", None, ("cat", "dog"), [1, 0]),
        ('kind;a;b\r\n"x;y";1;2\r\n\r\nz;3;4\r\n', "kind", ("x;y", "z"), [0, 1]),
        ("10\t1\t2\n9.0\t3\t4", "0", ("9", "10"), [1, 0]),
        ("\ufeff,a,b,y\n0,1,2,-1\n1,3,4,7\n", "-1", ("-1", "7"), [0, 1]),
    ],
    ids=["header", "no header", "semicolon, quotes, CRLF", "tab, integers", "BOM, pandas' index"],
)
def test_csv_tells_header_delimiter_and_classes(tmp_path, text, target, classes, y):
    path = written(tmp_path, t__csv__gz=gzip.compress(text.encode()))
    source = open_source(path, target=target)
    np.testing.assert_array_equal(source.train.x, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(source.train.y, y)
    assert source.classes == classes


def test_csv_takes_several_targets(tmp_path):
    path = written(tmp_path, t__csv="u,a,v\n0,5,1\n1,6,1\n")
    source = open_source(path, task="multilabel", target="u, v")
    np.testing.assert_array_equal(source.train.y, [[0, 1], [1, 1]])
    assert source.train.y.dtype == np.float64


@pytest.mark.parametrize("task", ["classification", "binary", "multilabel", "regression"])
def test_synthetic_row_depends_on_seed_and_place_only(task):
    def draw(examples: int, seed: int = 1) -> Part:
        shape: dict[str, Any] = {"features": 301, "classes": 3, "targets": 2}
        return open_source("synthetic", task=task, examples=examples, seed=seed, **shape).train

    few, many = draw(20), draw(1000)
    np.testing.assert_array_equal(few.x, many.x[:20])
    np.testing.assert_array_equal(few.y, many.y[:20])
    assert few.x.dtype == np.float32
    assert -1 <= many.x.min() < -0.99 < 0.99 < many.x.max() < 1
    assert abs(many.x.mean()) < 0.01
    assert (draw(20, seed=2).x != few.x).all(1).any()
    assert len(np.unique(many.y)) == {"classification": 3, "regression": 2000}.get(task, 2)


def test_synthetic_can_be_learned():
    train = open_source("synthetic", task="binary", examples=500, features=5).train
    weights = np.linalg.lstsq(train.x, 2 * train.y[:, 0] - 1, rcond=None)[0]
    assert ((train.x @ weights > 0) == train.y[:, 0]).mean() > 0.95


def rows_of(folder: Path, format: str) -> tuple[Rows, npt.NDArray[Any]]:
    """Return the rows of a small file of a format, and what they should be."""
    x = np.arange(24.0).reshape(8, 3)
    if format == "csv":
        path = written(folder, t__csv="a,b,c\n" + "".join(f"{a},{b},{c}\n" for a, b, c in x))
    elif format == "npy":
        path = written(folder, t__npy=npy(np.asfortranarray(np.float32(x))))
    elif format == "npz":
        path = written(folder, t__npz=npz(x=x.reshape(8, 3, 1)))
    else:
        path = written(folder, t__idx=idx(x))
    contents = open_rows(path, SourceOptions())
    return contents.table or contents.arrays["x"](), x


@pytest.mark.parametrize("format", FORMATS)
def test_any_slice_of_rows_is_read_into_the_array_given(tmp_path, monkeypatch, format):
    monkeypatch.setattr("ddpbp.data.rows.ROWS_AT_ONCE", 2)
    rows, expected = rows_of(tmp_path, format)
    assert (len(rows), rows.schema.columns) == expected.shape
    assert rows.schema.names == (("a", "b", "c") if format == "csv" else None)
    picked = Columns(rows, [2, 0])
    for start, stop in [(0, 8), (0, 0), (8, 8), (3, 4), (1, 6)]:
        for dtype in (np.float32, np.float64):
            out = np.full((8, 3), -1, dtype)
            rows.read(slice(start, stop), out[start:stop])
            np.testing.assert_array_equal(out[start:stop], expected[start:stop])
            assert (np.delete(out, slice(start, stop), 0) == -1).all()
            out = np.full((stop - start, 2), -1, dtype)
            picked.read(slice(start, stop), out)
            np.testing.assert_array_equal(out, expected[start:stop, [2, 0]])
    np.testing.assert_array_equal(read_all(rows, "f4"), expected)


def test_an_npy_file_is_not_loaded_before_it_is_read(tmp_path):
    path = tmp_path / "big.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype="f8", shape=(2**30, 3))  # 24 GiB of holes
    table = open_rows(str(path), SourceOptions()).table
    assert table
    out = np.ones((2, 3))
    table.read(slice(2**29, 2**29 + 2), out)
    assert len(table) == 2**30
    assert not out.any()


def test_features_to_predict_from_come_with_or_without_targets(tmp_path):
    cases: list[tuple[str, str | bytes, str | None]] = [
        ("a__csv", "a,b\n0,1\n2,3\n", None),
        ("b__csv", "kind,a,b\ncat,0,1\n?,2,3\n", "kind"),
        ("c__npy", npy(X[:2, :2]), None),
        ("d__npy", npy(np.c_[X[:2], Y[:2]]), None),
        ("e__npz", npz(x=X[:2], y=Y[:2]), None),
        ("f__npz", npz(x_train=X, x_test=X[:2]), None),
        ("g__npz", npz(rows=X[:2]), None),
        ("h__idx", idx(X[:2].reshape(2, 2, 1)), None),
        ("i__npy", npy(X[:2].reshape(2, 2, 1)), None),
    ]
    for name, content, target in cases:
        path = written(tmp_path, **{name: content})
        np.testing.assert_array_equal(read_features(path, SourceOptions(target=target), 2), X[:2])
    with pytest.raises(DataError, match=r"a\.csv: 2 features .* takes 5"):
        read_features(str(tmp_path / "a.csv"), SourceOptions(), 5)
    with pytest.raises(DataError, match=r"b\.csv: 2 features .* takes 3"):
        read_features(str(tmp_path / "b.csv"), SourceOptions(target="kind"), 3)
    with pytest.raises(DataError, match=r"j\.npz: no array 'x' or 'x_test' .* holds u, v"):
        read_features(written(tmp_path, j__npz=npz(u=X, v=X)), SourceOptions(), 2)


def test_columns_by_name_leave_out_whatever_else_a_table_holds(tmp_path):
    path = written(tmp_path, t__csv="kind,b,note,a\nv,2,hm,1\nu,4,2024-01-01,3\n")
    options: dict[str, Any] = {"target": "kind", "columns": ("a", "b")}
    source = open_source(path, **options)
    np.testing.assert_array_equal(source.train.x, [[1, 2], [3, 4]])
    assert (source.columns, source.classes) == (("a", "b"), ("u", "v"))
    assert source.train.y.tolist() == [1, 0]
    np.testing.assert_array_equal(read_features(path, SourceOptions(**options), 2), source.train.x)


def npy_saying(header: str, data: bytes = b"") -> bytes:
    return npy_with(f"{{{header}, 'fortran_order': False, }}\n", data)


NAN = np.where(X == 7, np.nan, X)
BAD: dict[str, tuple[str, str | bytes, dict[str, str], str]] = {
    "npy of no bytes": ("npy", npy_saying("'descr': '|V0', 'shape': (10**12, 2)"), {}, "damaged"),
    "npy of voids": ("npy", npy_saying(f"'descr': '|V0', 'shape': ({10**12}, 2)"), {}, "type .V0"),
    "npy too short": (
        "npy",
        npy_saying(f"'descr': '<f8', 'shape': ({10**12}, 2)"),
        {},
        "cut short",
    ),
    "npy below zero": (
        "npy",
        npy_saying("'descr': '<f8', 'shape': (-2, -2)", bytes(32)),
        {},
        "damaged",
    ),
    "npy without columns": (
        "npy",
        npy_saying(f"'descr': '<f8', 'shape': ({10**40}, 0)"),
        {},
        "no ex",
    ),
    "npy too long": ("npy", npy(np.c_[X, Y]) + b"1", {}, "too long"),
    "npy header of gigabytes": (
        "npy",
        npy_with("", b"", (2, 0), 2**32 - 1),
        {},
        "cut short, damaged",
    ),
    "npy header of minuses": ("npy", npy_with("-" * 5_000 + "1", b""), {}, "damaged"),
    "npz that lies": (
        "npz",
        zipped({"x.npy": npy_saying(f"'descr': '<f8', 'shape': ({10**9}, 2)"), "y.npy": npy(Y)}),
        {},
        "x: cut short",
    ),
    "npz with text": ("npz", zipped({"x": b"text", "y.npy": npy(Y)}), {}, "array 'x'"),
    "npz with lzma": ("npz", zipped({"x.npy": npy(X), "y.npy": npy(Y)}, 14), {}, "does not write"),
    "empty npy": ("npy", npy(np.empty((0, 3))), {}, "no examples"),
    "no bytes": ("npy", b"", {}, "cut short"),
    "truncated npy": ("npy", npy(X)[:-5], {}, "cut short"),
    "damaged header": ("npy", npy(X).replace(b"'shape'", b"((shape"), {}, "damaged"),
    "vector": ("npy", npy(Y), {}, "one column only"),
    "cube": ("npy", npy(X.reshape(3, 2, 2)), {}, r"rows of shape \(2, 2\)"),
    "number": ("npz", npz(x=X, y=3), {}, "y: a single number"),
    "nan": ("npy", npy(np.c_[NAN, Y]), {}, "row 3, column 1 .* is nan"),
    "text array": ("npy", npy(X.astype(str)), {}, "type <U"),
    "pickle": ("npy", npy(X.astype(object)), {}, "pickled object array"),
    "no such column": ("npy", npy(np.c_[X, Y]), {"target": "3"}, "no column '3'.* 0 to 2"),
    "fraction": (
        "npy",
        npy(np.c_[X, Y / 2]),
        {},
        r"found 0.5; .* loss\.name=squared_error$",
    ),
    "negative": ("npy", npy(np.c_[X, Y - 1]), {}, "found -1"),
    "not 0 or 1": ("npy", npy(np.c_[X, Y]), {"task": "binary"}, "row 2 .*holds 2.0.*: 0, 1$"),
    "pickle in npz": ("npz", npz(x=X, y=Y.astype(object)), {}, "pickled object array"),
    "truncated npz": ("npz", npz(x=X, y=Y)[:-5], {}, "cut short"),
    "no y": ("npz", npz(x=X, Y=Y), {}, "no array 'y'.* it holds x, Y"),
    "counts": ("npz", npz(x=X, y=Y[1:]), {}, "6 rows of features but 5 of labels"),
    "one-hot": ("npz", npz(x=X, y=np.eye(6)), {}, r"one-hot .*argmax"),
    "unseen": ("npz", npz(x=X, y=Y, x_test=X, y_test=Y + 1), {}, "test labels: row 2 .*holds 3"),
    "test width": ("npz", npz(x=X, y=Y, x_test=X[:, :1], y_test=Y), {}, "must agree"),
    "overflow": ("npz", npz(x=X * np.longdouble("1e400"), y=Y), {}, "is inf"),
    "ragged": ("csv", "a,b,y\n1,2,0\n\n3,1\n", {}, "line 4: 2 field.* has 3"),
    "text": ("csv", "a,b,y\n1,2,0\n3,x,1\n", {}, "line 3, column \"b\": found 'x'"),
    "hole": ("csv", "a,b,y\n1,,0\n3,4,1\n", {}, "line 2, column \"b\": found ''"),
    "half a header": ("csv", "?,3.5,u\n1,2,v\n", {}, "line 1: neither a header nor data: '\\?'"),
    "decimal comma": ("csv", "1,5;2;0\n3;4;1\n", {}, "line 1: neither .* '1,5'"),
    "inf": ("csv", "1,2,0\n3,inf,1\n", {}, "line 2, column 1: found 'inf'"),
    "no label": ("csv", "a,b,y\n1,2,u\n3,4,\n", {}, "column \"y\" holds '', first in row 1"),
    "fractions": (
        "csv",
        "a,b,y\n1,2,0.5\n3,4,1\n",
        {},
        r"column \"y\" holds '0.5'.* loss\.name=squared_error",
    ),
    "misspelt": ("csv", "a,b,kind\n1,2,0\n", {"target": "knd"}, "did you mean 'kind'.* a, b"),
    "two": ("csv", "1,2,0\n", {"target": "0,1"}, "names 2; classification takes one"),
    "no features": ("csv", "1,2\n", {"task": "regression", "target": "0,1"}, "no features"),
    "one column": ("csv", "1\n2\n", {}, "one column only"),
    "header only": ("csv", "a,b,y\n", {}, "no rows of data"),
    "open quote": ("csv", 'a,b,y\n1,2,u\n3,4,"v\n5,6,u\n', {}, "line 4: not CSV: unexpected end"),
    "text after a quote": ("csv", 'a,b,y\n"1"2,2,u\n', {}, "line 2: not CSV"),
    "underscore": ("csv", "a,b,y\n1,2,0\n1_0,2,1\n", {}, "line 3, column \"a\": found '1_0'"),
    "digits of others": ("csv", "a,b,y\n1,2,0\n\u0663,2,1\n", {}, 'line 3, column "a"'),
    "beyond float64": ("csv", "a,b,y\n1,2,0\n1e999,2,1\n", {}, 'line 3, column "a"'),
    "fault after quotes": ("csv", 'a,b,y\n1,2,"u\n\nu"\n3,x,v\n', {}, 'line 5, column "b"'),
    "two targets of one name": ("csv", "a,y,y\n1,2,0\n", {"target": "y"}, "two columns are named"),
    "target of many digits": ("csv", "a,b,y\n1,2,0\n", {"target": "9" * 5_000}, "no column"),
    "target of other digits": ("csv", "a,b,y\n1,2,0\n", {"target": "²"}, "no column '²'"),
    "empty csv": ("csv", "\n\n", {}, "is empty"),
    "Latin-1": ("csv", b"a,b,y\n1,2,caf\xe9\n", {}, "not UTF-8"),
    "truncated gz": ("csv", gzip.compress(b"a,b,y\n1,2,0\n")[:-9], {}, "cut short"),
    "other text": ("asc", "1,2,0\n", {}, r"\.asc files .* \*\.npy.* set data\.format=csv if"),
    "sqlite": ("db", b"SQLite\0\1", {}, r"\.db files are not read.* \.npy or Parquet$"),
    "parquet": ("parquet", b"PAR1\0\1", {}, "bad.parquet: cut short, damaged"),
    "npy.gz": ("npy.gz", gzip.compress(npy(X)), {}, "unpack it first with gunzip"),
    "unknown format": ("dat", "", {"format": "cvs"}, "'cvs' .did you mean 'csv'"),
    "no folder": ("dat", "", {"format": "idx"}, "needed: a folder with the files train-images"),
}


@pytest.mark.parametrize(("suffix", "content", "options", "fault"), BAD.values(), ids=list(BAD))
def test_bad_file_ends_in_one_message(tmp_path, suffix, content, options, fault):
    path = written(tmp_path, **{f"bad__{suffix.replace('.', '__')}": content})
    with pytest.raises(DataError, match=fault) as raised:
        open_source(path, **options)
    assert str(raised.value).startswith(path)


@pytest.mark.parametrize("suffix", ["csv", "npy", "npz"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, suffix):
    pipe = tmp_path / f"pipe.{suffix}"
    os.mkfifo(pipe)
    device = tmp_path / f"device.{suffix}"
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(DataError, match="a pipe or a device"):
            open_source(str(path))


def test_a_row_of_csv_has_a_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpbp.data.formats.lines.MAX_ROW_CHARACTERS", 10_000)
    line, rows = "1," * 20_000, '"\n",' * 5_000
    for text in (line, f"a,b,y\n1,2,0\n{rows}"):
        path = written(tmp_path, t__csv__gz=gzip.compress(text.encode()))
        with pytest.raises(DataError, match="a row of more than 10,000 characters"):
            open_source(path)


def test_labels_too_large_to_be_told_apart_as_numbers_are_text(tmp_path):
    path = written(tmp_path, t__csv=f"a,b,y\n1,2,{2**53}\n3,4,{2**53 + 1}\n")
    assert open_source(path).classes == (str(2**53), str(2**53 + 1))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_blocks_of_csv_are_one_table(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("ddpbp.data.formats.lines.CHUNK_BYTES", 20)
    text = "a,b,y\n" + "".join(
        f"{i},{i / 8},{q}k{i % 3}{q}\n\n" for i in range(50) for q in ['"'] * (i % 5 == 0) or [""]
    )
    source = open_source(written(tmp_path, t__csv=pack(text.encode())))
    np.testing.assert_array_equal(source.train.x, np.c_[np.arange(50), np.arange(50) / 8])
    np.testing.assert_array_equal(source.train.y, np.arange(50) % 3)


def test_a_compressed_file_is_read_as_far_as_it_is_announced(tmp_path, monkeypatch):
    """Neither a stream that is longer than its header nor one that lies takes memory."""
    labels = idx([0, 1, 2, 0, 1, 2])
    huge = gzip.compress(IMAGES + bytes(300_000_000), 1)
    lie = gzip.compress(IMAGES[:4] + b"\xff\xff\xff\xff" + IMAGES[8:])
    for images, fault in ((huge, "too long"), (lie, "cut short")):
        written(tmp_path, train_images=images, train_labels=labels)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError, match=f"train-images: {fault}"):
            open_source(str(tmp_path))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (b"\0\0\7\3" + IMAGES[4:], LABELS, "train-images: not an IDX file: .* 00 00 07 03"),
        (IMAGES[:-1], LABELS, "train-images: cut short: 39 bytes .* needs 40"),
        (IMAGES[:9], LABELS, "train-images: cut short"),
        (gzip.compress(IMAGES)[:-4], LABELS, "train-images: cut short"),
        (IMAGES, LABELS + b"\0", "train-labels: too long"),
        (IMAGES, idx([0, 1]), "6 rows of features but 2 of labels"),
    ],
)
def test_bad_idx_folder_ends_in_one_message(tmp_path, images, labels, fault):
    written(tmp_path, train_images=images, train_labels=labels)
    with pytest.raises(DataError, match=fault) as raised:
        open_source(str(tmp_path))
    assert str(raised.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"source": "digts", "task": "classification"}, "did you mean 'digits'"),
        ({"source": "gone.csv", "task": "binary"}, "gone.csv.*no such file"),
        ({"source": "digits", "task": "binary"}, "allowed for binary: 0, 1$"),
        ({"source": "synthetic", "task": "binary", "features": 3}, r"data\.examples=10000"),
        (
            {"source": "synthetic", "task": "multilabel", "examples": 1, "features": 3},
            r"data\.targets is 0",
        ),
        (
            {"source": "synthetic", "task": "classification", "examples": 9, "features": 3},
            r"data\.classes is 0; at least 2",
        ),
        ({"source": "tests", "task": "binary"}, r"tests/conftest\.py: \.py files are not read"),
        ({"source": "x" * 300, "task": "binary"}, "File name too long"),
    ],
)
def test_bad_argument_ends_in_one_message(arguments, fault):
    with pytest.raises(DataError, match=fault):
        open_source(**arguments)
