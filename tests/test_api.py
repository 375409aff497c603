"""What a script imports: it trains, evaluates and predicts as the commands do, with types."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import ddpbp
from ddpbp.api import Model
from ddpbp.cli.main import run

SMALL = ["epochs=2", "batch_size=32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return ddpbp.train(ddpbp.resolve(None, [*SMALL, f"output={folder}"]), overwrite=True)


def test_every_public_name_is_there_for_people_and_for_type_checkers():
    tree = ast.parse(Path(ddpbp.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == ddpbp._HOMES
    assert {*typed, "__version__"} == {*dir(ddpbp)}
    for name, home in typed.items():
        assert getattr(ddpbp, name or "").__module__.startswith(home or "ddpbp"), name


def test_a_name_that_is_not_there_is_refused_by_type_checkers_too():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ddpbp.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_module_does_not_take_the_name_of_a_function():
    assert callable(ddpbp.train)
    assert callable(ddpbp.evaluate)
    assert callable(ddpbp.predict)


def test_a_stored_model_is_the_trained_one(trained, tmp_path):
    trained.model.save(tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        model = ddpbp.load_model(path)
        np.testing.assert_array_equal(model.theta.flat, trained.model.theta.flat)
        assert model.classes == trained.model.classes


def test_a_script_gets_the_numbers_of_the_commands(trained, tmp_path, capsys):
    folder, rows = trained.model.config.output, tmp_path / "rows.npy"
    x = np.random.default_rng(0).integers(0, 17, (1000, 64))
    np.save(rows, x)
    capsys.readouterr()
    assert run(["predict", folder, str(rows), "-o", str(tmp_path / "p.npy")]) == 0
    expected = np.load(tmp_path / "p.npy")
    for outputs in (
        trained.model.predict(x),
        trained.model.predict(rows),
        ddpbp.predict(folder, str(rows)),
    ):
        np.testing.assert_array_equal(outputs, expected)
    names = trained.model.predict_class(x)
    assert names == [str(i) for i in expected.argmax(axis=1)]
    assert run(["eval", folder, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert ddpbp.evaluate(folder) == trained.model.evaluate() == scores
    assert scores["accuracy"] == trained.result["test_accuracy"]


def test_a_model_without_classes_has_none_to_predict(tmp_path):
    config = ddpbp.resolve("regression", ["epochs=0", f"output={tmp_path}"])
    model = ddpbp.train(config, overwrite=True).model
    with pytest.raises(ddpbp.DataError, match="no classes: use predict"):
        model.predict_class(np.zeros((1, model.network.sizes[0])))


def test_settings_of_a_script_have_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("epochs = 0")
    ddpbp.train(ddpbp.Config(epochs=0))
    ddpbp.train(ddpbp.resolve("mine.toml"))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits", "mine"}


def test_rows_that_do_not_fit_are_refused(trained):
    with pytest.raises(ddpbp.DataError, match="63 features in each row, the model takes 64"):
        trained.model.predict(np.zeros((3, 63)))
    with pytest.raises(ddpbp.DataError, match="finite"):
        trained.model.predict(np.full((3, 64), np.nan))


def test_the_parts_can_be_built_without_a_settings_file(tmp_path):
    """A script's own loss and schedule, on its own arrays, in a trainer of its own."""
    from ddpbp.base import tree
    from ddpbp.comm.all_reduce.choose import make_reducer
    from ddpbp.comm.all_reduce.reducer import Payload
    from ddpbp.data.dataset import Part
    from ddpbp.data.shards import Shards
    from ddpbp.nn.losses import LOSSES
    from ddpbp.nn.optimizers import OPTIMIZERS, Hyperparameters

    world, dtype = ddpbp.World(), np.dtype(np.float64)
    x = np.random.default_rng(1).standard_normal((90, 3))
    y = np.sin(x).sum(axis=1, keepdims=True)
    network = ddpbp.Network((3, 16, 1), "tanh", "identity", dtype)
    shards = Shards(len(x), 32, 8, 0, world.rank, world.world_size)
    payload = Payload(network.parameter_count, dtype, 1, shards.leaf_counts)
    parts = ddpbp.Parts(
        network=network,
        theta=ddpbp.initialize(network, "xavier_uniform", 0),
        shards=shards,
        backprop=ddpbp.Backprop(network, LOSSES["squared_error"].bind(), shards.capacity),
        reducer=make_reducer(world, payload),
        optimizer=OPTIMIZERS["sgd"](network, Hyperparameters()),
        learning_rate=lambda step: 0.2 / (1.0 + 0.01 * step),
    )
    trainer = ddpbp.Trainer(parts, Part(x, y), world)
    losses = [trainer.train_step(batch) for epoch in range(20) for batch in shards.epoch(epoch)]
    assert trainer.step == 60
    assert np.mean(losses[-3:]) < 0.2 * np.mean(losses[:3])
    assert tree.leaf_count(32, 8) == 4


KERNEL = """
import os, sys, warnings
{before}
import ddpbp
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = ddpbp.load_model({path!r})
print(os.environ.get("OPENBLAS_CORETYPE"), [str(w.message) for w in caught])
"""


@pytest.mark.parametrize("before", ["", "import numpy"])
def test_a_model_is_used_on_its_kernel_or_a_warning_says_that_it_is_not(tmp_path, before):
    config = ddpbp.resolve(None, [*SMALL, f"output={tmp_path / 'run'}"])
    config.kernel = "haswell"
    with pytest.warns(RuntimeWarning, match='kernel = "haswell" has no effect'):
        ddpbp.train(config)
    code = KERNEL.format(before=before, path=str(tmp_path / "run"))
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    expected = 'None [\'kernel = "haswell" has no effect' if before else "Haswell []"
    assert ended.stdout.startswith(expected)


@pytest.mark.parametrize(
    "call",
    [
        ddpbp.load_model,
        ddpbp.evaluate,
        lambda path: ddpbp.predict(path, np.zeros((2, 64))),
        lambda path: ddpbp.train(ddpbp.load_model(path).config, overwrite=True),
    ],
    ids=["load_model", "evaluate", "predict", "train"],
)
def test_a_warning_names_the_line_of_the_script(trained, tmp_path, call):
    stored = trained.model.stored
    config = msgspec.structs.replace(stored.config, kernel="haswell", output=str(tmp_path))
    Model(replace(stored, config=config)).save(tmp_path / "model.safetensors")
    with pytest.warns(RuntimeWarning, match="has no effect") as caught:
        call(tmp_path)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    ("raising", "error", "code"),
    [("{1}", "ValueError", 1), ("{0}", "ddpbp.DataError", 2), ("{0, 1, 2}", "ddpbp.Diverged", 3)],
    ids=["one", "first", "all"],
)
def test_an_exception_of_a_script_ends_all_ranks_with_its_code(mpirun, raising, error, code):
    script = (
        "import ddpbp\n"
        "world = ddpbp.join()\n"
        f"if world.rank in {raising}: raise {error}('only here')\n"
        "world.all_gather_object(None)\n"
    )
    ended = mpirun(3, "-c", script, seconds=30)
    assert ended.returncode == code, ended.stderr
    assert "only here" in ended.stderr
    assert ended.seconds < 20
