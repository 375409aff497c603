"""What is added from outside the package works as if it were built in: one object, one table."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddpbp.cli.main import run
from ddpbp.data.formats.table import FORMATS, Format
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import Array, Contents, Rows, Schema
from ddpbp.metrics.metric import Float64, Metric
from ddpbp.metrics.table import METRICS

SMALL = ["epochs=2", "batch_size=16", "model.hidden=[4]"]


# --- a format ------------------------------------------------------------------------------------


class BitsRows(Rows):
    """A text of lines like 01101: a column per character."""

    def __init__(self, path: Path) -> None:
        self._lines = path.read_text().split()

    @property
    def schema(self) -> Schema:
        columns = len(self._lines[0])
        return Schema((columns,), np.dtype(np.uint8), tuple("abcdefgh"[:columns]))

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: slice, out: Array) -> None:
        out[...] = [[int(bit) for bit in line] for line in self._lines[rows]]


def open_bits(path: Path, options: SourceOptions) -> Contents:
    return Contents(str(path), "", BitsRows(path))


def test_a_format_trains_evaluates_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FORMATS, "bits", Format("bits", ("*.bits",), open_bits))
    bits = np.random.default_rng(0).integers(0, 2, (60, 3))
    bits[:, 2] = bits[:, 0] ^ bits[:, 1]
    text = "".join("".join(map(str, row)) + "\n" for row in bits)
    (tmp_path / "xor.bits").write_text(text)
    (tmp_path / "xor.csv").write_text(
        "a,b,c\n" + "\n".join(",".join(line) for line in text.split())
    )
    outputs = []
    for ending in ("bits", "csv"):
        data, folder = str(tmp_path / f"xor.{ending}"), str(tmp_path / ending)
        assert run(["train", f"data.source={data}", *SMALL, f"output={folder}"]) == 0
        capsys.readouterr()
        assert run(["eval", folder, data, "--json"]) == 0
        assert run(["predict", folder, data]) == 0
        outputs.append(capsys.readouterr().out)
    assert "accuracy" in outputs[0]
    assert outputs[0] == outputs[1]


# --- a metric ------------------------------------------------------------------------------------


def _right_of_class(a: Array, y: Array) -> Float64:
    """Return the right answers of each class, and the examples of each."""
    n = len(a)
    right = a.argmax(axis=0) == y
    return np.concatenate([np.bincount(y[right], minlength=n), np.bincount(y, minlength=n)]) * 1.0


def _balanced(sums: Float64, examples: int, outputs: int) -> float:
    right, of = sums.reshape(2, outputs)
    assert of.sum() == examples
    return float((right / np.maximum(of, 1.0)).mean())


BALANCED = Metric(
    "balanced", ("classification",), lambda outputs: 2 * outputs, _right_of_class, _balanced
)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_metric_is_reported_beside_the_others(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr("ddpbp.metrics.table.METRICS", [*METRICS, BALANCED])
    ways = ["--simulate-ranks", "3"] if ranks > 1 else []
    assert run(["train", *SMALL, f"output={tmp_path}/run", *ways]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0.0 < result["test_balanced"] <= 1.0
    assert result["test_balanced"] == pytest.approx(result["test_accuracy"], abs=0.05)
    assert result["test_balanced"] != result["test_accuracy"]
