"""A live bar on a terminal; only the console's lines stay on the screen."""

import time
from typing import Any

from ddpbp.run.sinks import Record
from ddpbp.run.sinks.console import Console

REDRAW_SECONDS = 0.1


class Bar(Console):
    """The console with a bar below it: epoch, loss, examples per second, time left."""

    live = True

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._task: Any = None

    def log(self, record: Record) -> None:
        """Draw, or print above the bar."""
        kind = record["kind"]
        if kind == "progress":
            self._advance(record)
            return
        if kind == "end":
            self._stop()
        super().log(record)
        if kind == "begin":
            self._start(record)

    def print(self, line: str) -> None:
        """Print one line above the bar."""
        if self._bar is None:
            super().print(line)
        else:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        self._stop()

    def _start(self, record: Record) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} examples/s"),
            TimeRemainingColumn(),
            console=Terminal(force_terminal=True),
        )
        self._bar.start()
        total = record["epochs"] * record["examples_per_epoch"]
        self._task = self._bar.add_task(
            "", total=total, epoch=0, epochs=record["epochs"], loss=0.0, rate=0.0
        )
        self._before = self._done = record["done"]
        self._started_seconds, self._drawn_seconds = time.perf_counter(), 0.0

    def _advance(self, record: Record) -> None:
        self._done += record["examples"]
        now = time.perf_counter()
        if self._bar is None or now - self._drawn_seconds < REDRAW_SECONDS:
            return
        self._drawn_seconds = now
        self._bar.update(
            self._task,
            completed=self._done,
            epoch=record["epoch"],
            loss=record["loss"],
            rate=(self._done - self._before) / (now - self._started_seconds),
        )

    def _stop(self) -> None:
        if self._bar is not None:
            # Not `transient`, which erases the line above when the bar stops: a launcher may have
            # printed a message there already, since it passes on whole lines.
            self._bar.update(self._task, visible=False)
            self._bar.stop()
            self._bar = None
