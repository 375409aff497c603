"""`data info`: what a file holds, told without failing on gaps and text."""

import json

import numpy as np

from ddpbp.cli.main import run

MESSY = """,age,city,income,ok,y
0,31,"Rome, IT",1e5,True,a
1,,Paris,2e5,False,b
2,47,Oslo,NA,True,a
3,52,Rome,nan,True,c
"""


def test_a_messy_table_is_described(tmp_path, capsys):
    path, file = tmp_path / "messy.csv", tmp_path / "info.json"
    path.write_text(MESSY)
    assert run(["data", "info", str(path), "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "messy.csv: 4 rows" in out
    assert "target y: 3 classes, a classification: a 2, b 1, c 1" in out
    assert 'train would refuse: "city" is text: leave it out with data.exclude=city' in out
    assert 'train would refuse: "income": 2 of its values are missing' in out
    columns = {column["name"]: column for column in json.loads(file.read_text())["columns"]}
    assert [columns[name]["use"] for name in ("", "age", "y")] == ["", "feature", "target"]
    age = columns["age"]
    assert (age["least"], age["greatest"], age["gaps"]) == (31, 52, 1)
    assert age["mean"] == (31 + 47 + 52) / 3
    assert columns["ok"]["mean"] == 0.75


def test_what_it_tells_is_what_train_takes(tmp_path, capsys):
    path = tmp_path / "t.parquet"
    from pyarrow import Table, parquet

    r = np.random.default_rng(0)
    table = {"a": r.normal(size=5_000), "note": ["x"] * 5_000, "n": np.arange(5_000) % 7}
    parquet.write_table(Table.from_pydict(table), path)
    words = ["data.target=n", "data.exclude=note"]
    assert run(["data", "info", str(path), *words]) == 0
    out = capsys.readouterr().out
    assert "target n: 7 classes" in out
    assert "> 1,000" in out
    assert "refuse" not in out
    assert run(["train", f"data.source={path}", *words, "epochs=0", f"output={tmp_path}/r"]) == 0


def test_arrays_are_listed(tmp_path, capsys):
    np.savez(tmp_path / "t.npz", x=np.zeros((5, 2, 3)), y=np.arange(5))
    assert run(["data", "info", str(tmp_path / "t.npz")]) == 0
    assert "x           (5, 2, 3) float64" in capsys.readouterr().out
