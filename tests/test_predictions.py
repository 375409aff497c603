"""Predictions and scores by parts: any number of ranks, the same bytes; a fault leaves no file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpbp import api
from ddpbp.cli.main import run

ROWS = 5_000  # ten leaves


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("predictions")
    r = np.random.default_rng(1)
    x = r.normal(3, 2, (ROWS, 4))
    kind = np.array(["low", "mid", "top"])[np.digitize(x.sum(1), (10, 14))]
    lines = [
        ",".join([*map(repr, row), label]) for row, label in zip(x.tolist(), kind, strict=True)
    ]
    (folder / "t.csv").write_text("\n".join(["a,b,c,d,kind", *lines]) + "\n")
    words = [f"data.source={folder / 't.csv'}", "epochs=1", f"output={folder / 'run'}"]
    assert run(["train", *words]) == 0
    return folder


@pytest.mark.parametrize("ending", ["csv", "npy", "parquet"])
def test_any_ranks_write_the_same_file(trained, tmp_path, ending):
    contents = set()
    for ranks in (
        [],
        ["--simulate-ranks", "2"],
        ["--simulate-ranks", "3"],
        ["--simulate-ranks", "11"],
    ):
        path = tmp_path / f"p.{ending}"
        assert (
            run(["predict", str(trained / "run"), str(trained / "t.csv"), "-o", str(path), *ranks])
            == 0
        )
        contents.add(path.read_bytes())
    assert len(contents) == 1
    expected = api.predict(trained / "run", str(trained / "t.csv"))
    if ending == "npy":
        np.testing.assert_array_equal(np.load(path), expected)
    if ending == "parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
        assert table.column_names == ["prediction", "low", "mid", "top"]
        np.testing.assert_array_equal(
            np.c_[*(table.column(name).to_numpy() for name in ("low", "mid", "top"))], expected
        )
        best = np.array(["low", "mid", "top"])[expected.argmax(1)]
        assert table.column("prediction").to_pylist() == best.tolist()


def test_a_late_fault_has_one_message_and_leaves_no_file(trained, tmp_path, capsys):
    lines = (trained / "t.csv").read_text().splitlines()
    lines[4_321] = lines[4_321].replace(",", ",x,", 1).rsplit(",", 1)[0]
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    path, messages = tmp_path / "p.csv", set()
    for ranks in ([], ["--simulate-ranks", "3"]):
        words = ["predict", str(trained / "run"), str(tmp_path / "bad.csv"), "-o", str(path)]
        assert run([*words, *ranks]) == 2
        messages.add(capsys.readouterr().err)
        assert not path.exists()
    assert len(messages) == 1
    assert "bad.csv, line 4322, column \"b\": found 'x'" in messages.pop()


def test_a_score_of_other_data_is_the_same_by_parts(trained, capsys):
    scores = set()
    for ranks in ([], ["--simulate-ranks", "3"]):
        assert run(["eval", str(trained / "run"), str(trained / "t.csv"), "--json", *ranks]) == 0
        scores.add(capsys.readouterr().out)
    assert len(scores) == 1
