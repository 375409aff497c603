"""The law of the bits, through the command line: numbers depend on the settings, never on ranks."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpbp.cli.main import run
from ddpbp.nn.optimizers import OPTIMIZERS
from tests.faults import law, messages
from tests.faults.drawn import DRAWS, draw_config

pytestmark = pytest.mark.law

DIGITS = ["data.source=digits", "epochs=1", "batch_size=64", "data.validation=0.1"]
# 1,813 rows: 1,178 to train on, 635 to validate, in evaluation leaves of 512 and 123.
SYNTHETIC = ["data.source=synthetic", "data.examples=1813", "data.validation=0.35", "epochs=2"]
CASES = {
    "sgd": DIGITS,
    "adam": [
        *DIGITS,
        "optimizer.name=adam",
        "optimizer.learning_rate=0.01",
        "optimizer.clip_norm=0.5",
        "model.dropout=0.3",
        "model.hidden=[40, 30]",
        "schedule.name=cosine",
        "schedule.warmup_steps=5",
    ],
    "lamb": [
        *DIGITS,
        "optimizer.name=lamb",
        "optimizer.learning_rate=0.02",
        "optimizer.weight_decay=0.1",
    ],
    "float64": [*DIGITS, "model.dtype=float64", "model.activation=tanh"],
    "uneven leaves": [
        *SYNTHETIC,
        "data.features=11",
        "data.classes=3",
        "batch_size=250",
        "micro_batch_size=32",
    ],
    # 107 rows to train on: the last batch is 11, its leaves 5, 5 and 1; fewer leaves than ranks.
    "one of each": [
        "data.source=synthetic",
        "data.examples=119",
        "data.features=1",
        "data.targets=1",
        "loss.name=squared_error",
        "batch_size=32",
        "micro_batch_size=5",
        "epochs=2",
        "model.hidden=[9]",
    ],
    # Gradients summed block by block in the cache, and too long to send at once.
    "wide": [
        *SYNTHETIC,
        "data.features=50",
        "data.targets=3",
        "loss.name=binary_cross_entropy",
        "data.task=multilabel",
        "model.hidden=[300, 200]",
        "batch_size=256",
    ],
}
CASES["wire"] = [*CASES["wide"], "wire=bf16"]
ALL = [*CASES]

Numbers = Callable[[Path], dict[str, Any]]


def command(case: str, folder: Path) -> list[str]:
    logged = ["log_every_steps=1", "check_every_steps=7"]
    return ["train", *CASES[case], *logged, "--output", str(folder), "--overwrite"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run_folder) -> Callable[[str], dict[str, Any]]:
    """Return what one process computes, by case."""
    found: dict[str, dict[str, Any]] = {}

    def numbers(case: str) -> dict[str, Any]:
        if case not in found:
            folder = tmp_path_factory.mktemp("alone")
            assert run([*command(case, folder), "threads=1"]) == 0
            found[case] = run_folder(folder)
        return found[case]

    return numbers


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("case", CASES)
def test_simulated_ranks_give_the_numbers_of_one(alone, run_folder, tmp_path, case, ranks):
    assert run([*command(case, tmp_path), "--simulate-ranks", str(ranks)]) == 0
    assert run_folder(tmp_path) == alone(case)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_threads_give_the_numbers_of_one(alone, run_folder, tmp_path, case, threads):
    assert run([*command(case, tmp_path), f"threads={threads}"]) == 0
    assert run_folder(tmp_path) == alone(case)


@pytest.mark.parametrize("case", ["adam", "one of each", "wide"])
def test_threads_of_several_ranks_give_the_numbers_of_one(
    alone, mpirun, run_folder, tmp_path, case
):
    both = [*command(case, tmp_path), "threads=2"]
    assert run([*both, "--simulate-ranks", "3"]) == 0
    assert run_folder(tmp_path) == alone(case)
    ended = mpirun(2, "-m", "ddpbp", *both, "threads=3")
    assert ended.returncode == 0, ended.stderr
    assert run_folder(tmp_path) == alone(case)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["world_size"], result["threads"]) == (2, 3)


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (3, ALL),
        (2, ["adam", "wide", "wire"]),
        (4, ["one of each", "wide"]),
        (5, ["one of each", "adam"]),
    ],
)
def test_mpi_ranks_give_the_numbers_of_one(alone, mpirun, run_folder, tmp_path, ranks, cases):
    for case in cases:
        ended = mpirun(ranks, "-m", "ddpbp", *command(case, tmp_path))
        assert ended.returncode == 0, ended.stderr
        assert run_folder(tmp_path) == alone(case), case
        assert json.loads((tmp_path / "result.json").read_text())["world_size"] == ranks


def test_a_process_of_its_own_gives_the_same_numbers(alone, python, run_folder, tmp_path):
    ended = python("-m", "ddpbp", *command("wide", tmp_path), OPENBLAS_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr
    assert "OPENBLAS_NUM_THREADS=2 is overridden" in ended.stdout
    assert run_folder(tmp_path) == alone("wide")


def test_every_number_is_compared(alone):
    for case in CASES:
        found = alone(case)
        steps = [r["loss"] for r in found["records"] if r["kind"] == "step"]
        assert len(steps) == found["steps"] > 3
        assert all(np.isfinite(steps))
        assert len(set(steps)) > 3
        assert {"theta_sha256", "train_loss", "validation_loss"} <= set(found)
    assert len({alone(case)["theta_sha256"] for case in CASES}) == len(CASES)


def test_rows_of_the_file_are_counted_once(tmp_path, capsys):
    """Scores of 1,031 rows equal those computed from the predictions, row by row."""
    rows = np.random.default_rng(0).random((1031, 4))
    rows[:, 3] = rows[:, :3].sum(1) > 1.5
    np.save(tmp_path / "data.npy", rows)
    trained = ["epochs=2", "model.hidden=[5]", f"data.source={tmp_path / 'data.npy'}"]
    assert run(["train", *trained, f"output={tmp_path / 'run'}"]) == 0
    given = [str(tmp_path / "run"), str(tmp_path / "data.npy")]
    assert run(["predict", *given, "-o", str(tmp_path / "p.npy")]) == 0
    capsys.readouterr()
    assert run(["eval", *given, "--json"]) == 0
    right = np.load(tmp_path / "p.npy").argmax(1) == rows[:, 3]
    assert json.loads(capsys.readouterr().out)["accuracy"] == right.sum() / 1031


@pytest.mark.parametrize("case", ["wide", "one of each"])
def test_eval_and_predict_give_the_same_on_3_ranks(mpirun, tmp_path, capsys, case):
    folder, table = tmp_path / "run", tmp_path / "table.npz"
    assert run(command(case, folder)) == 0
    features, targets = (50, 3) if case == "wide" else (1, 1)
    random = np.random.default_rng(1)
    np.savez(table, x=random.random((1031, features)), y=random.random((1031, targets)) > 0.5)
    eval_ = ["eval", str(folder), "--json"]
    predict = ["predict", str(folder), str(table)]
    for arguments in (eval_, [*eval_, str(table)], predict):
        capsys.readouterr()
        assert run(arguments) == 0
        expected = capsys.readouterr().out
        assert run([*arguments, "--simulate-ranks", "3"]) == 0
        assert capsys.readouterr().out == expected
        ended = mpirun(3, "-m", "ddpbp", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == expected
    assert expected.count("\n") == 1032


@pytest.mark.timeout(400)
def test_random_configurations_give_the_numbers_of_one_process():
    """The short form of tests/faults/law.py."""
    with law.batch("short", 4) as batch:
        batch.compute(law.Way(ranks=3, hosts="0,1,0"))
        for _ in range(5):  # where a start takes long, a strike may come after the end
            if not batch.strikes:
                batch.disturb(2)
    assert batch.faults == []
    assert batch.compared > 4
    assert batch.strikes.total() > 0


def test_what_differs_is_found():
    numbers = {"code": 0, "records": [{"step": 1, "loss": 0.5}], "theta_sha256": "ab"}
    other = {"code": 0, "records": [{"step": 1, "loss": 0.25}], "theta_sha256": "cd"}
    assert law.differing(numbers, numbers) == []
    assert law.differing(other, numbers) == [
        "records 0 loss: 0.25 instead of 0.5",
        "theta_sha256: cd instead of ab",
    ]
    assert law.differing(None, numbers) == ["it did not end"]
    assert law.differing({"code": 0}, numbers) == [
        "records: only one has it",
        "theta_sha256: only one has it",
    ]


def test_every_setting_is_drawn(tmp_path, monkeypatch):
    configs = [draw_config(random.Random(i), tmp_path / str(i), "native") for i in range(200)]
    assert len({config.optimizer.name for config in configs}) == len(OPTIMIZERS)
    monkeypatch.delitem(DRAWS, "model.dropout")
    with pytest.raises(AssertionError, match=r"drawn nowhere, or gone: {'model.dropout'}"):
        draw_config(random.Random(0), tmp_path / "new", "native")


@pytest.mark.parametrize("name", ["not a number", "gradient too long", "newest damaged"])
def test_one_fault_has_the_same_message_on_any_number_of_ranks(name):
    """The short form of tests/faults/messages.py."""
    assert messages.check(name, ["1 rank", "2 threads", "3 simulated", "3 ranks"]) == []
