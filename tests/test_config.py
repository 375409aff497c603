"""The settings: where they come from, what the messages say, and what they are written as."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from ddpbp.base.tasks import TASKS
from ddpbp.config.read import parse, resolve
from ddpbp.config.settings import SECTIONS, Config, TaskName, flat, harmless
from ddpbp.config.write import differences, dump, fingerprint, schema, to_toml
from ddpbp.errors import ConfigError
from ddpbp.nn.activations import hidden_activations
from ddpbp.nn.initializations import INITIALIZATIONS
from ddpbp.nn.losses import LOSSES
from ddpbp.nn.optimizers import OPTIMIZERS
from ddpbp.nn.schedules import SCHEDULES

# What a setting is when nobody gives it: changing one changes the meaning of every file.
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "epochs": 10,
    "batch_size": 256,
    "micro_batch_size": "auto",
    "output": "runs/{name}",
    "kernel": "native",
    "data": {
        "source": "digits",
        "standardize": True,
        "validation": 0.1,
        "test": None,
        "task": None,
    },
    "model": {
        "hidden": [64],
        "activation": "relu",
        "output": None,
        "dropout": 0.0,
        "dtype": "float32",
        "initialization": "he_uniform",
    },
    "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "huber_delta": 1.0},
    "optimizer": {
        "name": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "decay_biases": False,
        "clip_norm": 0.0,
        "momentum": 0.9,
        "beta1": 0.9,
        "beta2": 0.999,
        "rho": 0.99,
        "epsilon": 1e-8,
        "base_batch_size": 0,
    },
    "schedule": {"name": "constant", "warmup_steps": 0, "gamma": 0.1, "final_factor": 0.0},
}


FINGERPRINT = "b8ae4200aa7b3f0a75a3e47227a1d20cc789b9880c2a519e813d4c7056abeee7"


@pytest.fixture
def file(tmp_path):
    """Write a TOML file; the name of the run is `job`."""

    def write(text=""):
        path = tmp_path / "job.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(None, arguments, {})
    assert caught.value.code == 2
    return str(caught.value)


def test_defaults_are_the_contract():
    found = dump(Config())
    for key, value in DEFAULTS.items():
        if key in SECTIONS:
            assert {name: found[key][name] for name in value} == value
        else:
            assert found[key] == value


def test_the_tasks_are_those_of_their_table():
    assert get_args(TaskName) == tuple(TASKS)


def test_auto_is_an_eighth_of_the_batch_rounded_up():
    for batch_size, micro, expected in (
        (256, "auto", 32),
        (9, "auto", 2),
        (1, "auto", 1),
        (10, 4, 4),
        (10, 99, 10),
    ):
        config = parse({"batch_size": batch_size, "micro_batch_size": micro})
        assert config.leaf_size == expected


def test_a_later_source_wins(file):
    path = file("seed = 1\nepochs = 1\nbatch_size = 1\nlog_every_steps = 1\n[optimizer]\nrho = 0.1")
    environment = {
        "DDPBP_EPOCHS": "2",
        "DDPBP_BATCH_SIZE": "2",
        "DDPBP_LOG_EVERY_STEPS": "2",
        "DDPBP_OPTIMIZER__RHO": "0.2",
        "DDPBP_OPTIMIZER__LEARNING_RATE": "0.2",
        "UNRELATED": "2",
    }
    arguments = ["batch_size=3", "log_every_steps=3", "optimizer.rho=0.3"]
    config = resolve(path, arguments, environment, {"log_every_steps": 4})
    found = (config.seed, config.epochs, config.batch_size, config.log_every_steps)
    assert found == (1, 2, 3, 4)
    assert (config.optimizer.rho, config.optimizer.learning_rate) == (0.3, 0.2)
    assert config.optimizer.name == "sgd"  # the rest of a section stays


def test_the_environment_is_the_processes_own(monkeypatch):
    monkeypatch.setenv("DDPBP_MODEL__HIDDEN", "[3, 2]")
    assert resolve(None).model.hidden == [3, 2]


def test_values_are_toml_or_bare_text():
    words = ["data.source=a b.csv", 'data.target="3"', "model.hidden=[]", "data.standardize=false"]
    config = resolve(None, words, {})
    assert (config.data.source, config.data.target) == ("a b.csv", "3")
    assert (config.model.hidden, config.data.standardize) == ([], False)


def test_name_is_the_stem_of_the_file(file):
    assert resolve(file(), [], {}).output == "runs/job"
    assert resolve(file(), ["output=/tmp/{name}/{name}"], {}).output == "/tmp/job/job"
    assert resolve(file(), ["data.source=my/iris.csv"], {}).output == "runs/job"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("my/iris.csv", "iris"),
        ("rows.csv.gz", "rows"),
        ("my/images/", "images"),
        ("..", "run"),
    ],
)
def test_without_a_file_the_name_is_the_stem_of_the_source(source, name):
    assert resolve(None, [f"data.source={source}"], {}).output == f"runs/{name}"


def test_a_path_may_be_text(file):
    assert resolve(str(file("seed = 5")), [], {}).seed == 5


def test_settings_made_by_a_script_get_a_name_too():
    assert Config().with_name().output == "runs/digits"


# --- shipped configurations ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["xor", "xor.toml", "configs/xor.toml"])
def test_a_shipped_configuration_is_found_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    if name == "xor.toml":
        (tmp_path / "xor.toml").write_text("seed = 7")  # a file of the user comes first
    (tmp_path / "xor").mkdir()  # a folder is no configuration
    monkeypatch.chdir(tmp_path)
    config = resolve(name, [], {})
    assert config.output == "runs/xor"
    assert config.seed == (7 if name == "xor.toml" else 0)
    if name != "xor.toml":
        assert Path(config.data.source).is_file()
        assert config.data.test == config.data.source


# --- the BLAS kernel -----------------------------------------------------------------------------

FIND = """
import os, sys
from ddpbp.config.find import find
config, origins = find(None, ["kernel=haswell"])
print("numpy" in sys.modules, "OPENBLAS_CORETYPE" in os.environ)
from ddpbp.config.check import check
check(config, origins)
print("OPENBLAS_CORETYPE" in os.environ)
"""


def test_finding_and_checking_choose_no_kernel(python):
    ended = python("-c", FIND)
    assert ended.stdout == "False False\nFalse\n", ended.stderr


def test_a_script_may_define_callbacks_before_it_chooses_the_kernel(python):
    code = "import sys, ddpbp; ddpbp.join(); ddpbp.Callback; print('numpy' in sys.modules)"
    assert python("-c", code).stdout == "False\n"


def test_resolving_chooses_the_kernel(python):
    code = "import os; from ddpbp import resolve; resolve(None, ['kernel=haswell']); "
    ended = python("-c", code + "print(os.environ['OPENBLAS_CORETYPE'])")
    assert (ended.stdout, ended.stderr) == ("Haswell\n", "")


def test_resolving_warns_if_it_is_too_late_for_the_kernel():
    with pytest.warns(RuntimeWarning, match='kernel = "haswell" has no effect'):
        assert resolve(None, ["kernel=haswell"], {}).kernel == "haswell"


# --- messages: where it was given, the key, what was found, what is allowed ----------------------


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        # wrong type
        ("epochs=ten", ["epochs = 'ten'", "int"]),
        ("model.hidden=64", ["model.hidden = 64", "expected a list: model.hidden=[64]"]),
        ("data.standardize=yes", ["data.standardize = 'yes'", "bool"]),
        # out of range
        ("batch_size=0", ["batch_size = 0", ">= 1"]),
        ("seed=-1", ["seed = -1", ">= 0"]),
        ("model.hidden=[8, 0]", ["model.hidden = [8, 0]", ">= 1"]),
        ("model.dropout=1", ["model.dropout = 1", "<= 0.99"]),
        ("optimizer.learning_rate=0", ["optimizer.learning_rate = 0", "> 0"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate = nan", "> 0"]),
        ("optimizer.learning_rate=inf", ["optimizer.learning_rate = inf", "finite"]),
        ("schedule.gamma=1.5", ["schedule.gamma = 1.5", "<= 1"]),
        # not one of the words
        ("model.dtype=float16", ["model.dtype = 'float16'", "float32", "float64"]),
        ("kernel=zen", ["kernel = 'zen'", "native", "haswell"]),
        ("micro_batch_size=aut", ["micro_batch_size = 'aut'", "auto", "number"]),
        ("data.task=guess", ["data.task = 'guess'", "classification", "regression"]),
        # not in a table
        (
            "model.activation=rleu",
            ["model.activation = 'rleu'", "mean relu", *hidden_activations()],
        ),
        ("model.activation=ReLU", ["model.activation = 'ReLU'", "did you mean relu?"]),
        ("model.initialization=he", ["model.initialization = 'he'", *INITIALIZATIONS]),
        ("loss.name=hubert", ["loss.name = 'hubert'", "did you mean huber?", *LOSSES]),
        ("optimizer.name=adma", ["optimizer.name = 'adma'", "did you mean adam", *OPTIMIZERS]),
        ("schedule.name=cosin", ["schedule.name = 'cosin'", "mean cosine?", *SCHEDULES]),
        # not together
        ("model.output=sigmoid", ["model.output = 'sigmoid'", "cross_entropy", ": softmax"]),
        ("data.task=regression", ["data.task = 'regression'", "cross_entropy", "classification"]),
        ("data.test=0.9", ["data.validation + data.test = 1", "less than 1"]),
    ],
)
def test_the_message_names_place_key_found_and_allowed(argument, parts):
    found = message(argument)
    assert found.startswith(f"argument {argument}: ")
    for part in parts:
        assert part in found


def test_only_losses_for_it_take_softmax():
    found = message("loss.name=squared_error", "model.output=softmax")
    assert "model.output = 'softmax'" in found
    assert "identity" in found


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ("optimizer.lerning_rate=1", "optimizer.learning_rate"),
        ("learning_rate=1", "optimizer.learning_rate"),
        ("optimzer.name=adam", "optimizer"),
        ("epoch=1", "epochs"),
        ("model.Hidden=[1]", "model.hidden"),
    ],
)
def test_an_unknown_setting_is_an_error_with_a_suggestion(given, suggested):
    found = message(given)
    assert found.startswith(f"argument {given}: unknown setting ")
    assert f"did you mean {suggested}?" in found


def test_an_unknown_setting_like_no_other_lists_what_there_is():
    assert "allowed: source, format, folder" in message("data.zzz=1")


def test_the_message_says_who_gave_the_value(file):
    path = file("epochs = -1")
    for arguments, environment, flags, place in (
        ([], {}, {}, str(path)),
        ([], {"DDPBP_EPOCHS": "-2"}, {}, "environment variable DDPBP_EPOCHS"),
        (["epochs=-3"], {"DDPBP_EPOCHS": "-2"}, {}, "argument epochs=-3"),
        (["epochs=-3"], {"DDPBP_EPOCHS": "-2"}, {"epochs": -4}, "flag --epochs"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(path, arguments, environment, flags)
        assert str(caught.value).startswith(f"{place}: epochs = -")


def test_arguments_and_sections_that_are_none():
    assert "'faster': expected key=value" in message("faster")
    assert "optimizer is a section" in message("optimizer=adam")
    assert "name is a value, not a section" in message("optimizer.name.x=1")


def test_a_file_that_is_no_toml(file):
    path = file("epochs = = 3")
    with pytest.raises(ConfigError, match=r"job\.toml is not TOML: .*line 1") as caught:
        resolve(path, [], {})
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(file, tmp_path):
    path = file()
    with pytest.raises(ConfigError, match=r"jb\.toml does not exist; did you mean .*job\.toml\?"):
        resolve(tmp_path / "jb.toml", [], {})
    with pytest.raises(ConfigError, match=r"does not exist; shipped with ddpbp: digits, .*, xor$"):
        resolve(tmp_path / "nowhere" / "zzz.toml", [], {})
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(tmp_path, [], {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(path, [], {})


# --- there and back ------------------------------------------------------------------------------


def test_toml_and_dictionary_give_the_same_configuration_again(file):
    config = resolve(
        None,
        [
            "seed=9223372036854775807",
            "optimizer.epsilon=1e-12",
            "optimizer.weight_decay=0.1",
            "model.hidden=[3, 2]",
            'data.source="""a "quoted" \\\\ name\nü"""',
            "data.test=0.25",
            "data.target=b",
            "data.standardize=false",
            "micro_batch_size=7",
        ],
        {},
    )
    text = to_toml(config)
    assert resolve(file(text), [], {}) == config
    assert parse(dump(config)) == config
    assert parse(tomllib.loads(to_toml(Config()))) == Config()
    assert "\n# task =\n" in text  # what is unset can be seen


def test_toml_with_explanations_is_the_same_configuration(file):
    text = to_toml(Config(), explain=True)
    assert parse(tomllib.loads(text)) == Config()
    lines = [line for line in text.splitlines() if line]
    assert all("  # " in line for line in lines), "a setting without a docstring"
    assert len(lines) == len(flat(Config())) + len(SECTIONS)


def test_settings_that_no_number_depends_on():
    assert harmless() == {
        *("output", "threads", "log_every_steps", "check_every_steps", "max_seconds"),
        *("stall_seconds", "bucket_cap_bytes", "data.folder", "checkpoint.every_steps"),
        *("checkpoint.every_minutes", "checkpoint.keep_last", "checkpoint.keep_best"),
        *("optimizer.shard", "data.keep_type", "data.cache"),
    }


def test_the_fingerprint_stays_what_checkpoints_hold():
    assert fingerprint(Config()) == FINGERPRINT
    assert fingerprint(parse({"output": "elsewhere", "threads": 3})) == FINGERPRINT
    assert fingerprint(parse({"seed": 1})) != FINGERPRINT


@pytest.mark.parametrize(("schedule", "length_matters"), [("constant", False), ("cosine", True)])
def test_differences_are_those_that_change_numbers(schedule, length_matters):
    before = dump(parse({"schedule": {"name": schedule}}))
    after = parse(
        {"schedule": {"name": schedule}, "seed": 3, "epochs": 99, "checkpoint": {"keep_last": 9}}
    )
    epochs = ["epochs: 10 → 99"] * length_matters
    assert sorted(differences(before, after)) == [*epochs, "seed: 0 → 3"]


def test_the_schema_names_every_setting_and_its_limits():
    found = json.loads(msgspec.json.encode(schema()))
    definitions = found["$defs"]

    def properties(node: dict[str, str]) -> dict[str, Any]:
        return dict(definitions[node["$ref"].removeprefix("#/$defs/")]["properties"])

    top, tree = properties(found), dump(Config())
    assert list(top) == list(tree)
    assert top["batch_size"]["minimum"] == 1
    for section in SECTIONS:
        (reference,) = top[section].get("anyOf", [top[section]])
        assert list(properties(reference)) == list(tree[section])
        assert all(setting["description"] for setting in properties(reference).values())


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_configurations_resolve(path):
    assert resolve(path, [], {}).output == f"runs/{path.stem}"


@pytest.mark.parametrize("text", ["1\nseed = 5", "1 # a", "1]\nseed = [5", "1, 2"])
def test_a_value_is_all_of_its_text(text):
    assert resolve(None, [f"output={text}"], {}).output == text


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        (
            "epochs=0x" + "f" * 5_000,
            "epochs = a very large int: expected `int` <= 9007199254740992",
        ),
        ("epochs=" + "9" * 5_000, "(5,002 characters): expected"),
        ("loss.name=mse", "did you mean squared_error?"),
        ("loss=mse", "did you mean loss.name = 'mse'?"),
        ("threads=1000000", "expected `int` <= 1024"),
        ("data.source" + ".a" * 50_000 + "=1", "data.source"),
    ],
)
def test_a_message_is_short_whatever_the_value(argument, part):
    found = message(argument)
    assert part in found
    assert len(found) < 1_000


def test_a_file_of_settings_is_a_regular_and_a_small_one(tmp_path):
    pipe, big = tmp_path / "pipe.toml", tmp_path / "big.toml"
    os.mkfifo(pipe)
    big.write_text("#" * 2_000_000)
    long = tmp_path / ("a" * 5_000)
    for path, part in ((pipe, "a pipe"), (big, "larger than"), (long, "name too long")):
        with pytest.raises(ConfigError, match=part):
            resolve(path, [], {})
