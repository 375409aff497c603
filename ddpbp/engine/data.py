"""From settings to the examples of a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddpbp.base.tasks import TASKS
from ddpbp.comm.compare_ranks import require_equal
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset, make_dataset
from ddpbp.data.options import SourceOptions
from ddpbp.data.sources import Source, files_of, open_source
from ddpbp.engine.team import Team
from ddpbp.nn.losses import LOSSES


def task_of(config: Config) -> str:
    """Return the name of the task: as configured, or the one that goes with the loss."""
    return config.data.task or LOSSES[config.loss.name].tasks[0]


def source_options(
    config: Config, *, target: str | None = None, columns: tuple[str, ...] | None = None
) -> SourceOptions:
    """Return how the settings open a source.

    Parameters
    ----------
    config : Config
    target : str or None
        The target columns, if the settings do not name them.
    columns : tuple of str or None
        The names of the features to take from a table.
    """
    data = config.data
    return SourceOptions(
        task=TASKS[task_of(config)],
        format=data.format,
        target=target if data.target is None else str(data.target),
        columns=columns,
        include=str(data.features) if data.features and data.source != "synthetic" else None,
        exclude=data.exclude,
        dimensions=data.rows,
        tree=data.tree,
        separator=data.separator,
        decimal=data.decimal,
        encoding=data.encoding,
        folder=data.folder,
        examples=data.examples,
        features=data.features if isinstance(data.features, int) else 0,
        classes=data.classes,
        targets=data.targets,
        seed=config.seed,
    )


def other_options(
    config: Config, path: str, target: str | None, columns: tuple[str, ...] | None
) -> SourceOptions:
    """Return how to open other data for the same model: a file is of the format of its name."""
    options = source_options(config, target=target, columns=columns)
    return options if Path(path).is_dir() else replace(options, format=None)


def open_dataset(
    config: Config, world: World, say: Callable[[str], None] = lambda _: None
) -> Dataset:
    """Read, split and standardise the data; all hosts must see the same bytes.

    Parameters
    ----------
    config : Config
    world : World
    say : callable, optional
        Shows a line while it takes long; called on rank 0.

    Raises
    ------
    DataError
        On every rank, if one of them cannot read its data.
    OutOfStep
        If the hosts read different data.
    """
    data = config.data

    def held_out(choice: float | str) -> float | Source:
        if isinstance(choice, float):
            return choice
        return open_source(choice, other_options(config, choice, source.target, source.columns))

    with world.together():
        source = open_source(data.source, source_options(config))
        validation = held_out(data.validation)
        test = None if data.test is None else held_out(data.test)
        others = [other for other in (validation, test) if isinstance(other, Source)]
        files = [file for read in (source, *others) for file in files_of(read.name)]
        states = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    apart = not _see_the_same(world, states)
    if apart and world.rank == 0:
        say("the ranks of a host see files of their own: every rank keeps a copy of the examples")
    dataset = make_dataset(
        source,
        validation=validation,
        test=test,
        standardize=data.standardize,
        keep_type=data.keep_type,
        dtype=config.model.dtype,
        seed=config.seed,
        team=Team(world, data.cache, say, apart=apart),
    )
    require_equal(
        world,
        f"data {data.source}",
        f"{dataset.sha256} {dataset.description} {dataset.classes}",
        "give every host the same files",
    )
    return dataset


def _see_the_same(world: World, states: list[tuple[int, int]]) -> bool:
    """Return whether the ranks of each host see the same files, so that they can share the work."""

    def by_host(every: list[tuple[int, list[tuple[int, int]]]]) -> bool:
        first = dict(reversed(every))  # what the first rank of each host sees
        return all(first[host] == states for host, states in every)

    return world.decide((world.host_index, states), by_host)
