"""The loop: learn, judge, save, stop; readable as prose."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from ddpbp.base import blas, phases
from ddpbp.base.hashing import digest
from ddpbp.base.version import __version__
from ddpbp.config.settings import Config
from ddpbp.config.write import dump, fingerprint, to_toml
from ddpbp.data.dataset import Dataset
from ddpbp.data.shards import Shard
from ddpbp.engine.evaluator import Evaluator
from ddpbp.engine.trainer import Trainer
from ddpbp.errors import ConfigError, DdpbpError, Stopped
from ddpbp.run.callbacks import Callback, judged_by, named, states_of
from ddpbp.run.faults import finished, recorded
from ddpbp.run.report import Report, headline, summary
from ddpbp.run.save_requests import SAVE, SaveRequests, is_stop, reason
from ddpbp.run.sinks.jsonl import JsonLines
from ddpbp.run.start import Start
from ddpbp.store.checkpoint import (
    Checkpoint,
    Progress,
    State,
    make_newest,
    metrics_of,
    name_of,
)
from ddpbp.store.checkpoint_writer import Writer
from ddpbp.store.files import write_whole
from ddpbp.store.lock import Lock
from ddpbp.store.model_file import StoredModel, write_model
from ddpbp.store.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    MODEL,
    add_missing_records,
    begin_run,
    remove_replaced,
    write_result,
)


class Outcome(NamedTuple):
    """The outcome of a run: the trained model, and what result.json holds."""

    model: StoredModel
    result: dict[str, Any]


class Run:
    """One rank's way through a training: learn, judge, save, stop.

    Parameters
    ----------
    config : Config
        For the records; the parts were built from it before.
    trainer : Trainer
    evaluator : Evaluator
    dataset : Dataset
    report : Report
    folder : Path or None
        The run folder; rank 0 writes it. None writes nothing.
    requests : SaveRequests
    callbacks : sequence of Callback
        This rank's own.
    lock : Lock, optional
        That of the run folder, on rank 0.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        evaluator: Evaluator,
        dataset: Dataset,
        report: Report,
        folder: Path | None,
        requests: SaveRequests,
        callbacks: Sequence[Callback] = (),
        lock: Lock | None = None,
    ) -> None:
        self.config, self.trainer, self.evaluator = config, trainer, evaluator
        self.dataset, self.report, self.folder = dataset, report, folder
        self.requests, self.callbacks, self.world = requests, callbacks, trainer.world
        self.lock = lock
        self.metrics: JsonLines | None = None
        self.progress = Progress()
        self.began = False
        self.examples, self.seconds = 0, 0.0  # of this process: a resumed run begins at 0
        self.model = StoredModel(
            config,
            trainer.network,
            trainer.theta,
            dataset.classes,
            dataset.standardization,
            dataset.columns,
            dataset.target,
        )
        writes = folder is not None and self.world.rank == 0
        self.writer = Writer(folder, config.checkpoint) if folder and writes else None

    def go(self, start: Start, processes: int, *, fast_dev_run: bool) -> Outcome:
        """Run from `start`, which rank 0 knows, to the end."""
        self._begin(start)
        with self.report, finished(self.writer), recorded(self._own_folder, self.trainer):
            if self.writer and self.folder:
                self.metrics = JsonLines(self.folder / METRICS)
                self.report.add(self.metrics)
            for note in (*self.trainer.notes, *start.notes):
                self.report.text(f"note: {note}")
            self.report.text(headline(self.dataset.description, self.trainer, processes))
            result = self.world.broadcast(start.result)
            if result:
                self.report.text(f"{self.folder} is complete; to continue it, raise epochs")
            else:
                result = self._learn(1 if fast_dev_run else self.config.epochs, fast=fast_dev_run)
                result |= {"world_size": processes, "threads": self.world.world_size // processes}
                self._finish(result)
            self.report.text(summary(result, self.folder))
        return Outcome(self.model, result)

    def _begin(self, start: Start) -> None:
        """Make the folder this run's, and restore the state to continue from."""
        root, foremost = start.foremost(self.world)
        checkpoint = foremost.checkpoint
        with self.world.together():  # not earlier: bad data must not remove a run
            start.require_fit(self.trainer.vectors)
            start.require_same_numbers(self.dataset.sha256, self.trainer.canary)
            if self.writer and self.folder and not start.result:
                metrics = None
                if checkpoint:
                    if not start.replace:
                        make_newest(checkpoint.path)
                    metrics, notes = metrics_of(checkpoint)
                    metrics = add_missing_records(metrics, foremost.records)
                    start.notes += notes
                begin_run(self.folder, to_toml(self.config), metrics, replace=start.replace)
        if checkpoint:
            state = checkpoint.state
            self.trainer.restore(
                start.vectors,
                root,
                step=state.step,
                eta=state.learning_rate,
                products=state.optimizer_products,
                theta_sha256=state.theta_sha256,
            )
            self.progress = state.progress
            for name, callback in named(self.callbacks).items():
                callback.restore(state.callbacks.get(name, {}))
        self.began = True

    def _learn(self, epochs: int, *, fast: bool) -> dict[str, Any]:
        n, p = len(self.dataset.train), self.progress
        self.report.begin(epochs, n, before := p.epoch * n + p.position)
        for callback in self.callbacks:
            callback.begin(self)
        self.requests.begin()
        while p.epoch < epochs:
            self._epoch(fast=fast)
        for callback in self.callbacks:
            callback.end(self)
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
        first_step = -(-p.position // trainer.shards.batch_size)
        for shard in trainer.shards.epoch(p.epoch, first_step):
            self._step(shard)
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
                "examples_per_second": seen / took if seen else None,
            }
        )
        p.epoch, p.position, p.loss_sum = p.epoch + 1, 0, 0.0
        loss = judged_by(p.scores)
        if loss < (math.inf if p.best_loss is None else p.best_loss):
            p.best_epoch, p.best_loss = p.epoch, loss
        for callback in self.callbacks:
            callback.epoch(self, p.scores)

    def _step(self, shard: Shard) -> None:
        trainer, p = self.trainer, self.progress
        trainer.request = self.requests.pending(self.world.rank)
        loss = trainer.train_step(shard)
        p.loss_sum += loss * shard.batch_examples
        p.position += shard.batch_examples
        every = self.config.log_every_steps
        logged = bool(every) and trainer.step % every == 0
        self.report.step(p.epoch + 1, trainer.step, shard.batch_examples, loss, logged=logged)
        for callback in self.callbacks:
            callback.step(self, loss)
        self._warn_of_failed_write()
        self._heed_requests()

    def _heed_requests(self) -> None:
        """Save or stop, where all ranks agreed to at this step."""
        if self.folder is None:
            return
        agreed, every = self.trainer.agreed, self.config.checkpoint.every_steps
        if is_stop(agreed):
            self._stop(agreed)
        elif agreed == SAVE or (every and self.trainer.step % every == 0):
            self.save()

    def save(self, score: float | None = None, *, wait: bool = False) -> None:
        """Begin to write a checkpoint; with `wait`, return when it is written.

        Parameters
        ----------
        score : float, optional
            The loss of exactly these weights, where they have been judged.
        wait : bool
        """
        if self.folder is None:
            return
        self.trainer.enter(phases.CHECKPOINT)
        self.trainer.require_in_step()
        self.requests.saved()
        callbacks = states_of(self.callbacks)  # on every rank, so that all fail or none
        if self.writer:
            self.writer.wait()
            self._warn_of_failed_write()
            try:
                self._restore_folder()
            except (DdpbpError, OSError) as error:
                self.writer.failure = DdpbpError(f"{self.folder} cannot be written: {error}")
            else:
                state = self._state(callbacks, score)
                self.writer.start(self.model, self.trainer.vectors, state, wait=wait)
        self.trainer.enter(phases.BETWEEN)

    def _state(self, callbacks: dict[str, dict[str, Any]], score: float | None = None) -> State:
        return State(
            version=__version__,
            step=self.trainer.step,
            metrics=self.metrics.mark if self.metrics else None,
            seed=self.config.seed,
            progress=msgspec.structs.replace(self.progress),
            score=score,
            learning_rate=self.trainer.eta,
            optimizer_products=self.trainer.optimizer.products,
            callbacks=callbacks,
            config=dump(self.config),
            config_sha256=fingerprint(self.config),
            data_sha256=self.dataset.sha256,
            canary_sha256=self.trainer.canary,
            environment=blas.fingerprint(),
        )

    def keep(self) -> Start:
        """Return a start from where this rank is, as if it had saved a checkpoint."""
        state = self._state(states_of(self.callbacks))
        state.theta_sha256 = digest([self.trainer.theta.flat])
        path = (self.folder or Path()) / CHECKPOINTS / name_of(state.step)
        last = list(self.report.last.values())
        return Start(Checkpoint(path, state, self.trainer.vectors), records=last)

    def _own_folder(self) -> Path | None:
        """Return the run folder, unless another job has taken it."""
        return None if self.lock and not self.lock.holds() else self.folder

    def _restore_folder(self) -> None:
        """Make the run folder again where somebody removed it; refuse that of another job."""
        assert self.folder
        whole = self.folder.exists()
        if self.lock and not self.lock.holds():
            self.lock.take()  # first: the files may be those of a job that began here since
            if self.metrics and not self.metrics.is_free():
                self.lock.release()
                raise ConfigError(
                    f"output {self.folder} was moved or removed, and holds another run by now; "
                    "the checkpoints of this one are where its folder was moved to"
                )
        if (self.folder / CONFIG).exists() and (self.folder / METRICS).exists():
            return
        write_whole(self.folder / CONFIG, [to_toml(self.config).encode()])
        if self.metrics and not (self.folder / METRICS).exists():
            self.metrics.restore()
        lost = "files in it were removed" if whole else "it was removed, with its checkpoints"
        self.report.text(f"warning: {self.folder}: {lost}; it is written again from here")

    def _warn_of_failed_write(self) -> None:
        """Report a checkpoint that could not be written; the training continues."""
        if self.writer and (failure := self.writer.take_failure()):
            self.report.text(f"warning: {failure}; the training continues without it")

    def _stop(self, request: int) -> NoReturn:
        """Save and leave.

        Raises
        ------
        Stopped
            On every rank.
        """
        self.save(wait=True)
        step, why = self.trainer.step, reason(request, self.config.max_seconds)
        with self.world.together():
            if self.writer and (failure := self.writer.take_failure()):
                raise DdpbpError(f"stopped by {why} at step {step}, but {failure}")
        raise Stopped(
            f"stopped by {why} at step {step}; to continue from there, start the same command with "
            "--resume auto"
        )

    def _finish(self, result: dict[str, Any]) -> None:
        """Write the last checkpoint, the model and, as the mark of a complete run, the result."""
        if self.folder is None:
            return
        scores = self.progress.scores
        self.save(score=judged_by(scores) if scores else None, wait=True)
        self.trainer.enter(phases.CHECKPOINT)
        with self.world.together():
            if self.writer and self.folder:
                self._warn_of_failed_write()
                self._restore_folder()
                write_model(self.folder / MODEL, self.model)
                write_result(self.folder, result)
                remove_replaced(self.folder)

    def _scores(self, name: str) -> dict[str, float | None]:
        part = getattr(self.dataset, name)
        if part is None:
            return {}
        self.trainer.enter(phases.EVALUATE)
        scores = self.evaluator.score(self.trainer.theta, part)
        self.trainer.enter(phases.BETWEEN)
        return {f"{name}_{key}": v for key, v in scores.items()}
