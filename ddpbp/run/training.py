"""A training from start to end: processes, their threads, and continuing without lost ranks."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddpbp.comm import threads
from ddpbp.comm.heartbeat import Heartbeat
from ddpbp.comm.join import launched
from ddpbp.comm.peers import Fault
from ddpbp.comm.world import World, outlive
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Dataset
from ddpbp.engine.build import make_evaluator, make_network, make_trainer
from ddpbp.engine.data import open_dataset
from ddpbp.errors import DdpbpError
from ddpbp.run.callbacks import Callback, CompareRanks, SaveCandidates
from ddpbp.run.loop import Outcome, Run
from ddpbp.run.output import print_text
from ddpbp.run.ranks import choose_threads, require_enough_leaves
from ddpbp.run.report import Report
from ddpbp.run.save_requests import SaveRequests
from ddpbp.run.sinks import Sink
from ddpbp.run.sinks.bar import Bar
from ddpbp.run.sinks.console import Console
from ddpbp.run.start import Start, find_start
from ddpbp.store.lock import Lock
from ddpbp.store.run_folder import FAULT, write_fault


def train(
    config: Config,
    world: World | None = None,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    force: bool = False,
    fast_dev_run: bool = False,
    bar: bool | None = None,
    callbacks: Sequence[Callable[[], Callback]] = (),
    sinks: Sequence[Callable[[], Sink]] = (),
    notes: Sequence[str] = (),
) -> Outcome:
    """Train as the configuration says; rank 0 writes the run folder and reports.

    Parameters
    ----------
    config : Config
    world : World, optional
        The ranks; one process by default.
    overwrite : bool
        Replace a run that is already in the folder.
    resume : str, optional
        Continue from a checkpoint: its path or that of a run folder, or "auto": the newest of the
        run folder, and a new run if there is none.
    force : bool
        Continue although settings, data or machine give other numbers than those of the checkpoint.
    fast_dev_run : bool
        One batch of everything, written nowhere.
    bar : bool, optional
        Show a live bar; by default where one process writes to a terminal. (Open MPI gives its
        ranks a terminal of their own, whatever mpirun writes to.)
    callbacks : sequence of callable
        Each makes a `Callback`, one for every rank.
    sinks : sequence of callable
        Each makes a `Sink` beside the console's and metrics.jsonl; for rank 0.
    notes : sequence of str
        To be printed first.

    Returns
    -------
    Outcome

    Raises
    ------
    DdpbpError
        On every rank alike: bad settings or data, divergence, ranks out of step; `Stopped` if a
        signal or `max_seconds` asked for it.
    """
    world, config = world or World(), config.with_name()
    require_enough_leaves(config, world.world_size)
    alone = launched() is None
    if bar is None:
        bar = world.world_size == 1 and alone and sys.stdout.isatty()
    requests = SaveRequests(
        max_seconds=config.max_seconds, every_minutes=config.checkpoint.every_minutes, alone=alone
    )
    lock = None if fast_dev_run else Lock(config.output)
    process = Process(
        config,
        lock,
        requests,
        callbacks,
        [Bar if bar else Console, *sinks],
        lambda: find_start(
            config, Path(config.output), overwrite=overwrite, resume=resume, force=force
        ),
        fast_dev_run=fast_dev_run,
        notes=list(notes),
    )
    if lock is None:
        return outlive(world, process.train)
    with requests, lock:
        return outlive(world, process.train)


@dataclass
class Process:
    """One process of a training; `train` is called again each time ranks were lost.

    Attributes
    ----------
    config : Config
    lock : Lock or None
        That of the run folder; None writes nothing.
    requests : SaveRequests
    callbacks, sinks : sequence of callable
    find_start : callable
        Returns how the run starts; for rank 0.
    fast_dev_run : bool
    notes : list of str
    dataset : Dataset or None
        What was read the first time.
    run : Run or None
        That of this process's first thread.
    """

    config: Config
    lock: Lock | None
    requests: SaveRequests
    callbacks: Sequence[Callable[[], Callback]]
    sinks: Sequence[Callable[[], Sink]]
    find_start: Callable[[], Start]
    fast_dev_run: bool
    notes: list[str] = field(default_factory=list)
    dataset: Dataset | None = None
    run: Run | None = None
    folder: Path | None = None  # once this job holds its lock
    _kept: Start = field(default_factory=Start)  # the start after others are lost

    def train(self, world: World) -> Outcome:
        """Train, or continue after ranks were lost, on all ranks of `world`."""
        start = Start()
        with Heartbeat(world, self.config.stall_seconds, self._leave) as heartbeat:
            with world.together():
                if self.lock and world.rank == 0:
                    self.notes += self.lock.take()
                    if not world.lost:  # an earlier fault would silence that of this start
                        (self.lock.folder / FAULT).unlink(missing_ok=True)
            self.folder = self.lock.folder if self.lock else None
            if world.lost:
                if self.run and self.run.began:
                    self._kept = self.run.keep()
                require_begun(world, self._kept)
                start = self._kept
            else:
                self.dataset = open_dataset(self.config, world, print_text)
                with world.together():
                    if self.folder and world.rank == 0:
                        start = self.find_start()
            assert self.dataset is not None  # a run that has begun has read its data
            start.notes += [*self.notes, *heartbeat.notes]
            self.notes.clear()
            return self._on_threads(world, self.dataset, start)

    def _leave(self, fault: Fault) -> bool:
        return self.folder is None or write_fault(self.folder, fault)

    def _on_threads(self, world: World, dataset: Dataset, start: Start) -> Outcome:
        """Run this process's threads, each a rank with leaves of its own."""
        network = make_network(self.config, dataset.train.x.shape[1], dataset.outputs)
        count = choose_threads(self.config, network.parameter_count, world)

        def on_thread(team: World) -> Outcome:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported by us
                run = self._make_run(team, dataset)
                first = team.rank == world.rank * count
                if first:
                    self.run = run
                begin = start if first else Start()
                return run.go(begin, world.world_size, fast_dev_run=self.fast_dev_run)

        return threads.run(world, count, on_thread)

    def _make_run(self, world: World, dataset: Dataset) -> Run:
        config = self.config
        trainer = make_trainer(config, dataset, world)
        callbacks: list[Callback] = [CompareRanks(config.check_every_steps)]
        if config.checkpoint.keep_best:
            callbacks.append(SaveCandidates(config.epochs))
        return Run(
            config,
            trainer,
            make_evaluator(config, trainer.network, world),
            dataset,
            Report(make() for make in self.sinks) if world.rank == 0 else Report(),
            self.folder,
            self.requests,
            [*callbacks, *(make() for make in self.callbacks)],
            self.lock if world.rank == 0 else None,
        )


def require_begun(world: World, kept: Start) -> None:
    """Refuse to continue after ranks were lost, unless a remaining rank has begun to train.

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
    kept.notes = [f"{what}; {world.world_size} continue from step {max(steps)}"]
