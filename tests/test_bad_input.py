"""Bad input ends on every rank: the documented exit code, one message on rank 0, within seconds."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpbp.cli.main import run

X = np.arange(36.0).reshape(12, 3)
Y = np.arange(12) % 3


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def d(tmp_path_factory) -> Path:
    """Make a folder with one file for each fault, and a model."""
    folder: Path = tmp_path_factory.mktemp("bad")
    texts = {
        "keys.toml": "epochs = 1\n[optimizer]\nlearnin_rate = 0.1\n",
        "broken.toml": "epochs = = 1\n",
        "cut.csv": "a,b,kind\n1,2,x\n3,4,y\n5,",
        "ragged.csv": "a,b,kind\n1,2,x\n3,4,5,y\n5,6,x\n",
        "twice.csv": "a,b,b,kind\n1,2,3,x\n3,4,5,y\n",
        "text.csv": "a,b,kind\n1,2,x\n3,red,y\n5,6,x\n",
        "empty.csv": "a,b,kind\n",
        "one.csv": "a,b,kind\n" + "1,2,x\n" * 9,
        "good.csv": "a,b,kind\n" + "1,2,x\n3,4,y\n" * 9,
        "wide.csv": "a,b,c,kind\n1,2,3,x\n4,5,6,y\n",
        "renamed.csv": "a,c,kind\n1,2,x\n3,4,y\n",
        "other.csv": "a,b,kind\n" + "1,2,x\n3,4,z\n" * 9,
        "model.safetensors": "no model",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    np.save(folder / "good.npy", np.c_[X, Y])
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-7])
    np.save(folder / "nan.npy", np.where(np.c_[X, Y] == 7, np.nan, np.c_[X, Y]))
    np.savez(folder / "unseen.npz", x=X, y=Y, x_test=X, y_test=Y + 1)
    np.save(folder / "object.npy", np.array([[Bomb(folder / "bang")] * 3] * 4, object))
    (folder / "idx").mkdir()
    images = bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(range(36))
    (folder / "idx/train-images.gz").write_bytes(gzip.compress(images)[:-12])
    (folder / "idx/train-labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, *range(9)]))
    small = ["epochs=1", "batch_size=8", "data.standardize=false"]
    assert run(["train", f"data.source={folder / 'good.csv'}", *small, f"output={folder}/run"]) == 0
    return folder


# Name: what is typed ({d} is the folder above), and what the one message must tell.
TABLE: dict[str, tuple[str, list[str]]] = {
    "unknown key": (
        "train optimizer.learnin_rate=1",
        ["unknown setting optimizer.learnin_rate", "did you mean optimizer.learning_rate?"],
    ),
    "unknown key in a file": ("train {d}/keys.toml", ["keys.toml", "optimizer.learning_rate?"]),
    "unknown name": ("train optimizer.name=adm", ["optimizer.name = 'adm'", "did you mean adam?"]),
    "wrong type": ("train epochs=many", ["argument epochs=many: epochs = 'many'", "int"]),
    "wrong type inside": ("train model.hidden=[8,x]", ["model.hidden"]),
    "out of range": ("train model.dropout=1.5", ["model.dropout = 1.5", "<= 0.99"]),
    "not finite": ("train optimizer.learning_rate=inf", ["optimizer.learning_rate", "finite"]),
    "no value": ("train {d}/run/config.toml epochs", ["'epochs'", "key=value"]),
    "no run folder": ("train output=", ["argument output=", "length >= 1"]),
    "deep": ("train epochs=" + "[" * 3000, ["argument epochs=", "expected `int`"]),
    "missing configuration": ("train {d}/kyes.toml", ["kyes.toml does not", "{d}/keys.toml?"]),
    "broken configuration": ("train {d}/broken.toml", ["broken.toml is not TOML", "line 1"]),
    "missing file": ("train data.source={d}/gone.npy", ["{d}/gone.npy: no such file"]),
    "misspelt source": ("train data.source=digit", ["did you mean 'digits'"]),
    "truncated npy": ("train data.source={d}/cut.npy", ["{d}/cut.npy: cut short"]),
    "truncated gz": ("train data.source={d}/idx", ["{d}/idx/train-images.gz: cut short"]),
    "truncated csv": ("train data.source={d}/cut.csv", ["{d}/cut.csv", "line 4"]),
    "ragged csv": ("train data.source={d}/ragged.csv", ["{d}/ragged.csv", "line 3", "4 field"]),
    "nan": ("train data.source={d}/nan.npy", ["{d}/nan.npy", "row 2, column 1", "nan"]),
    "unseen label": ("train data.source={d}/unseen.npz", ["{d}/unseen.npz: test", "holds 3"]),
    "unseen class": (
        "train data.source={d}/good.csv data.test={d}/other.csv",
        ["{d}/other.csv", "class 'z'", "x, y"],
    ),
    "text": ("train data.source={d}/text.csv", ["{d}/text.csv", 'line 3, column "b"', "'red'"]),
    "two columns of one name": (
        "train data.source={d}/twice.csv",
        ["{d}/twice.csv: two columns are named 'b'"],
    ),
    "eval: two columns of one name": (
        "eval {d}/run {d}/twice.csv",
        ["{d}/twice.csv: two columns are named 'b'"],
    ),
    "empty": ("train data.source={d}/empty.csv", ["{d}/empty.csv", "no rows"]),
    "one class": ("train data.source={d}/one.csv", ["{d}/one.csv", "'x'", "two classes"]),
    "pickle": ("train data.source={d}/object.npy", ["{d}/object.npy", "pickled object array"]),
    "run folder below a file": ("train output={d}/good.csv/run", ["good.csv/run", "output="]),
    "run folder is a run": ("train output={d}/run", ["{d}/run already holds", "--overwrite"]),
    "more ranks than leaves": (
        "train --dry-run --ranks 9",
        ["9 ranks", "8 leaves", "batch_size = 64", "micro_batch_size = 8"],
    ),
    "ranks without dry run": ("train --ranks 3", ["mpirun -n 3 python -m ddpbp train"]),
    "nothing left": ("train data.validation=0.5 data.test=0.5", ["data.test", "less than 1"]),
    "eval: no model": ("eval {d}/gone", ["{d}/gone does not exist"]),
    "eval: damaged model": ("eval {d}/model.safetensors", ["model.safetensors is damaged"]),
    "eval: other columns": (
        "eval {d}/run {d}/renamed.csv",
        ["no column 'b' among a, c", "trained on a, b"],
    ),
    "smoothing without classes": (
        "train loss.name=squared_error loss.label_smoothing=0.1",
        ["loss.label_smoothing = 0.1", "cross_entropy, not squared_error"],
    ),
    "predict: other columns": (
        "predict {d}/run {d}/unseen.npz",
        ["unseen.npz: 3 features", "takes 2"],
    ),
    "predict: other suffix": (
        "predict {d}/run {d}/good.csv -o {d}/p.txt",
        ["*.npy and *.parquet"],
    ),
}
# These need a run folder that may be written.
OUTPUT = ["--output", "{d}/out"]


def words(name: str, d: Path) -> list[str]:
    line = TABLE[name][0].split()
    if line[0] == "train" and "output=" not in TABLE[name][0]:
        line += OUTPUT
    return [word.replace("{d}", str(d)) for word in line]


@pytest.mark.parametrize("simulated", [[], ["--simulate-ranks", "3"]], ids=["1", "3 simulated"])
@pytest.mark.parametrize("name", TABLE)
def test_one_message_and_exit_code_2(d, capsys, name, simulated):
    capsys.readouterr()
    assert run([*words(name, d), *simulated]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ddpbp: ")
    assert err.count("\n") == 1
    for fragment in TABLE[name][1]:
        assert fragment.replace("{d}", str(d)) in err
    assert not (d / "bang").exists()
    assert not (d / "out/config.toml").exists()


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("unknown key", 3),
        ("truncated npy", 2),
        ("one class", 3),
        ("run folder below a file", 2),
        ("eval: other columns", 3),
    ],
)
def test_the_same_message_once_from_several_ranks(d, capsys, mpirun, name, ranks):
    capsys.readouterr()
    assert run(words(name, d)) == 2
    message = capsys.readouterr().err
    ended = mpirun(ranks, "-m", "ddpbp", *words(name, d))
    assert_ended(ended, 2, message.strip())


def assert_ended(ended, code: int, message: str) -> None:
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.count(message) == 1, ended.stderr
    assert ended.stderr.count("ddpbp: ") == 1
    assert "Traceback" not in ended.stderr
    assert ended.seconds < 10


def test_more_ranks_than_leaves(mpirun, tmp_path):
    ended = mpirun(
        3, "-m", "ddpbp", "train", "batch_size=8", "micro_batch_size=4", f"output={tmp_path}"
    )
    assert_ended(ended, 2, "3 ranks, but a batch has only 2 leaves (batch_size = 8, micro_batch")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_mpirun_of_another_mpi(python, rank):
    """Neither MPICH under Open MPI's mpirun, which dies in MPI_Init, nor singletons get through."""
    ended = python(
        *("-m", "ddpbp", "train", "--fast-dev-run"),
        OMPI_COMM_WORLD_SIZE="4",
        OMPI_COMM_WORLD_RANK=rank,
    )
    assert ended.returncode == 2
    if rank != "0":
        assert ended.stderr == ""
        return
    assert_ended(ended, 2, "mpirun belongs to another MPI than mpi4py's; start with the mpirun of")


def test_usage_error_is_told_once(mpirun, capsys):
    assert run(["train", "--epochs", "many"]) == 2
    message = "Invalid value for '--epochs': 'many'"
    assert message in capsys.readouterr().err
    ended = mpirun(2, "-m", "ddpbp", "train", "--epochs", "many")
    assert ended.returncode == 2
    assert ended.stderr.count(message) == 1


DIVERGING = [
    *("train", "data.source=synthetic", "data.examples=500", "data.features=3", "data.targets=2"),
    *("loss.name=squared_error", "optimizer.learning_rate=1e30", "batch_size=64", "epochs=2"),
]


def test_divergence_names_epoch_step_and_layer_the_same_on_all_ranks(mpirun, tmp_path, capsys):
    command = [*DIVERGING, f"output={tmp_path}", "--overwrite"]
    assert run(command) == 3
    message = capsys.readouterr().err
    place = "ddpbp: epoch 1, step 2: z of layer 2, leaf 0 (rows 0 to 7 of the batch), is not finite"
    assert message.startswith(place)
    assert message.count("\n") == 1
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "result.json").exists()
    for way in (["--simulate-ranks", "5"], ["threads=3"]):
        assert run([*command, *way]) == 3
        assert capsys.readouterr().err == message
    assert_ended(mpirun(3, "-m", "ddpbp", *command), 3, message.strip())


# What a rank does before it runs the command line: {rank} is its own.
DRIVER = """
import os, sys
from ddpbp.comm.join import launched
rank = launched()[0]
{before}
from ddpbp.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("there", "code", "message"),
    [
        (False, 2, "rank 2 on {host}: data.npy: no such file"),
        (True, 4, "data data.npy: rank 2 on {host} ("),
    ],
    ids=["missing", "different"],
)
def test_data_of_one_rank_only(mpirun, tmp_path, there, code, message):
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
        if rank < 2 or there:
            np.save(tmp_path / f"{rank}/data.npy", np.c_[X + (rank == 2), Y])
    (tmp_path / "driver.py").write_text(DRIVER.format(before="os.chdir(str(rank))"))
    ended = mpirun(
        *(3, tmp_path / "driver.py", "train", "data.source=data.npy", "epochs=1"), cwd=tmp_path
    )
    assert_ended(ended, code, message.format(host=os.uname().nodename))


def test_flipped_bit_stops_the_run(mpirun, tmp_path):
    before = """
from ddpbp.engine.trainer import Trainer
step = Trainer.train_step
def flipping(self, batch):
    loss = step(self, batch)
    if rank == 1 and self.step == 8:
        self.theta.flat.view("u1")[100] ^= 1
    return loss
Trainer.train_step = flipping
"""
    (tmp_path / "driver.py").write_text(DRIVER.format(before=before))
    ended = mpirun(
        *(3, tmp_path / "driver.py", "train", "check_every_steps=10", f"output={tmp_path}/run")
    )
    assert_ended(ended, 4, f"step 10: theta: rank 1 on {os.uname().nodename} (")
    fault = json.loads((tmp_path / "run/fault.json").read_text())
    assert (fault["step"], fault["exit_code"]) == (10, 4)
    assert fault["cause"] in ended.stderr


RAISING = """
import sys
from ddpbp.cli.main import run
from ddpbp.engine.trainer import Trainer
step = Trainer.train_step
def raising(self, batch):
    if self.world.rank in {ranks} and self.step == 3:
        raise ValueError("only here")
    return step(self, batch)
Trainer.train_step = raising
sys.exit(run(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("raising", ["{1}", "{0, 1, 2, 3}"], ids=["one", "all"])
@pytest.mark.parametrize(
    ("ranks", "arguments"),
    [(3, []), (1, ["--simulate-ranks", "3"]), (1, ["threads=3"]), (2, ["threads=2"])],
    ids=["processes", "simulated", "threads", "both"],
)
def test_an_exception_ends_all_ranks_and_is_told_once(
    mpirun, python, tmp_path, ranks, arguments, raising
):
    driver, out = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(RAISING.format(ranks=raising))
    arguments = [driver, f"output={out}", *arguments]
    ended = python(*arguments) if ranks == 1 else mpirun(ranks, *arguments)
    assert ended.returncode != 0
    assert ended.seconds < 10
    assert ended.stderr.count("ddpbp: rank ") == 1, ended.stderr
    assert ended.stderr.count("ValueError: only here") == 1
    fault = json.loads((out / "fault.json").read_text())
    assert fault["rank"] in {0, 1, 2, 3}
    assert (fault["step"], fault["cause"]) == (3, "ValueError: only here")
    assert "\nrank {rank} on {host}, step {step}, phase {phase}\n".format(**fault) in ended.stderr


def test_eval_without_test_data_says_so(tmp_path, capsys):
    np.save(tmp_path / "data.npy", np.c_[X, Y])
    trained = [f"data.source={tmp_path / 'data.npy'}", "data.validation=0.0", "epochs=1"]
    assert run(["train", *trained, f"output={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert not {"test_loss", "validation_loss"} & set(result)
    capsys.readouterr()
    assert run(["eval", str(tmp_path / "run")]) == 2
    assert "name some DATA" in capsys.readouterr().err


def test_a_gradient_that_overflows_names_the_same_leaf_on_any_number_of_ranks(tmp_path, mpirun):
    """The forward pass is finite; only leaves of the last rows overflow."""
    rows = np.zeros((64, 3))
    rows[:, 2] = 1.0
    rows[40:, 0] = 1e30
    np.save(tmp_path / "data.npy", rows)
    (tmp_path / "driver.py").write_text(DRIVER.format(before=""))
    settings = ["data.source=data.npy", "data.task=regression", "loss.name=squared_error"]
    messages = set()
    for ranks in (1, 3):
        ended = mpirun(
            *(ranks, tmp_path / "driver.py", "train", *settings, "data.standardize=false"),
            *("seed=1", "data.validation=0.0", "batch_size=64", "model.hidden=[4]"),
            *("model.activation=identity", f"output=run{ranks}"),
            cwd=tmp_path,
        )
        assert ended.returncode == 3, ended.stderr
        fault = json.loads((tmp_path / f"run{ranks}/fault.json").read_text())
        assert (fault["exit_code"], fault["cause"] in ended.stderr) == (3, True)
        messages.add(fault["cause"])
    (message,) = messages
    assert re.match(
        r"epoch 1, step 1: the gradient of layer 2, leaf \d \(rows \d+ to \d+ ", message
    )
