"""The files of a run: every format so far is read, a later one refused, damage noticed."""

import contextlib
import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpbp.base.hashing import digest
from ddpbp.cli.main import run
from ddpbp.config.settings import CheckpointConfig
from ddpbp.data.standardization import Standardization
from ddpbp.errors import DataError
from ddpbp.nn.network import Network
from ddpbp.store.checkpoint import (
    State,
    find_checkpoint,
    read_checkpoint,
    read_state,
    steps_in,
    write_checkpoint,
)
from ddpbp.store.checkpoint_writer import prune
from ddpbp.store.files import read_bytes, read_json, write_whole
from ddpbp.store.model_file import StoredModel, read_header, read_model, write_model
from ddpbp.store.run_folder import MetricsMark, metrics_until
from ddpbp.store.tensors import encode, read_metadata, read_tensors

STORED = Path(__file__).parent / "data/formats"
ROWS = STORED / "rows.csv"
FORMATS = [1, 2]
NEWEST = STORED / f"format-{FORMATS[-1]}"
STEP = "checkpoints/step-00000006"


def theta_sha256(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["theta_sha256"])


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", FORMATS)
def test_a_model_of_every_format_is_read(number):
    folder = STORED / f"format-{number}"
    assert read_header(folder)["format"] == number
    model, newest = read_model(folder), read_model(str(NEWEST / "model.safetensors"))
    assert digest([model.theta.flat]) == theta_sha256(folder)
    assert model.classes == ("fern", "moss", "reed")
    assert model.columns == ("height", "width", "age")
    assert model.target == "kind"
    assert model.standardization
    assert newest.standardization
    np.testing.assert_array_equal(model.standardization.mean, newest.standardization.mean)
    np.testing.assert_array_equal(model.standardization.deviation, newest.standardization.deviation)


@pytest.mark.parametrize("number", FORMATS)
def test_a_model_of_every_format_predicts_what_it_did(number, capsys):
    outputs = []
    for folder in (STORED / f"format-{number}", NEWEST):
        assert run(["predict", str(folder), str(ROWS)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    # On another machine the last bits may be others.
    rows, expected = (
        list(csv.reader(text.splitlines()))
        for text in (outputs[0], (STORED / f"format-{number}/predictions.csv").read_text())
    )
    assert [row[0] for row in rows] == [row[0] for row in expected]
    np.testing.assert_allclose(
        np.array([row[1:] for row in rows[1:]], float),
        np.array([row[1:] for row in expected[1:]], float),
        rtol=1e-4,
    )


def test_a_checkpoint_of_every_format_is_read_and_resumed(tmp_path, capsys):
    hashes = set()
    for number in FORMATS:
        checkpoint = STORED / f"format-{number}" / STEP
        state = read_state(checkpoint)
        assert state.format == number
        vectors = read_checkpoint(str(checkpoint)).vectors
        assert digest([vectors["theta"]]) == state.theta_sha256
        assert vectors.keys() == {"theta", "optimizer.m", "optimizer.v"}
        config = STORED / f"format-{number}/config.toml"
        out = tmp_path / str(number)
        words = ["train", str(config), f"data.source={ROWS}", "epochs=3", f"output={out}"]
        # Forced: the path of the data, and perhaps the machine, is another one.
        assert run([*words, "--resume", str(checkpoint), "--force"]) == 0, capsys.readouterr().err
        assert read_state(out / "checkpoints/step-00000009").format == FORMATS[-1]
        hashes.add(theta_sha256(out))
    assert len(hashes) == 1


def with_description(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a model file with a changed description and the hash that belongs to it."""
    description = json.loads(read_metadata(source)["ddpbp"])
    change(description)
    text = json.dumps(description)
    metadata = {"ddpbp": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_whole(target, encode(read_tensors(source), metadata))


def test_a_model_of_a_later_format_is_refused_in_one_sentence(tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    with_description(NEWEST / "model.safetensors", file, lambda d: d.update(format=3, config="?"))
    assert run(["predict", str(tmp_path), str(ROWS)]) == 2
    assert capsys.readouterr().err == (
        f"ddpbp: {file} is of format 3, and this ddpbp reads formats 1 to 2: "
        "use a newer version of ddpbp\n"
    )


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    shutil.copytree(NEWEST / STEP, tmp_path / "step-00000006")
    file = tmp_path / "step-00000006/state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 3}))
    with pytest.raises(DataError, match=r"state\.json is of format 3, and .* formats 1 to 2"):
        find_checkpoint(str(tmp_path / "step-00000006"), tmp_path)


# --- damage --------------------------------------------------------------------------------------


def test_one_flipped_bit_anywhere_in_a_model_is_noticed(tmp_path):
    content = (NEWEST / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    read_model(file)
    unnoticed = []
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with contextlib.suppress(DataError):
            read_model(file)
            unnoticed.append(place)
    assert unnoticed == []


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown activation": lambda d: d.update(hidden="zzz"),
    "no settings": lambda d: d.pop("config"),
    "other sizes": lambda d: d.update(sizes=[3, 5, 3]),
    "no hash of the weights": lambda d: d.pop("theta_sha256"),
    "a mean is missing": lambda d: d["standardization"]["mean"].pop(),
    "a mean is no number": lambda d: d["standardization"].update(mean=["a", "b", "c"]),
    "a mean is no finite number": lambda d: d["standardization"]["mean"].__setitem__(0, math.nan),
    "a deviation is 0": lambda d: d["standardization"]["deviation"].__setitem__(0, 0.0),
    "a deviation is below 0": lambda d: d["standardization"]["deviation"].__setitem__(0, -1.0),
    "a class too many": lambda d: d["classes"].append("more"),
    "two classes of one name": lambda d: d["classes"].__setitem__(0, d["classes"][1]),
    "a column too few": lambda d: d.update(columns=["a"]),
    "sizes beyond the file": lambda d: d.update(sizes=[10**9, 10**9, d["sizes"][-1]]),
    "no format": lambda d: d.update(format=0),
    "no layer": lambda d: d.update(sizes=[]),
    "settings are a number": lambda d: d.update(config=5),
    "a target is a number": lambda d: d.update(target=5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_description_that_does_not_fit_is_refused(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    with_description(NEWEST / "model.safetensors", file, DAMAGE[damage])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        read_model(file)


def test_a_header_larger_than_its_file_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="its header would have 1,099,511,627,776 bytes"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a": NaN}', b'{"a": "\xff"}', b'{"a":' + b"[" * 100_000]
)
def test_what_is_no_json_object_is_damaged(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(DataError, match=r"result\.json is damaged: "):
        read_json(str(tmp_path / "result.json"))


def test_reading_is_bounded_and_names_the_file(tmp_path):
    (tmp_path / "latest").write_bytes(b"12345")
    assert read_bytes(tmp_path / "latest", 5) == b"12345"
    with pytest.raises(DataError, match="latest is damaged: it is larger than 4 bytes"):
        read_bytes(tmp_path / "latest", 4)
    with pytest.raises(DataError, match="gone cannot be read: No such file"):
        read_bytes(tmp_path / "gone")


# --- writing -------------------------------------------------------------------------------------


def test_what_was_there_stays_if_a_write_fails(tmp_path):
    write_whole(str(tmp_path / "file"), [b"before"])
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", [b"after", None])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_the_writer_of_tensors_and_the_library_agree(tmp_path):
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        "float32": rng.random((3, 5), np.float32),
        "float64": rng.random(7),
        "a column": rng.random((4, 3))[:, 1],
        "transposed": rng.random((4, 3)).T,
        "empty": np.empty((0, 3)),
        "float16": rng.random(3).astype(np.float16),
    }
    write_whole(tmp_path / "file", encode(tensors, {"key": "wärme"}))
    assert read_metadata(str(tmp_path / "file")) == {"key": "wärme"}
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_a_sequential_of_torch_loads_the_weights_strictly():
    """Its `load_state_dict` wants these names and shapes, and refuses any other."""
    assert {name: w.shape for name, w in load_file(NEWEST / "model.safetensors").items()} == {
        "0.weight": (4, 3),
        "0.bias": (4,),
        "2.weight": (3, 4),
        "2.bias": (3,),
    }


def test_the_standardization_comes_back_bit_for_bit(tmp_path):
    bits = np.random.default_rng(1).integers(0, 2**64, (2, 9000), np.uint64).view(np.float64)
    bits[:, :3] = [5e-324, -0.0, 1.7976931348623157e308], [2.2250738585072014e-308, 0.1, 1 / 3]
    mean, deviation = bits[:, np.isfinite(bits).all(axis=0)]
    deviation = np.abs(deviation)
    network = Network((len(mean), 1), "relu", "softmax", np.dtype(np.float32))
    theta = network.views(np.zeros(network.parameter_count, np.float32))
    standardization = Standardization(mean, deviation)
    config = read_model(NEWEST).config
    write_model(tmp_path / "m", StoredModel(config, network, theta, None, standardization))
    read = read_model(tmp_path / "m").standardization
    assert read
    assert len(mean) > 8000
    assert digest([read.mean, read.deviation]) == digest([mean, deviation])


def test_a_model_without_standardization_has_none(tmp_path):
    write_model(str(tmp_path / "m"), replace(read_model(NEWEST), standardization=None))
    assert read_model(tmp_path / "m").standardization is None


def test_a_header_is_read_without_numpy(python):
    code = f"""
import sys
from ddpbp.store.model_file import read_header
assert read_header({str(NEWEST)!r})["config"]["kernel"] == "native"
assert "numpy" not in sys.modules, "NumPy is loaded"
"""
    ended = python("-c", code)
    assert ended.returncode == 0, ended.stderr


# --- checkpoints that are kept -------------------------------------------------------------------


def test_the_best_of_the_kept_checkpoints_is_named(tmp_path):
    path, state, vectors = read_checkpoint(NEWEST / STEP)
    model: StoredModel = read_model(path)
    losses = {1: 4.0, 2: 1.0, 3: None, 4: 1.0, 5: 2.0, 6: 3.0}
    for step, loss in losses.items():
        changed: State = msgspec.structs.replace(state, step=step, score=loss)
        write_checkpoint(str(tmp_path), model, vectors, changed)
    prune(str(tmp_path), 6, CheckpointConfig(keep_last=1, keep_best=3))
    assert [*steps_in(str(tmp_path))] == [6, 5, 4, 2]
    assert (tmp_path / "best").read_text() == "step-00000002\n"
    prune(tmp_path, 6, CheckpointConfig(keep_last=1))
    assert [*steps_in(tmp_path)] == [6]
    assert not (tmp_path / "best").exists()
    assert read_checkpoint(tmp_path / "step-00000006").state.score == 3.0


LINES = [b'{"kind":"step","epoch":1,"step":4}\n', b'{"kind":"epoch","epoch":1,"step":4}\n']
CUTS = [b'{"kind":"step","epo', b'"\xff"\n', b'{"kind":"step","epoch":1,"step":4,"loss":"\xff"}\n']


@pytest.mark.parametrize("cut", CUTS)
def test_a_last_line_that_a_kill_cut_off_is_no_damage(tmp_path, cut):
    assert metrics_until(str(tmp_path), 1, 4) == (b"", [])
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*LINES, cut]))
    assert metrics_until(tmp_path, 1, 4) == (b"".join(LINES), [])
    assert metrics_until(tmp_path, 0, 4) == (LINES[0], [])


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_line_is_named_and_those_after_it_are_kept(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([LINES[0], cut.rstrip() + b"\n", LINES[1]]))
    lines, notes = metrics_until(tmp_path, 1, 4)
    assert lines == b"".join(LINES)
    assert notes == [
        f"{tmp_path / 'metrics.jsonl'} is damaged: line 2 cannot be read; the records that can be "
        "read are kept"
    ]


def test_metrics_are_verified_against_the_mark_of_the_checkpoint(tmp_path):
    file, whole = tmp_path / "metrics.jsonl", b"".join(LINES)
    mark = MetricsMark(len(whole), hashlib.sha256(whole).hexdigest())
    file.write_bytes(whole + LINES[0] + b"{")
    assert metrics_until(tmp_path, 1, 4, mark) == (whole, [])
    file.write_bytes(whole.replace(b'"epoch":1', b'"epoch":0', 1))
    lines, [note] = metrics_until(tmp_path, 1, 4, mark)
    assert lines == file.read_bytes()
    assert "its records do not match the hash in the checkpoint" in note
    file.write_bytes(LINES[0])
    lines, [note] = metrics_until(tmp_path, 1, 4, mark)
    assert lines == LINES[0]
    assert "it has 35 of 71 bytes" in note


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        metrics_until(tmp_path, 1, 4)
