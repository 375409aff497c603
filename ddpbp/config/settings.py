"""The settings: typed, each with its meaning and its limits beside it.

Only the structures stand here. A setting marked `HARMLESS` changes no number: a run may be
continued with another value of it. NumPy is not imported: the settings decide how it is set up.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta, Struct, field, structs

HARMLESS = Meta(extra={"harmless": True})

Count = Annotated[int, Meta(ge=1, le=2**53)]
Number = Annotated[int, Meta(ge=0, le=2**53)]
ThreadCount = Annotated[int, Meta(ge=1, le=1_024)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
TaskName = Literal["classification", "binary", "multilabel", "regression"]


class DataConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The data to learn from."""

    source: Text = "digits"
    """digits, fashion-mnist, synthetic, or a path: a file, a folder of them, or "a/*.csv"."""
    format: str | None = None
    """The format of the files, where their names do not show it."""
    folder: Annotated[str | None, HARMLESS] = None
    """The folder that holds the files of a named source, if not the usual one."""
    standardize: bool = True
    """Shift and scale each feature to mean 0 and deviation 1 on the training part."""
    validation: Share | str = 0.1
    """The fraction of the training examples held out to watch the run, or a path."""
    test: Share | str | None = None
    """The fraction held out for the test, or a path; by default the source's own test part."""
    keep_type: Annotated[bool, HARMLESS] = False
    """Keep the features in the type of the source; less memory, slower steps, the same numbers."""
    cache: Annotated[Text | None, HARMLESS] = None
    """A folder for rows that do not fit in /dev/shm; by default that of temporary files."""
    target: str | int | None = None
    """The column (name or index) or array that holds the targets; several columns as "a,b*"."""
    exclude: Text | None = None
    """Columns that are no features, as "a,b*"."""
    separator: Text | None = None
    """CSV: what separates columns, as ";", tab or blanks; by default as the first line shows."""
    decimal: Literal[".", ","] = "."
    """CSV: the sign before decimals."""
    encoding: Text | None = None
    """CSV: the encoding of the text, as latin-1; by default UTF-8."""
    rows: Text | None = None
    """NetCDF: the dimensions whose points are the rows, as "time,lat,lon"; others make columns."""
    tree: Text | None = None
    """ROOT: the name of the tree."""
    task: TaskName | None = None
    """The kind of targets; by default the one that the loss is made for."""
    examples: Number = 0
    """Synthetic data: rows."""
    features: Number | Text = 0
    """Table: the features, as "a,b*"; by default all but the targets. Synthetic data: how many."""
    classes: Number = 0
    """Synthetic data: classes of a classification."""
    targets: Number = 0
    """Synthetic data: outputs of the other tasks."""


class ModelConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The network."""

    hidden: list[Count] = field(default_factory=lambda: [64])
    """Units of the hidden layers, from the input on; [] is a linear model."""
    activation: str = "relu"
    """σ of the hidden layers."""
    output: str | None = None
    """σ of the last layer; by default the one that goes with the loss."""
    dropout: Annotated[float, Meta(ge=0, le=0.99)] = 0.0
    """The share of hidden units left out at each training step."""
    dtype: Literal["float32", "float64"] = "float32"
    """The type of all numbers computed."""
    initialization: str = "he_uniform"
    """How the first weights are drawn."""


class LossConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The quantity that training minimises."""

    name: str = "cross_entropy"
    """The loss."""
    label_smoothing: Share = 0.0
    """ε of cross_entropy: the share of a target spread over all classes."""
    huber_delta: Positive = 1.0
    """The size of an error from which huber grows linearly instead of as a square."""


class OptimizerConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """How the weights follow from the gradient."""

    name: str = "sgd"
    """The optimizer; sgd is plain gradient descent."""
    learning_rate: Positive = 0.1
    """η, before the schedule."""
    weight_decay: NotNegative = 0.0
    """λ: how much a weight shrinks by itself."""
    decay_biases: bool = False
    """Apply weight_decay to biases too."""
    clip_norm: NotNegative = 0.0
    """Scale a longer gradient down to this norm; 0 turns it off."""
    momentum: Share = 0.9
    """μ of momentum, nesterov and lars."""
    beta1: Share = 0.9
    """β1 of adam, adamw and lamb."""
    beta2: Share = 0.999
    """β2 of adam, adamw and lamb."""
    rho: Share = 0.99
    """ρ of rmsprop."""
    epsilon: Positive = 1e-8
    """ε of rmsprop, adam, adamw and lamb."""
    trust_coefficient: Positive = 0.001
    """The length of a step of lars, as a share of the norm of each layer."""
    base_batch_size: Number = 0
    """Scale η by batch_size / base_batch_size (the linear scaling rule); 0 turns it off."""
    shard: Annotated[Literal["auto", "none", "host"], HARMLESS] = "auto"
    """Hold the optimizer's state once a host, not in every rank; auto does where it is large."""


class ScheduleConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """How the learning rate changes over the run."""

    name: str = "constant"
    """The schedule, counted from the end of the warm-up."""
    warmup_steps: Number = 0
    """Steps over which η rises linearly at the start."""
    every_epochs: Positive = 10.0
    """step, exponential: epochs until η is multiplied by gamma."""
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """step, exponential: the factor."""
    final_factor: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """cosine: the share of η that is left at the end."""


class CheckpointConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """When to save the state of the run; a run that ends or is stopped always saves it."""

    every_steps: Annotated[Number, HARMLESS] = 0
    """Save every N steps; 0 turns it off."""
    every_minutes: Annotated[NotNegative, HARMLESS] = 1.0
    """Save every N minutes; 0 turns it off."""
    keep_last: Annotated[Count, HARMLESS] = 2
    """Number of the newest checkpoints to keep; with two, one may be damaged."""
    keep_best: Annotated[Number, HARMLESS] = 0
    """Number of epochs of least validation (else training) loss to keep; `best` names the first."""


class Config(Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run computes, and how it is logged."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """The only source of randomness: order, initial weights, dropout, splits."""
    epochs: Number = 10
    """Passes over the training part."""
    batch_size: Count = 256
    """Examples of one step, over all ranks together."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Examples of one leaf, the unit of work; auto is an eighth of batch_size, rounded up."""
    output: Annotated[Text, HARMLESS] = "runs/{name}"
    """The run folder; {name} is the stem of the configuration file, else of data.source."""
    threads: Annotated[ThreadCount | Literal["auto"], HARMLESS] = "auto"
    """Threads of each process, each with leaves of its own; auto uses as many as pay."""
    kernel: Literal["native", "haswell"] = "native"
    """BLAS kernel: the machine's own, or one that all x86 machines since 2013 share."""
    wire: Literal["none", "bf16", "fp16"] = "none"
    """Round every sum of gradients to 16 bits, which halves the bytes sent between machines."""
    bucket_cap_bytes: Annotated[Count, HARMLESS] = 500_000
    """Bytes of the gradient that travel together between machines; changes no bit."""
    log_every_steps: Annotated[Number, HARMLESS] = 0
    """Write the loss to metrics.jsonl every N steps; 0 writes it once an epoch only."""
    check_every_steps: Annotated[Number, HARMLESS] = 100
    """Compare the weights of all ranks every N steps; 0 compares them at each epoch only."""
    max_seconds: Annotated[NotNegative, HARMLESS] = 0.0
    """Save and stop with exit code 75 after N seconds; 0 turns it off."""
    stall_seconds: Annotated[NotNegative, HARMLESS] = 300.0
    """End the run if a rank makes no progress for N seconds (slow phases: 10 N); 0 turns it off."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def leaf_size(self) -> int:
        """The micro-batch size as a number."""
        if self.micro_batch_size == "auto":
            return -(-self.batch_size // 8)
        return min(self.micro_batch_size, self.batch_size)

    def with_name(self, name: str | None = None) -> "Config":
        """Return these settings with `name` for "{name}" in `output`.

        Without a name, the stem of the data source is taken: runs/iris for data/iris.csv.
        """
        name = name or _name_of(self.data.source) or "run"
        return structs.replace(self, output=self.output.replace("{name}", name))


def _name_of(source: str) -> str:
    """Return the stem of a path; of a pattern such as "parts/*.csv", that of its folder."""
    path = Path(source)
    stem = Path(path.name.removesuffix(".gz").removesuffix(".zst")).stem.strip(".*?[]")
    return stem or path.parent.name.strip(".*?[]")


SECTIONS = ("data", "model", "loss", "optimizer", "schedule", "checkpoint")


def hints() -> Iterator[tuple[str, Any]]:
    """Yield each setting by its dotted key, with its annotated type."""
    top = get_type_hints(Config, include_extras=True)
    yield from ((name, hint) for name, hint in top.items() if name not in SECTIONS)
    for section in SECTIONS:
        for name, hint in get_type_hints(top[section], include_extras=True).items():
            yield f"{section}.{name}", hint


def harmless() -> set[str]:
    """Return the keys of the settings that no number depends on."""
    return {key for key, hint in hints() if HARMLESS in getattr(hint, "__metadata__", ())}


def flat(config: Config) -> dict[str, Any]:
    """Return the value of each setting by its dotted key."""
    values = {}
    for key, _ in hints():
        section, _, name = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, name)
    return values
