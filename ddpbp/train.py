"""Training: the loop, readable as prose."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpbp import checkpoint, pin, tree
from ddpbp.build import make_network, open_dataset
from ddpbp.checkpoint import Model
from ddpbp.comm import threads
from ddpbp.comm.watch import digest
from ddpbp.comm.world import World, launched
from ddpbp.config import Config, to_toml
from ddpbp.data.dataset import Dataset
from ddpbp.errors import ConfigError
from ddpbp.evaluate import Evaluator
from ddpbp.report import Printed, Report, figure
from ddpbp.trainer import Trainer

# Below this many operations a leaf (6 per parameter and example) threads gained nothing: measured.
THREAD_FLOPS = 300_000_000


def require_enough_leaves(config: Config, world_size: int) -> None:
    """Refuse more ranks than a batch has leaves.

    Raises
    ------
    ConfigError
        Says which two settings to change.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    if world_size > leaves:
        raise ConfigError(
            f"{world_size} ranks, but a batch has only {leaves} leaves (batch_size = "
            f"{config.batch_size}, micro_batch_size = {config.leaf_size}): start at most {leaves} "
            "ranks, raise batch_size or lower micro_batch_size (each thread is a rank here)"
        )


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes
    ----------
    model : Model
    result : dict
        What result.json holds.
    """

    model: Model
    result: dict[str, Any]


def train(
    config: Config,
    world: World | None = None,
    *,
    overwrite: bool = False,
    fast_dev_run: bool = False,
    bar: bool | None = None,
) -> Trained:
    """Train as the configuration says; rank 0 writes the run folder and reports.

    Parameters
    ----------
    config : Config
    world : World, optional
        The ranks; one process by default.
    overwrite : bool
        Replace a run that is already in the folder.
    fast_dev_run : bool
        One batch of everything, written nowhere.
    bar : bool, optional
        Show a live bar; by default where one process writes to a terminal. (Open MPI gives its
        ranks a terminal of their own, whatever mpirun writes to.)

    Returns
    -------
    Trained

    Raises
    ------
    DdpbpError
        On every rank alike: bad settings or data, divergence, ranks out of step.
    """
    world = world or World()
    require_enough_leaves(config, world.world_size)
    folder = None if fast_dev_run else Path(config.output)
    with world.together():
        if folder and world.rank == 0:
            checkpoint.make_run_folder(folder, overwrite=overwrite)
    dataset = open_dataset(config, world)

    on_terminal = world.world_size == 1 and launched() is None and sys.stdout.isatty()

    def on_thread(team: World) -> Trained:
        report: Report = Report()
        if team.rank == 0:
            report = Printed(bar=bar if bar is not None else on_terminal)
        return _run(
            config, dataset, team, world.world_size, folder, report, fast_dev_run=fast_dev_run
        )

    parameters = make_network(config, dataset.train.x.shape[1], dataset.outputs).parameter_count
    return threads.run(world, choose_threads(config, parameters, world), on_thread)


def choose_threads(config: Config, parameters: int, world: World) -> int:
    """Return the threads of each process: as configured, or the cores there are for it.

    Threads are worth their meetings only if a leaf is big enough: `THREAD_FLOPS`, measured.
    """
    leaves = tree.leaf_count(config.batch_size, config.leaf_size) // world.world_size
    if config.threads != "auto":
        require_enough_leaves(config, world.world_size * config.threads)
        return config.threads
    big = 6 * parameters * config.leaf_size >= THREAD_FLOPS
    mine = min(threads.cores(world), leaves) if big else 1
    fewest: int = min(world.all_gather_object(max(1, mine)))
    return fewest


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # looked for, and told, by us
def _run(
    config: Config,
    dataset: Dataset,
    world: World,
    processes: int,
    folder: Path | None,
    report: Report,
    *,
    fast_dev_run: bool,
) -> Trained:
    trainer = Trainer(config, dataset, world)
    evaluator = Evaluator(config, trainer.network, world)
    with world.together():
        if folder and world.rank == 0:  # only now: bad data leave no run behind, nor remove one
            checkpoint.begin_run(folder, to_toml(config))
    with report:
        if folder and isinstance(report, Printed):
            report.open(folder / checkpoint.METRICS)
        for note in pin.notes:
            report.say(f"note: {note}")
        report.say(_headline(config, trainer, processes))
        result = _learn(config, trainer, evaluator, report, fast_dev_run=fast_dev_run)
        result |= {"world_size": processes, "threads": world.world_size // processes}
        model = Model(
            config,
            trainer.network,
            trainer.theta,
            dataset.classes,
            dataset.standardization,
            dataset.columns,
            dataset.target,
        )
        with world.together():
            if folder and world.rank == 0:
                checkpoint.save_model(folder / checkpoint.MODEL, model)
                checkpoint.write_json(folder / checkpoint.RESULT, result)
        report.say(_summary(result, folder))
    return Trained(model, result)


def _learn(
    config: Config,
    trainer: Trainer,
    evaluator: Evaluator,
    report: Report,
    *,
    fast_dev_run: bool,
) -> dict[str, Any]:
    dataset, batches = trainer.dataset, trainer.batches
    epochs = 1 if fast_dev_run else config.epochs
    examples, seconds = 0, 0.0
    record: dict[str, Any] = {}
    report.begin(epochs, len(dataset.train))
    for epoch in range(epochs):
        loss_sum, seen, began = 0.0, 0, time.perf_counter()
        for batch in batches.epoch(epoch):
            loss = trainer.train_step(batch)
            loss_sum += loss * batch.examples
            seen += batch.examples
            log = bool(config.log_every_steps) and trainer.step % config.log_every_steps == 0
            report.step(epoch + 1, trainer.step, batch.examples, loss, log=log)
            if config.check_every_steps and trainer.step % config.check_every_steps == 0:
                trainer.require_in_step()
            if fast_dev_run:
                break
        took = time.perf_counter() - began
        trainer.require_in_step()
        examples, seconds = examples + seen, seconds + took
        record = {
            "epoch": epoch + 1,
            "step": trainer.step,
            "learning_rate": trainer.eta,
            "train_loss": loss_sum / seen,
            **_scores("validation", evaluator, trainer),
            "seconds": took,
            "examples_per_second": seen / took,
        }
        report.epoch(record)
    report.end()
    scores = {key: v for key, v in record.items() if key.startswith(("train_", "validation_"))}
    return {
        "theta_sha256": digest([trainer.theta.flat]),
        **scores,
        **_scores("test", evaluator, trainer),
        "epochs": epochs,
        "steps": trainer.step,
        "examples": examples,
        "examples_per_second": examples / seconds if seconds else None,
        "parameters": trainer.network.parameter_count,
        "canary_sha256": trainer.canary,
    }


def _scores(name: str, evaluator: Evaluator, trainer: Trainer) -> dict[str, float]:
    part = getattr(trainer.dataset, name)
    if part is None:
        return {}
    return {f"{name}_{key}": v for key, v in evaluator.score(trainer.theta, part).items()}


def _headline(config: Config, trainer: Trainer, processes: int) -> str:
    sizes = "-".join(str(n) for n in trainer.network.sizes)
    ranks = f"{processes} rank" + "s" * (processes > 1)
    if (count := trainer.world.world_size // processes) > 1:
        ranks += f" of {count} threads"
    leaves = tree.leaf_count(config.batch_size, config.leaf_size)
    return (
        f"{trainer.dataset.description}\n"
        f"network {sizes}, {trainer.network.parameter_count:,} parameters; "
        f"{len(trainer.dataset.train):,} examples in batches of {config.batch_size} "
        f"({leaves} leaves) on {ranks}"
    )


def _summary(result: dict[str, Any], folder: Path | None) -> str:
    scores = [figure(key, v) for key, v in result.items() if key.startswith("test_")]
    lines = ["  ".join(scores)] if scores else []
    lines.append(f"theta sha256 {result['theta_sha256']}")
    if folder:
        lines.append(f"saved in {folder}")
    return "\n".join(lines)
