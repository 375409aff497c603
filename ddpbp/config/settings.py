"""The settings: typed, with their meaning and limits beside them, and how they are found.

A later source wins: TOML file < `DDPBP_*` environment < `key=value` arguments < flags. NumPy is
not imported here: the settings decide how it is set up.
"""

import difflib
import hashlib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from ddpbp.base import blas
from ddpbp.errors import ConfigError
from ddpbp.nn.schedules import SCHEDULES

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Task = Literal["classification", "binary", "multilabel", "regression"]


class DataConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to learn from."""

    source: str = "digits"
    """digits, fashion-mnist, synthetic, or a path: a .csv, .npy or .npz file, a folder of IDX."""
    format: str | None = None
    """csv, npy, npz or idx, where the name of the path does not tell."""
    folder: str | None = None
    """Where the files of a named source are, if not at the usual place."""
    standardize: bool = True
    """Shift and scale each feature to mean 0 and deviation 1 on the training part; else raw."""
    validation: Share | str = 0.1
    """The fraction held out of training to watch it, or a path."""
    test: Share | str | None = None
    """The fraction held out for the test, or a path; by default the source's own test part."""
    target: str | int | None = None
    """The column (name or index) or array that holds the targets; several columns as "a,b"."""
    task: Task | None = None
    """What the targets are; told from the loss if absent."""
    examples: Annotated[int, Meta(ge=0)] = 0
    """Synthetic data: rows."""
    features: Annotated[int, Meta(ge=0)] = 0
    """Synthetic data: columns."""
    classes: Annotated[int, Meta(ge=0)] = 0
    """Synthetic data: classes of a classification."""
    targets: Annotated[int, Meta(ge=0)] = 0
    """Synthetic data: outputs of the other tasks."""


class ModelConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The network."""

    hidden: list[Count] = msgspec.field(default_factory=lambda: [64])
    """Units of the hidden layers, from the input on; [] is a linear model."""
    activation: str = "relu"
    """σ of the hidden layers."""
    output: str | None = None
    """σ of the last layer; by default the one that goes with the loss."""
    dropout: Annotated[float, Meta(ge=0, le=0.99)] = 0.0
    """The share of hidden units left out at each training step."""
    dtype: Literal["float32", "float64"] = "float32"
    """The type of everything computed."""
    initialization: str = "he_uniform"
    """How the first weights are drawn."""


class LossConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is made small."""

    name: str = "cross_entropy"
    """The loss."""
    label_smoothing: Share = 0.0
    """ε of cross_entropy: the share of a target spread over all classes."""
    huber_delta: Positive = 1.0
    """Where huber turns from a square into a line."""


class OptimizerConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """How the weights move."""

    name: str = "sgd"
    """The optimizer; sgd is the text's own update."""
    learning_rate: Positive = 0.1
    """η, before the schedule."""
    weight_decay: NotNegative = 0.0
    """λ: how much a weight shrinks by itself."""
    decay_biases: bool = False
    """Let weight_decay act on biases too."""
    clip_norm: NotNegative = 0.0
    """The longest gradient let through; 0 is off."""
    momentum: Share = 0.9
    """μ of momentum, nesterov and lars."""
    beta1: Share = 0.9
    """β1 of the adams and lamb."""
    beta2: Share = 0.999
    """β2 of the adams and lamb."""
    rho: Share = 0.99
    """ρ of rmsprop."""
    epsilon: Positive = 1e-8
    """ε of rmsprop, the adams and lamb."""
    trust_coefficient: Positive = 0.001
    """How much of a layer's norm a step of lars may be."""
    base_batch_size: Annotated[int, Meta(ge=0)] = 0
    """Scale η by batch_size / base_batch_size (the linear scaling rule); 0 is off."""


class ScheduleConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """How the learning rate changes."""

    name: str = "constant"
    """The schedule, counted after the warm-up."""
    warmup_steps: Annotated[int, Meta(ge=0)] = 0
    """Steps over which η rises linearly at the start."""
    every_epochs: Positive = 10.0
    """step, exponential: epochs until η is multiplied by gamma."""
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """step, exponential: the factor."""
    final_factor: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """cosine: what is left of η in the end."""


class CheckpointConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """When to save what an interrupted run needs to go on; a run that ends or is stopped does."""

    every_steps: Annotated[int, Meta(ge=0)] = 0
    """Save every so many steps; 0 is off."""
    every_minutes: NotNegative = 1.0
    """Save every so many minutes; 0 is off."""
    keep_last: Count = 2
    """How many of the newest to keep; with two, one may be damaged."""
    keep_best: Annotated[int, Meta(ge=0)] = 0
    """How many of the epochs with the least validation (else training) loss to save and keep."""


class Config(Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run computes, and how it is logged."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """The only source of randomness: order, initial weights, dropout, splits."""
    epochs: Annotated[int, Meta(ge=0)] = 10
    """Passes over the training part."""
    batch_size: Count = 256
    """Examples of one step, over all ranks together."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Examples of one leaf, the unit of work; auto is an eighth of batch_size, rounded up."""
    output: str = "runs/{name}"
    """The run folder; {name} is the configuration file's stem."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of each process, each with leaves of its own; auto: as many as are worth it."""
    kernel: Literal["native", "haswell"] = "native"
    """BLAS kernel: the machine's own, or one that all x86 machines since 2013 share."""
    wire: Literal["none", "bf16", "fp16"] = "none"
    """Round every sum of gradients to 16 bits, so that half the bytes travel between machines."""
    bucket_cap_bytes: Count = 500_000
    """How much of the gradient travels at once between machines; changes no bit."""
    log_every_steps: Annotated[int, Meta(ge=0)] = 0
    """Write the loss of every so many steps to metrics.jsonl; 0 is once an epoch."""
    check_every_steps: Annotated[int, Meta(ge=0)] = 100
    """Compare the ranks' weights every so many steps; 0 is at each epoch only."""
    max_seconds: NotNegative = 0.0
    """Save and stop with exit code 75 after so many seconds; 0 is off."""
    stall_seconds: NotNegative = 300.0
    """End the run if a rank does not get on for so long (slow phases: ten times that); 0: off."""
    data: DataConfig = msgspec.field(default_factory=DataConfig)
    model: ModelConfig = msgspec.field(default_factory=ModelConfig)
    loss: LossConfig = msgspec.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = msgspec.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = msgspec.field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = msgspec.field(default_factory=CheckpointConfig)

    @property
    def leaf_size(self) -> int:
        """The micro-batch size as a number."""
        if self.micro_batch_size == "auto":
            return -(-self.batch_size // 8)
        return min(self.micro_batch_size, self.batch_size)


SECTIONS = ("data", "model", "loss", "optimizer", "schedule", "checkpoint")

# fmt: off
HARMLESS = {
    "output", "threads", "log_every_steps", "check_every_steps", "max_seconds", "stall_seconds",
    "bucket_cap_bytes",
    "data.folder", "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep_last",
    "checkpoint.keep_best",
}
# fmt: on
"""Settings that no number depends on: a run may go on with other ones."""


def shipped(name: str) -> Path:
    """Return the path of a configuration that comes with ddpbp, installed or in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise ConfigError(f"configuration {name!r} is not part of this installation; reinstall ddpbp")


def resolve(
    path: Path | None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Bring file, environment, `key=value` arguments and flags together.

    Parameters
    ----------
    path : Path or None
        A TOML file; None takes the shipped `digits`.
    assignments : sequence of str
        ``"optimizer.learning_rate=0.05"``; the value as TOML writes it, or bare text.
    environment : mapping, optional
        ``DDPBP_OPTIMIZER__LEARNING_RATE=0.05``; the process's own by default.
    flags : mapping, optional
        Dotted keys to values.

    Raises
    ------
    ConfigError
        Names the key or file, what was found and what is allowed.
    """
    file = path or shipped("digits")
    tree = _read(file)
    origin: dict[str, str] = {}
    env = os.environ if environment is None else environment
    for name in sorted(env):
        if name.startswith("DDPBP_"):
            key = name.removeprefix("DDPBP_").lower().replace("__", ".")
            _assign(tree, key, _value(env[name]), name)
            origin[key] = f"environment variable {name}"
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"argument {text!r}: expected key=value, as in optimizer.learning_rate=0.05"
            )
        _assign(tree, key.strip(), _value(value), text)
        origin[key.strip()] = f"argument {text}"
    for key, value in (flags or {}).items():
        _assign(tree, key, value, key)
        origin[key] = f"flag --{key}"
    config = _convert(tree, str(file), origin)
    config.output = config.output.replace("{name}", file.stem)
    return config


def parse(tree: Mapping[str, Any]) -> Config:
    """Return the configuration that nested dictionaries describe (as `dump` made them)."""
    return _convert(dict(tree), "configuration", {})


def dump(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries of plain values."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """List the settings on which numbers depend and that are not what they were: "key: a → b".

    Parameters
    ----------
    before : mapping
        An earlier configuration as `dump` made it; what it does not know was at its default.
    config : Config
    """
    old, new = _flat(dump(Config())) | _flat(before), _flat(dump(config))
    schedule = SCHEDULES[config.schedule.name]
    harmless = HARMLESS | (set() if schedule.depends_on_length else {"epochs"})
    return [
        f"{key}: {old.get(key)!r} → {value!r}"
        for key, value in new.items()
        if key not in harmless and old.get(key) != value
    ]


def fingerprint(config: Config) -> str:
    """Return a hash over the settings that numbers depend on."""
    flat = _flat(dump(config))
    text = msgspec.json.encode({key: flat[key] for key in sorted(flat) if key not in HARMLESS})
    return hashlib.sha256(text).hexdigest()


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in tree.items() if key not in SECTIONS}
    for section in SECTIONS:
        flat |= {f"{section}.{key}": value for key, value in tree.get(section, {}).items()}
    return flat


def to_toml(config: Config) -> str:
    """Write the resolved configuration as TOML; settings that are unset stand as comments."""
    tree = dump(config)
    lines = [_toml_line(key, value) for key, value in tree.items() if key not in SECTIONS]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        lines += [_toml_line(key, value) for key, value in tree[section].items()]
    return "\n".join(lines) + "\n"


def _toml_line(key: str, value: Any) -> str:
    if value is None:
        return f"# {key} ="
    return f"{key} = {msgspec.json.encode(value).decode()}"  # TOML's scalars and lists as JSON's


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    return msgspec.json.schema(Config)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in _neighbours(file)], n=1)
        hint = f"; did you mean {file.with_name(near[0])}?" if near else ""
        raise ConfigError(f"configuration file {file} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from None


def _neighbours(file: Path) -> list[Path]:
    return list(file.parent.glob("*.toml")) if file.parent.is_dir() else []


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {section} is a value, not a section")
    tree[name] = value


def _convert(tree: dict[str, Any], file: str, origin: Mapping[str, str]) -> Config:
    _refuse_unknown(tree, Config, "", file, origin)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), tree, file, origin)) from None
    _check(config, file, origin)
    return config


def _refuse_unknown(
    tree: Mapping[str, Any], kind: type[Struct], prefix: str, file: str, origin: Mapping[str, str]
) -> None:
    hints = get_type_hints(kind)
    for name, value in tree.items():
        key = prefix + name
        if name not in kind.__struct_fields__:
            known = _all_keys() if prefix else [*SECTIONS, *_all_keys()]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7 if prefix else 0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(hints)}"
            raise ConfigError(
                f"{_origin(key, file, origin)}: unknown setting {key}; {hint} "
                "(all of them: ddpbp config show)"
            )
        if name in SECTIONS and not prefix:
            if not isinstance(value, dict):
                raise ConfigError(f"{_origin(key, file, origin)}: {name} is a section, [{name}]")
            _refuse_unknown(value, hints[name], f"{name}.", file, origin)


def _origin(key: str, file: str, origin: Mapping[str, str]) -> str:
    """Tell where a setting was given: itself, what stands inside it, or its whole section."""
    related = (n for n in origin if f"{n}.".startswith(f"{key}.") or key.startswith(f"{n}."))
    return origin.get(key) or origin.get(next(related, ""), file)


def _all_keys() -> list[str]:
    hints = get_type_hints(Config)
    keys = [name for name in hints if name not in SECTIONS]
    return keys + [f"{s}.{name}" for s in SECTIONS for name in get_type_hints(hints[s])]


def _explain(message: str, tree: Any, file: str, origin: Mapping[str, str]) -> str:
    text, _, place = message.partition(" - at `$.")
    key = re.sub(r"\[.*", "", place.rstrip("`"))
    found = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    text = text.replace("Expected", "expected")
    if text.startswith("Invalid enum value"):
        text = f"allowed: {', '.join(_words(key))}"
    return f"{_origin(key, file, origin)}: {key} = {found!r}: {text}"


def _words(key: str) -> list[str]:
    """List the words that a setting may be."""
    *section, name = key.split(".")
    kind = get_type_hints(Config)[section[0]] if section else Config
    hint = get_type_hints(kind)[name]
    words = []
    for part in (hint,) if get_origin(hint) is Literal else get_args(hint):
        words += ["a number"] if part is int else []
        words += get_args(part) if get_origin(part) is Literal else []
    return words


def _check(config: Config, file: str, origin: Mapping[str, str]) -> None:
    """Check what types cannot say: names of the tables, and settings that exclude each other."""
    # The tables import NumPy, which reads its kernel from the environment once.
    blas.use_kernel(config.kernel)
    from ddpbp.nn.activations import hidden_activations
    from ddpbp.nn.initializations import INITIALIZATIONS
    from ddpbp.nn.losses import LOSSES
    from ddpbp.nn.optimizers import OPTIMIZERS

    def require(key: str, found: Any, allowed: Iterable[str], why: str = "") -> None:
        if found in allowed:
            return
        near = difflib.get_close_matches(str(found), list(allowed), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{_origin(key, file, origin)}: {key} = {found!r}: allowed{why}: "
            f"{', '.join(allowed)}{hint}"
        )

    require("model.activation", config.model.activation, hidden_activations())
    require("model.initialization", config.model.initialization, INITIALIZATIONS)
    require("loss.name", config.loss.name, LOSSES)
    require("optimizer.name", config.optimizer.name, OPTIMIZERS)
    require("schedule.name", config.schedule.name, SCHEDULES)
    loss, with_loss = LOSSES[config.loss.name], f" with loss {config.loss.name}"
    if config.model.output is not None:
        require(
            "model.output", config.model.output, loss.outputs or hidden_activations(), with_loss
        )
    if config.data.task is not None:
        require("data.task", config.data.task, loss.tasks, with_loss)
    values = dump(config)
    for key in _all_keys():
        section, _, name = key.rpartition(".")
        value = (values[section] if section else values)[name]
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"{_origin(key, file, origin)}: {key} = {value}: allowed: a finite number"
            )
    if config.loss.label_smoothing and "label_smoothing" not in loss.settings():
        readers = (name for name, entry in LOSSES.items() if "label_smoothing" in entry.settings())
        raise ConfigError(
            f"{_origin('loss.label_smoothing', file, origin)}: loss.label_smoothing = "
            f"{config.loss.label_smoothing:g} is for loss {', '.join(readers)}, "
            f"not {config.loss.name}"
        )
    if config.wire != "none" and config.model.dtype != "float32":
        raise ConfigError(
            f"{_origin('wire', file, origin)}: wire = {config.wire!r} is for "
            f'model.dtype = "float32", not {config.model.dtype}'
        )
    held_out = [v for v in (config.data.validation, config.data.test) if isinstance(v, float)]
    if sum(held_out) >= 1.0:
        place = origin.get("data.test") or _origin("data.validation", file, origin)
        raise ConfigError(
            f"{place}: data.validation + data.test = {sum(held_out):g}: nothing is left to train "
            "on; allowed: less than 1 together"
        )
