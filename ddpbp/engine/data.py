"""From settings to the examples of a run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ddpbp.base.hashing import digest
from ddpbp.comm.comparison import require_equal
from ddpbp.comm.tree_sum import tree_sum
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset, prepare
from ddpbp.data.sources import Source, open_source
from ddpbp.nn.losses import LOSSES


def task_of(config: Config) -> str:
    """Return the task: as configured, or the one that goes with the loss."""
    return config.data.task or LOSSES[config.loss.name].tasks[0]


def read_source(config: Config, path: str | None = None, target: str | None = None) -> Source:
    """Open the source that the settings name, or another one of the same kind at `path`.

    `target` names the target columns if the settings do not.
    """
    data = config.data
    if data.target is not None:
        target = str(data.target)
    return open_source(
        path or data.source,
        format=None if path and not Path(path).is_dir() else data.format,
        task=task_of(config),
        target=target,
        folder=data.folder,
        examples=data.examples,
        features=data.features,
        classes=data.classes,
        targets=data.targets,
        seed=config.seed,
    )


def open_dataset(config: Config, world: World) -> Dataset:
    """Read, split and standardise the data; all ranks must see the same bytes.

    Raises
    ------
    DataError
        On every rank, if one of them cannot read its data.
    OutOfStep
        If the ranks read different data.
    """
    data = config.data
    with world.together():
        source = read_source(config)
        validation = _held_out(config, data.validation, source.target)
        test = None if data.test is None else _held_out(config, data.test, source.target)
    everything = [source.train.x, source.train.y]
    for part in (source.test, *(s.train for s in (validation, test) if isinstance(s, Source))):
        everything += [part.x, part.y] if part else []
    sha256 = digest(everything)
    require_equal(
        world,
        f"data {data.source}",
        f"{sha256} {source.description} {source.classes}",
        "give every host the same files",
    )
    dataset = prepare(
        source,
        validation=validation,
        test=test,
        standardize=data.standardize,
        dtype=config.model.dtype,
        seed=config.seed,
        block_sum=partial(tree_sum, world),
    )
    return replace(dataset, sha256=sha256)


def _held_out(config: Config, given: float | str, target: str | None) -> float | Source:
    return read_source(config, given, target) if isinstance(given, str) else given
