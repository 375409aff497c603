"""Formats of other programs: the same rows give the same weights; damage gives one message."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpbp.base.tasks import TASKS
from ddpbp.cli.main import run
from ddpbp.comm.world import World
from ddpbp.data.dataset import Dataset, make_dataset
from ddpbp.data.formats.netcdf import boxes_of
from ddpbp.data.options import SourceOptions
from ddpbp.data.sources import open_source
from ddpbp.engine.team import Team
from ddpbp.errors import DataError

N = 200
KINDS = np.array(["ash", "birch", "cedar"])


def columns() -> dict[str, Any]:
    r = np.random.default_rng(5)
    size = r.normal(10, 3, N)
    count = r.integers(0, 9, N)
    return {
        "size": size,
        "count": count,
        "wet": r.random(N) < 0.5,
        "kind": KINDS[(size > 10) + (count > 4).astype(int)],
    }


def write_csv(path: Path, table: dict[str, Any], *, index: bool = False) -> None:
    names = [*table]
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    lines = [",".join([""] * index + names)]
    lines += [",".join([str(i)] * index + [str(v) for v in row]) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def write_parquet(path: Path, table: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), path, row_group_size=37)


def write_hdf5(path: Path, table: dict[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w", track_order=True) as file:
        for name, values in table.items():
            data = values.astype("S") if values.dtype.kind == "U" else values
            file.create_dataset(name, data=data, chunks=(13,), compression="gzip")


def write_netcdf(path: Path, table: dict[str, Any], kind: Any = "NETCDF4") -> None:
    import netCDF4

    with netCDF4.Dataset(path, "w", format=kind) as file:
        file.createDimension("site", N)
        for name, values in table.items():
            as_int = values.astype("i4") if values.dtype.kind in "bi" else values
            file.createVariable(name, as_int.dtype, ("site",))[:] = as_int


def loaded(source: object, *, task: str = "regression", **options: Any) -> Dataset:
    opened = open_source(str(source), SourceOptions(task=TASKS[task], **options))
    return make_dataset(
        opened,
        validation=0.1,
        test=None,
        standardize=True,
        keep_type=False,
        dtype="float32",
        seed=0,
        team=Team(World()),
    )


def written(folder: Path) -> dict[str, Path]:
    table = columns()
    numbers = table | {"kind": np.array([[*KINDS].index(kind) for kind in table["kind"]])}
    whole = folder / "whole"
    whole.mkdir()
    paths = {name: whole / f"t.{name}" for name in ("csv", "parquet", "h5", "nc", "npy")}
    write_csv(paths["csv"], table)
    write_parquet(paths["parquet"], table)
    write_hdf5(paths["h5"], table)
    write_netcdf(paths["nc"], numbers)
    np.save(paths["npy"], np.c_[*(values.astype(float) for values in numbers.values())])
    paths["csv with an index"] = folder / "index.csv"
    write_csv(paths["csv with an index"], table, index=True)
    for kind in ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"):
        paths[kind] = folder / f"{kind}.nc"
        write_netcdf(paths[kind], numbers, kind)
    whole_table = np.load(paths["npy"])
    (folder / "shards").mkdir()
    for i, shard in enumerate(np.array_split(whole_table, 3)):
        np.save(folder / "shards" / f"{i}.npy", shard)
    paths["folder of npy"] = folder / "shards"
    paths["npz"] = folder / "t.npz"
    np.savez_compressed(paths["npz"], x=np.asfortranarray(whole_table[:, :3]), y=whole_table[:, 3])
    for name, write in (("csv", write_csv), ("parquet", write_parquet)):
        parts = folder / f"parts {name}"
        parts.mkdir()
        for i, rows in enumerate((slice(0, 3), slice(3, 150), slice(150, N))):
            part = {key: values[rows] for key, values in table.items()}
            if i == 1:  # in another order
                part = dict(reversed(part.items()))
            write(parts / f"{i}.{name}", part)
        paths[f"folder of {name}"] = parts
        paths[f"pattern of {name}"] = parts / f"?.{name}"
        listed = ",".join(str(parts / f"{i}.{name}") for i in range(3))
        paths[f"list of {name}"] = Path(listed)
    return paths


def test_every_format_gives_the_same_weights(tmp_path, capsys):
    hashes = {}
    for name, path in written(tmp_path).items():
        words = [f"data.source={path}", f"output={tmp_path / 'run'}", "epochs=2", "seed=3"]
        target = [] if "np" in name else ["data.target=kind"]
        features = ["data.features=size,count,wet"] * (name == "h5")
        assert run(["train", *words, *target, *features, "--overwrite"]) == 0, name
        out = capsys.readouterr().out
        hashes[name] = next(line for line in out.splitlines() if line.startswith("theta sha256"))
    assert len({*hashes.values()}) == 1, hashes


def test_columns_are_named_and_left_out_by_patterns(tmp_path):
    write_parquet(tmp_path / "t.parquet", columns() | {"size_b": np.arange(N), "y": np.ones(N)})
    path = tmp_path / "t.parquet"
    usual = loaded(path, target="y", exclude="kind")
    assert usual.columns == ("size", "count", "wet", "size_b")
    assert loaded(path, target="y", include="size*").columns == ("size", "size_b")
    assert loaded(path, target="y,c*", include="s*,wet", exclude="*_b").target == "y,count"
    with pytest.raises(DataError, match=r'"kind" holds text.*data\.exclude=kind'):
        loaded(path, target="y")
    with pytest.raises(DataError, match=r"no column 'sise' .did you mean 'size'.*data\.features"):
        loaded(path, target="y", include="sise")


def test_netcdf_makes_rows_of_some_dimensions_and_columns_of_the_others(tmp_path):
    import netCDF4

    path = tmp_path / "field.nc"
    r = np.random.default_rng(0)
    heat, flux = r.normal(size=(4, 3, 2, 5)).astype("f4"), r.normal(size=(3, 4, 2))
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", 4), ("level", 3), ("lat", 2), ("lon", 5)):
            file.createDimension(name, size)
        file.createVariable("lat", "f4", ("lat",))[:] = 1.0  # a coordinate is no column
        file.createVariable("heat", "f4", ("time", "level", "lat", "lon"))[:] = heat
        packed = file.createVariable("low", "i2", ("lat", "time"), fill_value=-1)
        packed.scale_factor, packed.add_offset = 0.5, 100.0
        packed[:] = 100.0 + 0.5 * np.arange(8).reshape(2, 4)
        file.createVariable("flux", "f8", ("level", "time", "lat"))[:] = flux
    options = SourceOptions(task=TASKS["regression"], target="flux", dimensions="time,lat")
    source = open_source(str(path), options)
    assert len(source.train) == 8
    assert source.target == "flux[0],flux[1],flux[2]"
    assert source.columns is not None
    assert source.columns[:6] == (*(f"heat[0,{i}]" for i in range(5)), "heat[1,0]")
    x, y = source.train.read(slice(3, 8))
    expected = heat.transpose(0, 2, 1, 3).reshape(8, 15)
    np.testing.assert_array_equal(x[:, :15], expected[3:8])
    low = (100.0 + 0.5 * np.arange(8).reshape(2, 4)).T.reshape(8)
    np.testing.assert_array_equal(x[:, 15], low[3:8])
    np.testing.assert_array_equal(y, flux.transpose(1, 2, 0).reshape(8, 3)[3:8])
    with pytest.raises(DataError, match=r"no dimension 'tine' .did you mean 'time'"):
        loaded(path, target="flux", dimensions="tine")
    gap = tmp_path / "gap.nc"
    gap.write_bytes(path.read_bytes())
    with netCDF4.Dataset(gap, "a") as file:
        file["low"][1, 2] = np.ma.masked
    with pytest.raises(DataError, match=r"row 5 \(from 0\), column \"low\" is nan"):
        loaded(gap, target="flux", dimensions="time,lat")


def test_numbers_are_unpacked_in_float64_and_coordinates_may_be_named(tmp_path):
    import netCDF4

    path = tmp_path / "t.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", 5)
        file.createVariable("time", "f8", ("time",))[:] = np.arange(5.0) * 3600
        packed = file.createVariable("low", "i2", ("time",))
        packed.scale_factor = np.float32(0.01)  # 0.00999999977648258
        packed.set_auto_scale(False)
        packed[:] = [1, 2, 3, 1_000, 30_000]
        file.createVariable("y", "f8", ("time",))[:] = 1.0
    expected = np.array([1, 2, 3, 1_000, 30_000]) * np.float64(np.float32(0.01))
    x, _ = open_source(str(path), SourceOptions(task=TASKS["regression"])).train.read(slice(0, 5))
    np.testing.assert_array_equal(x[:, 0], expected)
    options = SourceOptions(task=TASKS["regression"], target="y", include="time,low")
    source = open_source(str(path), options)
    assert source.columns == ("time", "low")
    np.testing.assert_array_equal(source.train.read(slice(2, 4))[0][:, 0], [7200, 10800])


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_a_range_of_points_is_a_few_boxes(sizes, data):
    n = int(np.prod(sizes))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    points = np.arange(n).reshape(sizes)
    boxes = boxes_of(start, stop, sizes)
    found = np.concatenate([points[box].reshape(-1) for box in boxes])
    np.testing.assert_array_equal(found, np.arange(start, stop))
    assert len(boxes) < 2 * len(sizes)


def test_hdf5_headers_and_links_are_not_believed(tmp_path):
    import h5py

    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        for name in ("a", "y"):
            file[name] = np.arange(9.0)
        file["gone"] = h5py.SoftLink("/nowhere")
        file["round"] = h5py.SoftLink("/")
        file["type"] = np.dtype("f8")
        file.create_group("inner")["up"] = file["/"]
    assert loaded(path, target="y").columns == ("a",)
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("huge", shape=(10**12,), dtype="f8", chunks=(2**20,))
    with pytest.raises(
        DataError, match=r"huge\.h5: huge is announced with 8,000,000,000,000 bytes"
    ):
        loaded(path, target="y")
    path = tmp_path / "wide.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("wide", data=np.zeros((2, 2**21), "i1"), compression="gzip")
    with pytest.raises(DataError, match=r"wide has 2,097,152 numbers in each row; at most"):
        loaded(path)


def test_many_files_are_not_open_together(tmp_path):
    for i in range(60):
        write_parquet(tmp_path / f"{i:02}.parquet", {"x": np.arange(5.0) + i, "y": np.ones(5)})
    before = len([*Path("/proc/self/fd").iterdir()])
    source = open_source(str(tmp_path), SourceOptions(task=TASKS["regression"]))
    assert len(source.train) == 300
    x, _ = source.train.read(slice(0, 300))
    np.testing.assert_array_equal(x[::5, 0], np.arange(60))
    assert len([*Path("/proc/self/fd").iterdir()]) < before + 20


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_files_are_read_in_small_blocks_and_in_turn(tmp_path, monkeypatch, kind):
    table = columns() | {"size": columns()["size"].astype(kind)}
    table["count"] = table["count"].astype(np.uint8)
    writers = {"parquet": write_parquet, "h5": write_hdf5, "csv": write_csv}
    for name, write in writers.items():
        (tmp_path / name).mkdir()
        for i, rows in enumerate((slice(0, 30), slice(30, 150), slice(150, N))):
            write(tmp_path / name / f"{i}.{name}", {k: v[rows] for k, v in table.items()})
    found = set()
    for elements in (2**18, 12):
        monkeypatch.setattr("ddpbp.data.rows.BLOCK_ELEMENTS", elements)
        for name in writers:
            options = {"task": "classification", "target": "kind", "include": "size,count,wet"}
            part = loaded(tmp_path / name, **options).train
            found.add((part.x.tobytes(), part.y.tobytes()))
    assert len(found) == 1


def test_root_branches_are_columns(tmp_path):
    uproot = pytest.importorskip("uproot")
    table = {name: values for name, values in columns().items() if name != "kind"}
    with uproot.recreate(tmp_path / "t.root") as file:
        file.mktree("events", {name: v.dtype for name, v in table.items()}).extend(table)
        file.mktree("other", {"a": np.float64}).extend({"a": np.ones(3)})
    path = tmp_path / "t.root"
    found = loaded(path, target="size", tree="events")
    assert found.columns == ("count", "wet")
    assert len(found.train) == 180
    with pytest.raises(DataError, match=r"several trees; set data\.tree to one of events, other"):
        loaded(path)
    with uproot.recreate(tmp_path / "new.root") as file:  # of the new kind, ROOT::RNTuple
        file.mkrntuple("events", table)
    again = loaded(tmp_path / "new.root", target="size", include="count,wet")
    assert again.train.x.tobytes() == found.train.x.tobytes()


@pytest.mark.parametrize("name", ["parquet", "h5", "nc", "root"])
def test_a_missing_library_is_named_with_the_command(tmp_path, monkeypatch, name):
    (tmp_path / f"t.{name}").write_bytes(b"anything")

    def gone(library: str) -> Any:
        raise ImportError(f"No module named {library!r}")

    monkeypatch.setattr("ddpbp.data.files.import_module", gone)
    with pytest.raises(DataError, match=rf"t\.{name}.*pip install 'ddpbp\["):
        loaded(tmp_path / f"t.{name}")


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-7],
    "a hole": lambda content: content[:200] + bytes(len(content) - 400) + content[-200:],
    "another format": lambda content: gzip.compress(content),
}


DAMAGED = [(name, damage) for name in ("parquet", "h5", "nc") for damage in DAMAGES]
DAMAGED += [("NETCDF3_CLASSIC", damage) for damage in DAMAGES if damage != "a hole"]  # has no sums


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_damaged_file_ends_in_one_message(tmp_path, name, damage):
    path = damaged(written(tmp_path)[name], DAMAGES[damage])
    with pytest.raises(DataError, match=path.name) as raised:
        loaded(path, task="classification", target="kind", include="size,count")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"size": None}, r"b\.parquet: no column 'size', which .*a\.parquet has"),
        ({"more": np.ones(N)}, r"a\.parquet: no column 'more', which .*b\.parquet has"),
        ({"size": KINDS[np.zeros(N, int)]}, r"b\.parquet: column \"size\" holds text"),
        ({"size": np.full(N, np.nan)}, r"b\.parquet: row 0 \(from 0\), column \"size\" is nan"),
        ({"size": np.full(N, np.inf)}, r"b\.parquet: row 0 \(from 0\), column \"size\" is inf"),
    ],
)
def test_a_file_that_does_not_fit_the_others_is_named(tmp_path, change, fault):
    write_parquet(tmp_path / "a.parquet", columns())
    second = {k: v for k, v in (columns() | change).items() if v is not None}
    write_parquet(tmp_path / "b.parquet", second)
    with pytest.raises(DataError, match=fault):
        loaded(tmp_path, task="classification", target="kind")


def test_a_gap_in_a_parquet_file_names_its_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    for column, fault in (
        ([1.0, None, 3.0], r"row 1 \(from 0\), column \"x\" is nan"),
        (["a", "b", None], r'row 2 \(from 0\), column "y" is empty'),
    ):
        number = column if isinstance(column[0], float) else [1.0, 2.0, 3.0]
        label = column if isinstance(column[0], str) else ["a", "b", "a"]
        parquet.write_table(pyarrow.table({"x": number, "y": label}), path, row_group_size=2)
        with pytest.raises(DataError, match=fault):
            loaded(path, task="classification")
