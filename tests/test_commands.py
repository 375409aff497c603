"""Each command as a user runs it."""

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpbp.cli.main import run
from ddpbp.cli.options import SettingsOptions
from ddpbp.cli.process import on_all_ranks
from ddpbp.comm.join import launched
from ddpbp.config.find import shipped
from ddpbp.config.read import resolve
from ddpbp.config.settings import Config
from ddpbp.run.training import train
from ddpbp.tools.gradient_check import check_config

SMALL = ["epochs=2", "model.hidden=[7, 5]"]
FILES = {"checkpoints", "config.toml", "metrics.jsonl", "model.safetensors", "result.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("runs") / "digits"
    assert run(["train", *SMALL, f"output={folder}"]) == 0
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_train_makes_a_run_folder(trained):
    assert names(trained) == FILES
    result = json.loads((trained / "result.json").read_text())
    assert set(result) >= {
        "theta_sha256",
        "train_loss",
        "validation_loss",
        "test_loss",
        "test_accuracy",
        "epochs",
        "steps",
        "examples",
        "examples_per_second",
        "world_size",
    }
    assert (result["epochs"], result["steps"], result["world_size"]) == (2, 42, 1)
    assert result["examples"] == 2 * 1298
    weights = load_file(trained / "model.safetensors")
    assert {name: w.shape for name, w in weights.items() if name[0].isdigit()} == {
        "0.weight": (7, 64),
        "0.bias": (7,),
        "2.weight": (5, 7),
        "2.bias": (5,),
        "4.weight": (10, 5),
        "4.bias": (10,),
    }
    epochs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in epochs] == [1, 2]


def test_written_configuration_repeats_the_run(trained, run_folder, tmp_path):
    assert tomllib.loads((trained / "config.toml").read_text())["model"]["hidden"] == [7, 5]
    assert run(["train", str(trained / "config.toml"), f"output={tmp_path / 'again'}"]) == 0
    assert run_folder(tmp_path / "again") == run_folder(trained)


def test_flag_beats_argument_beats_environment_beats_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\nepochs = 1\nbatch_size = 10\n[optimizer]\nlearning_rate = 1.0\n")
    for name in ("SEED", "EPOCHS", "OPTIMIZER__LEARNING_RATE"):
        monkeypatch.setenv(f"DDPBP_{name}", "2")
    assert run(["config", "show", str(file), "seed=3", "epochs=3", "--seed", "4"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["seed"], shown["epochs"], shown["batch_size"]) == (4, 3, 10)
    assert shown["optimizer"]["learning_rate"] == 2.0
    assert shown["output"] == "runs/run"


def test_config_schema_knows_every_setting_shown(capsys):
    assert run(["config", "show"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(shown) <= set(schema["$defs"]["Config"]["properties"])
    assert set(shown["optimizer"]) <= set(schema["$defs"]["OptimizerConfig"]["properties"])


def test_run_is_not_overwritten_silently(tmp_path, capsys):
    command = ["train", "epochs=1", f"output={tmp_path}"]
    assert run(command) == 0
    first = (tmp_path / "result.json").read_bytes()
    capsys.readouterr()
    assert run([*command, "seed=1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_bytes() == first
    # Nor does a run that cannot start take the old one away.
    assert run([*command, "data.source=gone.csv", "--overwrite"]) == 2
    assert (tmp_path / "result.json").read_bytes() == first
    assert run([*command, "seed=1", "--overwrite"]) == 0
    assert (tmp_path / "result.json").read_bytes() != first
    assert names(tmp_path) == FILES


def test_failed_start_does_not_block_the_next(tmp_path):
    assert run(["train", "epochs=1", f"output={tmp_path}", "data.source=gone.csv"]) == 2
    assert run(["train", "epochs=1", f"output={tmp_path}"]) == 0


def test_fast_dev_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--fast-dev-run"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert names(tmp_path) == set()


def test_dry_run_says_what_a_run_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--dry-run", "--ranks", "3"]) == 0
    out = capsys.readouterr().out
    assert "4,810 parameters" in out
    assert "8 of 8 examples; per rank 2 to 3, balance 89%" in out
    assert "21 an epoch, 630 in all" in out
    assert "3: can run; at most 8" in out
    assert "MiB on one rank at its peak" in out
    assert [line.split()[0] for line in out.splitlines()] == [
        *("data", "examples", "network", "memory", "host", "loading", "leaves", "steps", "ranks")
    ]
    assert names(tmp_path) == set()


def test_the_settings_are_printed_if_asked_for(capsys):
    assert run(["train", "--print-config", "seed=7"]) == 0
    settings = capsys.readouterr().out
    assert tomllib.loads(settings)["seed"] == 7
    assert run(["train", "--print-config", "seed=7", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(settings + "data ")


def test_config_show_prints_the_meaning_of_each_setting(capsys):
    assert run(["config", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("epochs = ")]
    assert line.endswith("# Passes over the training part.")


def test_a_shipped_configuration_is_run_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "xor", "--fast-dev-run"]) == 0
    assert "network 2-4-1" in capsys.readouterr().out
    assert run(["train", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
    assert set(shipped()) <= set(words)


def test_a_run_of_ones_own_data_has_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).random((40, 3))
    np.save("flowers.npy", np.c_[rows, rows[:, 0] > rows[:, 1]])
    assert run(["train", "data.source=flowers.npy", "epochs=1"]) == 0
    assert names(tmp_path / "runs") == {"flowers"}
    train(Config(epochs=1))  # settings that no file and no command has named
    assert names(tmp_path / "runs") == {"flowers", "digits"}


def test_wrong_data_are_reported_before_a_folder_that_is_taken(trained, capsys):
    assert run(["train", "data.source=gone.csv", f"output={trained}"]) == 2
    assert "gone.csv: no such file" in capsys.readouterr().err


def test_dry_run_says_if_so_many_ranks_cannot_run(capsys):
    assert run(["train", "--dry-run", "--ranks", "9"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "9 ranks" in err
    assert "batch_size" in err
    assert "micro_batch_size" in err


def test_gradcheck_has_a_row_for_each_tensor(capsys):
    assert run(["gradcheck", "model.hidden=[6]", "model.activation=tanh", "--directions", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["1", "W"],
        ["1", "b"],
        ["2", "W"],
        ["2", "b"],
    ]
    assert lines[-1].startswith("correct")


def test_gradcheck_takes_more_than_one_example(capsys):
    assert run(["gradcheck", "xor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("correct on 4 examples")


def test_gradcheck_of_a_gradient_that_is_all_zero_is_no_success(tmp_path, capsys):
    """All features are positive and all weights of the only hidden unit negative: relu is 0."""
    x = np.random.default_rng(0).random((20, 2)) + 0.1
    np.save(tmp_path / "rows.npy", np.c_[x, x[:, 0] > x[:, 1]])
    words = [f"data.source={tmp_path / 'rows.npy'}", "data.standardize=false", "model.hidden=[1]"]
    assert run(["gradcheck", *words, "seed=0"]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("NOTHING TO CHECK on 8 examples")
    assert "layer 1 W, layer 1 b, layer 2 W" in verdict


def test_gradcheck_leaves_its_callers_settings_alone():
    config = resolve(None, ["model.hidden=[5]", "wire=bf16"], {})
    assert check_config(config, directions=1)[1]
    assert (config.model.dtype, config.wire) == ("float32", "bf16")


def test_eval_scores_the_test_data(trained, capsys):
    assert run(["eval", str(trained), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    result = json.loads((trained / "result.json").read_text())
    assert scores == {name: result[f"test_{name}"] for name in ("loss", "accuracy")}
    assert run(["eval", str(trained / "model.safetensors")]) == 0
    assert f"{scores['accuracy']:.6g}" in capsys.readouterr().out


def test_predict_writes_csv_and_npy(trained, tmp_path, capsys):
    rows = tmp_path / "rows.npy"
    np.save(rows, np.random.default_rng(0).integers(0, 17, (13, 64)))
    for target in ("p.csv", "p.npy"):
        assert run(["predict", str(trained), str(rows), "-o", str(tmp_path / target)]) == 0
    outputs = np.load(tmp_path / "p.npy")
    assert outputs.shape == (13, 10)
    np.testing.assert_allclose(outputs.sum(1), 1.0, rtol=1e-5)
    with (tmp_path / "p.csv").open() as file:
        header, *table = csv.reader(file)
    assert header == ["prediction", *"0123456789"]
    assert [row[0] for row in table] == [str(i) for i in outputs.argmax(1)]
    np.testing.assert_array_equal(np.array([row[1:] for row in table], "f4"), outputs)
    capsys.readouterr()
    assert run(["predict", str(trained), str(rows)]) == 0
    assert capsys.readouterr().out == (tmp_path / "p.csv").read_text()


@pytest.mark.parametrize(
    ("header", "target", "names"),
    [
        ("a,b,c", "c", "c"),
        ("a,b,c", "b,c", "b,c"),
        ('a,b,"c, d"', "-1", '"c, d"'),
        ("1,2,3", "-1", "output_0"),
    ],
)
def test_predictions_are_named_after_the_targets(header, target, names, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join([header, *(f"{i},{i % 3},{i % 5}" for i in range(20))]))
    run_folder = str(tmp_path / "run")
    settings = ["epochs=1", "loss.name=squared_error", f"data.target={target}"]
    assert run(["train", f"data.source={rows}", *settings, f"output={run_folder}"]) == 0
    capsys.readouterr()
    assert run(["predict", run_folder, str(rows)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == names


def test_help_and_version(capsys):
    assert run(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "mpirun -n 4 python -m ddpbp train" in out
    assert "--simulate-ranks" in out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ddpbp ")


def test_log_has_plain_lines(python, tmp_path):
    ended = python("-m", "ddpbp", "train", *SMALL, f"output={tmp_path}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\r" not in ended.stdout
    assert "\x1b" not in ended.stdout
    epochs = [line for line in ended.stdout.splitlines() if line.startswith("epoch")]
    assert len(epochs) == 2
    digest = json.loads((tmp_path / "result.json").read_text())["theta_sha256"]
    assert f"theta sha256 {digest}" in ended.stdout


def test_console_script_is_the_module(tmp_path):
    script = Path(sys.executable).with_name("ddpbp")
    found = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("ddpbp ")


def test_one_process_needs_no_mpi_and_imports_little(python, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    stub = "raise RuntimeError('cannot load MPI library')"
    (tmp_path / "mpi4py/__init__.py").write_text(stub)
    code = (
        "import sys; from ddpbp.cli.main import run; code = run(sys.argv[1:]); "
        "print('modules', *sys.modules); sys.exit(code)"
    )
    train = ("train", *SMALL, f"output={tmp_path / 'run'}")
    ended = python("-c", code, *train, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    modules = set(ended.stdout.splitlines()[-1].split())
    heavy = {"mpi4py", "rich", "torch", "scipy", "pandas", "sklearn", "matplotlib", "asyncio"}
    assert "numpy" in modules
    assert not modules & (heavy | {"numpy.random", "numpy.testing", "multiprocessing"})
    # Under a launcher the same is a fault, and says what to install.
    ended = python("-m", "ddpbp", "train", PYTHONPATH=str(tmp_path), PMI_RANK="0", PMI_SIZE="2")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "pip install 'ddpbp[mpich]'" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch shell
        ({"PMI_RANK": "1", "PMI_SIZE": "3"}, (1, 3)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ({"PMIX_RANK": "2", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, (3, 4)),
        ({"PMIX_RANK": "1"}, (1, 0)),
    ],
)
def test_a_launcher_is_known_by_its_environment(variables, expected):
    assert launched(variables) == expected


def test_columns_are_found_by_name(tmp_path, capsys):
    """Other orders, more columns and no target give the numbers of the file trained on."""
    rng = np.random.default_rng(0)
    rows = rng.random((60, 2))
    kinds = ["x" if a > b else "y" for a, b in rows]
    texts = {
        "train.csv": ("a,b,kind", [f"{a},{b},{k}" for (a, b), k in zip(rows, kinds, strict=True)]),
        "mixed.csv": (
            "kind,b,note,a",
            [f"{k},{b},7,{a}" for (a, b), k in zip(rows, kinds, strict=True)],
        ),
        "bare.csv": ("note,b,a", [f"hm,{b},{a}" for a, b in rows]),
    }
    for name, (header, lines) in texts.items():
        (tmp_path / name).write_text("\n".join([header, *lines]) + "\n")
    run_folder = str(tmp_path / "run")
    assert run(["train", f"data.source={tmp_path / 'train.csv'}", f"output={run_folder}"]) == 0
    scores, predictions = [], []
    for name in texts:
        capsys.readouterr()
        if name != "bare.csv":
            assert run(["eval", run_folder, str(tmp_path / name), "--json"]) == 0
            scores.append(capsys.readouterr().out)
        assert run(["predict", run_folder, str(tmp_path / name)]) == 0
        predictions.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert predictions[0] == predictions[1] == predictions[2]


@pytest.mark.parametrize(
    "damage", ["shape", "dtype", "missing", "metadata", "no settings", "activation"]
)
def test_damaged_models_are_refused(trained, tmp_path, capsys, damage):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(trained / "model.safetensors", framework="numpy") as file:  # type: ignore[no-untyped-call]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    match damage:
        case "shape":
            tensors["0.weight"] = tensors["0.weight"][:1].copy()
        case "dtype":
            tensors["0.bias"] = tensors["0.bias"].astype(np.float16)
        case "missing":
            del tensors["2.bias"]
        case "metadata":
            metadata["ddpbp"] = "{"
        case "no settings":
            metadata["ddpbp"] = "{}"
        case "activation":
            metadata["ddpbp"] = metadata["ddpbp"].replace('"hidden": "relu"', '"hidden": "zzz"')
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    assert run(["eval", str(tmp_path)]) == 2
    ended = capsys.readouterr().err
    assert "model.safetensors is damaged" in ended
    assert ended.count("\n") == 1


@pytest.mark.parametrize("line", ["config show", "train --fast-dev-run", "doctor"])
def test_a_reader_that_has_gone_is_no_fault(line, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "ddpbp", *line.split()]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


# --- standard output -----------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["config show", "--help", "gradcheck", "train --fast-dev-run"])
@pytest.mark.parametrize("where", ["closed", "full"])
def test_output_that_is_lost_is_one_message_and_exit_code_1(line, where, tmp_path):
    redirect = {"closed": ">&-", "full": ">/dev/full"}[where]
    words = f"{sys.executable} -m ddpbp {line} {redirect}"
    done = subprocess.run(words, shell=True, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(b"ddpbp: standard output ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("line", ["config show", "doctor"])
def test_an_encoding_that_lacks_a_character_is_no_fault(python, line):
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in ({"PYTHONIOENCODING": "ascii"}, c_locale):
        ended = python("-m", "ddpbp", *line.split(), **environment)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_bytes_that_are_no_text_are_refused_before_a_folder_is_made(python, tmp_path):
    ended = python("-m", "ddpbp", "train", "output=\udcff", cwd=tmp_path)
    assert ended.returncode == 2
    assert "output = '\\udcff': allowed: text" in ended.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_message_that_cannot_be_written_changes_no_exit_code(tmp_path):
    words = f"{sys.executable} -m ddpbp train bogus=1 2>/dev/full"
    assert subprocess.run(words, shell=True, cwd=tmp_path, timeout=60).returncode == 2


def test_the_bar_leaves_the_line_above_alone(python, tmp_path):
    """A launcher passes on whole lines: it may have printed a message there."""
    ended = python("-m", "ddpbp", "train", *SMALL, f"output={tmp_path}", "--bar")
    assert ended.returncode == 0, ended.stderr
    assert "\x1b[2K" in ended.stdout  # the bar was there
    assert "\x1b[1A" not in ended.stdout


def test_out_of_memory_names_the_data_and_the_batch(capsys):
    def main(world):
        raise MemoryError("Unable to allocate 40 TiB")

    with pytest.raises(SystemExit) as ended:
        on_all_ranks(main, mpi=False)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in ("40 TiB", "if the data are too big", "batch_size", "--dry-run"):
        assert part in message


# --- settings on the way to a command ------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[], ["--simulate-ranks", "3"]], ids=["1", "3 simulated"])
def test_a_kernel_that_comes_too_late_is_noted_once(capsys, ranks):
    assert run(["train", "--fast-dev-run", "kernel=haswell", *ranks]) == 0
    out = capsys.readouterr().out
    assert out.count('note: kernel = "haswell" has no effect') == 1
    assert out.startswith("note: kernel")


def test_a_model_is_used_on_its_own_kernel(python, tmp_path):
    model = tmp_path / "run"
    train = ["-m", "ddpbp", "train", *SMALL, f"output={model}", "kernel=haswell"]
    assert python(*train).returncode == 0
    code = (
        "import os, sys; from ddpbp.cli.main import run; code = run(sys.argv[1:]); "
        "print(os.environ.get('OPENBLAS_CORETYPE')); sys.exit(code)"
    )
    ended = python("-c", code, "eval", model)
    assert ended.stdout.splitlines()[-1] == "Haswell"
    ended = python("-c", f"import numpy; {code}", "eval", model)
    assert ended.stderr.count("note: ") == 1, ended.stderr
    assert 'kernel = "haswell" has no effect' in ended.stderr


@pytest.mark.parametrize("line", ["doctor", "gradcheck", "train --dry-run", "config show"])
def test_every_command_chooses_the_kernel_before_numpy_is_loaded(python, tmp_path, line):
    ended = python("-m", "ddpbp", *line.split(), "kernel=haswell", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_overridden_threads_are_noted_once(python, tmp_path):
    for line in ("train --fast-dev-run", "config show"):
        ended = python("-m", "ddpbp", *line.split(), cwd=tmp_path, OPENBLAS_NUM_THREADS="3")
        note = "note: OPENBLAS_NUM_THREADS=3 is overridden by 1"
        assert (ended.stdout + ended.stderr).count(note) == 1


def test_processes_that_a_command_starts_get_its_flags_too():
    options = SettingsOptions(("digits", "epochs=3"), {"seed": 5, "epochs": None, "output": None})
    assert options.arguments() == ["digits", "epochs=3", "seed=5"]
