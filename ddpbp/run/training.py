"""Training: the loop, readable as prose."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from ddpbp import __version__
from ddpbp.base import blas, tree
from ddpbp.base.hashing import digest
from ddpbp.base.phases import BETWEEN, CHECKPOINT, EVALUATE
from ddpbp.comm import threads
from ddpbp.comm.heartbeat import Fault, Heartbeat
from ddpbp.comm.join import launched
from ddpbp.comm.world import Lost, World, outlive
from ddpbp.config.settings import Config, dump, fingerprint, to_toml
from ddpbp.data.batches import Batch
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import make_network
from ddpbp.engine.data import open_dataset
from ddpbp.engine.evaluator import Evaluator
from ddpbp.engine.trainer import Trainer
from ddpbp.errors import ConfigError, DdpbpError, Stopped
from ddpbp.run.report import Printed, Report, figure
from ddpbp.run.requests import SAVE, Requests, is_stop, reason
from ddpbp.run.start import Start, prepare
from ddpbp.store.checkpoint import Checkpoint, Progress, State, Writer, metrics_of, name_of
from ddpbp.store.model_file import Model, save_model
from ddpbp.store.run_folder import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    RESULT,
    begin_run,
    complete,
    write_fault,
    write_json,
)

# Below this many operations a leaf (6 per parameter and example) threads gained nothing: measured.
THREAD_FLOPS = 300_000_000
SPEAK_SECONDS = 2.0


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
    resume: str | None = None,
    force: bool = False,
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
    resume : str, optional
        Go on from a checkpoint: its path or that of a run folder, or "auto": the newest of the run
        folder, and a new run if there is none.
    force : bool
        Go on although settings, data or machine give other numbers than those of the checkpoint.
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
        On every rank alike: bad settings or data, divergence, ranks out of step; `Stopped` if a
        signal or `max_seconds` asked for it.
    """
    world = world or World()
    require_enough_leaves(config, world.world_size)
    folder = None if fast_dev_run else Path(config.output)
    requests = Requests(
        max_seconds=config.max_seconds,
        every_minutes=config.checkpoint.every_minutes,
        alone=launched() is None,
    )

    def leave(fault: Fault) -> bool:
        return folder is None or write_fault(folder, fault)

    dataset: Dataset | None = None
    run: Run | None = None
    kept = Start()  # what this rank can go on from when others are lost

    def on_process(world: World) -> Trained:
        nonlocal dataset, kept
        start = Start()
        with Heartbeat(world, config.stall_seconds, leave) as heartbeat:
            if world.lost:
                if run and run.began:
                    kept = run.keep()
                require_begun(world, kept)
                start = kept
            else:
                with world.together():
                    if folder and world.rank == 0:
                        start = prepare(
                            config, folder, overwrite=overwrite, resume=resume, force=force
                        )
                dataset = open_dataset(config, world)
            assert dataset is not None  # where one has begun, all have read
            start.notes += heartbeat.notes
            return on_threads(world, dataset, start)

    def on_threads(world: World, dataset: Dataset, start: Start) -> Trained:
        features = dataset.train.x.shape[1]
        parameters = make_network(config, features, dataset.outputs).parameter_count
        count = choose_threads(config, parameters, world)
        on_terminal = world.world_size == 1 and launched() is None and sys.stdout.isatty()

        def on_thread(team: World) -> Trained:
            nonlocal run
            report: Report = Report()
            if team.rank == 0:
                report = Printed(bar=bar if bar is not None else on_terminal)
            first = team.rank == world.rank * count
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told by us
                mine = Run(config, dataset, team, report, folder, requests)
                if first:
                    run = mine
                begin = start if first else Start()
                return mine.go(begin, world.world_size, fast_dev_run=fast_dev_run)

        return threads.run(world, count, on_thread)

    with requests if folder else nullcontext():
        return outlive(world, on_process)


def require_begun(world: World, kept: Start) -> None:
    """Refuse to go on after ranks were lost, unless one of those left has begun to train.

    Raises
    ------
    DdpbpError
        On every rank.
    """
    lost = ", ".join(map(str, world.lost))
    what = f"rank {lost} of {world.world_size + len(world.lost)} is gone (killed? out of memory?)"
    steps = [step for step in world.all_gather_object(kept.step) if step is not None]
    if not steps:
        raise DdpbpError(f"{what}, before the training began; start again")
    kept.notes = [f"{what}; {world.world_size} go on, from step {max(steps)}"]


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


class Run:
    """One rank's way through a training: learn, judge, save, stop.

    Parameters
    ----------
    config : Config
    dataset : Dataset
    world : World
    report : Report
    folder : Path or None
        The run folder; rank 0 writes it. None writes nothing.
    requests : Requests
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        report: Report,
        folder: Path | None,
        requests: Requests,
    ) -> None:
        self.config, self.dataset, self.world = config, dataset, world
        self.report, self.folder, self.requests = report, folder, requests
        self.trainer = Trainer(config, dataset, world)
        self.evaluator = Evaluator(config, self.trainer.network, world)
        self.progress = Progress()
        self.began = False
        self.examples, self.seconds = 0, 0.0  # of this process: a resumed run begins at 0
        self.model = Model(
            config,
            self.trainer.network,
            self.trainer.theta,
            dataset.classes,
            dataset.standardization,
            dataset.columns,
            dataset.target,
        )
        writes = folder is not None and world.rank == 0
        self.writer = Writer(folder, config.checkpoint) if folder and writes else None

    def go(self, start: Start, processes: int, *, fast_dev_run: bool) -> Trained:
        """Run from the start, as rank 0 knows it, to the end."""
        root, foremost = start.foremost(self.world)
        found = foremost.checkpoint
        with self.world.together():  # only now: bad data leave no run behind, nor remove one
            start.require_fit(self.trainer.vectors)
            start.require_same_numbers(self.dataset.sha256, self.trainer.canary)
            if self.writer and self.folder and not start.result:
                metrics = found and complete(metrics_of(found), foremost.records)
                begin_run(self.folder, to_toml(self.config), metrics)
        if found:
            self.trainer.restore(found.state, start.vectors, root)
            self.progress = found.state.progress
        self.began = True
        with self.report, ending(self.writer), told(self.folder, self.trainer):
            if self.folder and isinstance(self.report, Printed):
                self.report.open(self.folder / METRICS)
            for note in (*blas.overridden(), *self.trainer.notes, *start.notes):
                self.report.say(f"note: {note}")
            self.report.say(_headline(self.config, self.trainer, processes))
            result = self.world.broadcast(start.result)
            if result:
                self.report.say(f"{self.folder} is complete; to go on with it raise epochs")
            else:
                result = self._learn(1 if fast_dev_run else self.config.epochs, fast=fast_dev_run)
                result |= {"world_size": processes, "threads": self.world.world_size // processes}
                self._finish(result)
            self.report.say(_summary(result, self.folder))
        return Trained(self.model, result)

    def _learn(self, epochs: int, *, fast: bool) -> dict[str, Any]:
        n, p = len(self.dataset.train), self.progress
        before = p.epoch * n + p.position
        self.report.begin(epochs, n, before)
        while p.epoch < epochs:
            self._epoch(fast=fast)
        self.report.end()
        return {
            "theta_sha256": digest([self.trainer.theta.flat]),
            **p.scores,
            **self._scores("test"),
            "best_epoch": p.best_epoch,
            "epochs": epochs,
            "steps": self.trainer.step,
            "examples": before + self.examples,
            "examples_per_second": self.examples / self.seconds if self.seconds else None,
            "parameters": self.trainer.network.parameter_count,
            "canary_sha256": self.trainer.canary,
        }

    def _epoch(self, *, fast: bool) -> None:
        trainer, p = self.trainer, self.progress
        first, began = p.position, time.perf_counter()
        first_step = -(-p.position // self.config.batch_size)
        for batch in trainer.batches.epoch(p.epoch, first_step):
            self._step(batch)
            if fast:
                break
        took, seen = time.perf_counter() - began, p.position - first
        self.examples, self.seconds = self.examples + seen, self.seconds + took
        trainer.require_in_step()
        p.scores = {"train_loss": p.loss_sum / p.position, **self._scores("validation")}
        self.report.epoch(
            {
                "epoch": p.epoch + 1,
                "step": trainer.step,
                "learning_rate": trainer.eta,
                **p.scores,
                "seconds": took,
                "examples_per_second": seen / took,
            }
        )
        p.epoch, p.position, p.loss_sum = p.epoch + 1, 0, 0.0
        loss = _loss(p.scores)
        if loss < (math.inf if p.best_loss is None else p.best_loss):
            p.best_epoch, p.best_loss = p.epoch, loss
        if self.folder and self.config.checkpoint.keep_best and p.epoch < self.config.epochs:
            self._save(score=loss)

    def _step(self, batch: Batch) -> None:
        trainer, p, config = self.trainer, self.progress, self.config
        trainer.request = self.requests.pending(self.world.rank)
        loss = trainer.train_step(batch)
        p.loss_sum += loss * batch.examples
        p.position += batch.examples
        step = trainer.step
        log = bool(config.log_every_steps) and step % config.log_every_steps == 0
        self.report.step(p.epoch + 1, step, batch.examples, loss, log=log)
        if config.check_every_steps and step % config.check_every_steps == 0:
            trainer.require_in_step()
        self._tell_failure()
        if self.folder is None:
            return
        every = config.checkpoint.every_steps
        if is_stop(trainer.agreed):
            self._stop(trainer.agreed)
        elif trainer.agreed == SAVE or (every and step % every == 0):
            self._save()

    def _save(self, score: float | None = None, *, wait: bool = False) -> None:
        """Begin to write a checkpoint, of what all ranks agree on; or write it, and wait."""
        self.world.pulse.enter(CHECKPOINT, self.trainer.step)
        self.trainer.require_in_step()
        self.requests.saved()
        if self.writer:
            self.writer.wait()
            self._tell_failure()
            self.writer.start(self.model, self.trainer.vectors, self._state(score), wait=wait)
        self.world.pulse.enter(BETWEEN, self.trainer.step)

    def _state(self, score: float | None = None) -> State:
        return State(
            version=__version__,
            step=self.trainer.step,
            seed=self.config.seed,
            progress=msgspec.structs.replace(self.progress),
            score=score,
            learning_rate=self.trainer.eta,
            optimizer_products=self.trainer.optimizer.products,
            config=dump(self.config),
            config_sha256=fingerprint(self.config),
            data_sha256=self.dataset.sha256,
            canary_sha256=self.trainer.canary,
            environment=blas.fingerprint(),
        )

    def keep(self) -> Start:
        """Return how to go on from where this rank is, as if it had saved a checkpoint."""
        state = self._state()
        state.theta_sha256 = digest([self.trainer.theta.flat])
        path = (self.folder or Path()) / CHECKPOINTS / name_of(state.step)
        last = list(self.report.last.values())
        return Start(Checkpoint(path, state, self.trainer.vectors), records=last)

    def _tell_failure(self) -> None:
        """Say it if a checkpoint could not be written; the training goes on."""
        if self.writer and (failure := self.writer.take_failure()):
            self.report.say(f"warning: {failure}; the training goes on without it")

    def _stop(self, request: int) -> NoReturn:
        """Save and leave.

        Raises
        ------
        Stopped
            On every rank.
        """
        self._save(wait=True)
        step, why = self.trainer.step, reason(request, self.config.max_seconds)
        with self.world.together():
            if self.writer and (failure := self.writer.take_failure()):
                raise DdpbpError(f"stopped by {why} at step {step}, but {failure}")
        raise Stopped(
            f"stopped by {why} at step {step}; to go on from there, start the same command with "
            "--resume auto"
        )

    def _finish(self, result: dict[str, Any]) -> None:
        """Write the last checkpoint, the model and, as the mark of a complete run, the result."""
        if self.folder is None:
            return
        scores = self.progress.scores
        self._save(score=_loss(scores) if scores else None, wait=True)
        self.world.pulse.enter(CHECKPOINT, self.trainer.step)
        with self.world.together():
            if self.writer and self.folder:
                self._tell_failure()
                save_model(self.folder / MODEL, self.model)
                write_json(self.folder / RESULT, result)

    def _scores(self, name: str) -> dict[str, float | None]:
        part = getattr(self.dataset, name)
        if part is None:
            return {}
        self.world.pulse.enter(EVALUATE, self.trainer.step)
        found = self.evaluator.score(self.trainer.theta, part)
        self.world.pulse.enter(BETWEEN, self.trainer.step)
        return {f"{name}_{key}": v for key, v in found.items()}


@contextmanager
def ending(writer: Writer | None) -> Iterator[None]:
    """See a checkpoint that is being written to its end, however the block ends."""
    try:
        yield
    finally:
        if writer:
            writer.wait()


@contextmanager
def told(folder: Path | None, trainer: Trainer) -> Iterator[None]:
    """Leave fault.json if the run ends by a fault; of several ranks, by the first one's.

    Raises
    ------
    SystemExit
        Instead of the fault of a rank that another one was faster than.
    """
    try:
        yield
    except (Stopped, Lost, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        shared = isinstance(error, DdpbpError)  # has reached every rank
        if folder is None or (shared and trainer.world.rank):
            raise
        fault = {
            "rank": trainer.world.rank,
            "host": trainer.world.host,
            "step": trainer.step,
            "phase": trainer.world.pulse.phase.name,
            "cause": str(error) if shared else f"{type(error).__name__}: {error}",
            "exit_code": error.code if isinstance(error, DdpbpError) else 1,
        }
        error.add_note("rank {rank} on {host}, step {step}, phase {phase}".format(**fault))
        if not write_fault(folder, fault) and not shared:
            time.sleep(SPEAK_SECONDS)  # the other one ends all of us when it has spoken
            raise SystemExit(1) from None
        raise


def _loss(scores: Mapping[str, float | None]) -> float:
    """Return what an epoch is judged by: the validation loss, else that of training."""
    loss = scores.get("validation_loss", scores["train_loss"])
    return math.inf if loss is None else loss


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
