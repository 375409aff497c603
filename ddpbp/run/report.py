"""What is shown while a run goes on, and metrics.jsonl: on rank 0, nowhere else."""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec


def figure(name: str, value: float) -> str:
    """Show one figure of a record: "validation loss 0.0123"."""
    digits = ".4f" if name.endswith(("accuracy", "match", "r2")) else "#.4g"
    return f"{name.replace('_', ' ')} {value:{digits}}"


def say(text: str, end: str = "\n") -> None:
    """Write to standard output; it is no fault if nobody reads any more."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be said goes nowhere


class Report:
    """A silent report: what every rank but the first has.

    All numbers come from outside; a report changes nothing.

    Attributes
    ----------
    last : dict
        The last record of each kind, which the first rank may not have written before it died.
    """

    def __init__(self) -> None:
        self.last: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Show one line."""

    def begin(self, epochs: int, examples_per_epoch: int, done: int = 0) -> None:
        """Start the clock of a run; `done` examples were learned from before it was resumed."""

    def step(self, epoch: int, step: int, examples: int, loss: float, *, log: bool) -> None:
        """Tell of one step; `loss` is its mean. `log` writes it to metrics.jsonl."""
        if log:
            self._write({"kind": "step", "epoch": epoch, "step": step, "loss": loss})

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell of the end of an epoch."""
        self._write({"kind": "epoch", **record})

    def _write(self, record: dict[str, Any]) -> None:
        self.last[record["kind"]] = record

    def end(self) -> None:
        """Take the bar away."""

    def close(self) -> None:
        """Put the terminal back and close the file."""


class Printed(Report):
    """Rank 0's report: a live bar or plain lines, and metrics.jsonl."""

    def __init__(self, *, bar: bool) -> None:
        super().__init__()
        self._terminal = bar
        self._file: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._epochs = 0

    def open(self, metrics: Path) -> None:
        """Append the records of this run to `metrics`."""
        self._file = metrics.open("ab", buffering=0)

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(line)

    def begin(self, epochs: int, examples_per_epoch: int, done: int = 0) -> None:
        self._epochs = epochs
        self._started_seconds = time.perf_counter()
        if not self._terminal:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} examples/s"),
            TimeRemainingColumn(),
            console=Console(force_terminal=True),
            transient=True,  # what stays is one line an epoch
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=epochs * examples_per_epoch, epoch=0, epochs=epochs, loss=0.0, rate=0.0
        )
        self._before = self._done = done
        self._drawn_seconds = 0.0

    def step(self, epoch: int, step: int, examples: int, loss: float, *, log: bool) -> None:
        super().step(epoch, step, examples, loss, log=log)
        if self._bar is None:
            return
        self._done += examples
        now = time.perf_counter()
        if now - self._drawn_seconds > 0.1:
            self._drawn_seconds = now
            rate = (self._done - self._before) / (now - self._started_seconds)
            self._bar.update(self._task, completed=self._done, epoch=epoch, loss=loss, rate=rate)

    def epoch(self, record: dict[str, Any]) -> None:
        super().epoch(record)
        shown = [f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"]
        for name, value in record.items():
            if name.startswith(("train_", "validation_")):
                shown.append(figure(name, value))
        shown.append(f"{record['examples_per_second']:,.0f} examples/s")
        self.say("  ".join(shown))

    def _write(self, record: dict[str, Any]) -> None:
        super()._write(record)
        if self._file is None:
            return
        try:
            self._file.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            name, self._file = self._file.name, None
            self.say(f"warning: {name} cannot be written: {error.strerror}; going on without it")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        self.end()
        if self._file is not None:
            self._file.close()
            self._file = None
