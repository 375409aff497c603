"""What a run reports: one stream of records, handed to every sink; on rank 0, nowhere else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from ddpbp.base import tree
from ddpbp.engine.trainer import Trainer
from ddpbp.run.output import figure
from ddpbp.run.sinks import Record, Sink


class Report:
    """Hands records to sinks; without sinks it is the silent report of the other ranks.

    Parameters
    ----------
    sinks : iterable of Sink

    Attributes
    ----------
    last : dict
        The last record of each kind that metrics.jsonl keeps; rank 0 may die before it is written.
    """

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks: list[Sink] = []
        self._live = False
        self.last: dict[str, Record] = {}
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Sink) -> None:
        """Send the records to one more sink from now on."""
        self._sinks.append(sink)
        self._live |= sink.live

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()

    def text(self, text: str) -> None:
        """Show one line."""
        self._log({"kind": "text", "text": text})

    def begin(self, epochs: int, examples_per_epoch: int, done: int = 0) -> None:
        """Begin a run; `done` examples were learned from before it was resumed."""
        self._log(
            {
                "kind": "begin",
                "epochs": epochs,
                "examples_per_epoch": examples_per_epoch,
                "done": done,
            }
        )

    def step(self, epoch: int, step: int, examples: int, loss: float, *, logged: bool) -> None:
        """Report one step; `loss` is the mean over its examples. `logged` keeps it."""
        if self._live:
            self._log(
                {
                    "kind": "progress",
                    "epoch": epoch,
                    "step": step,
                    "examples": examples,
                    "loss": loss,
                }
            )
        if logged:
            self._keep({"kind": "step", "epoch": epoch, "step": step, "loss": loss})

    def epoch(self, record: dict[str, Any]) -> None:
        """Report the end of an epoch."""
        self._keep({"kind": "epoch", **record})

    def end(self) -> None:
        """Report the end of the training."""
        self._log({"kind": "end"})

    def _keep(self, record: Record) -> None:
        self.last[record["kind"]] = record
        self._log(record)

    def _log(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.log(record)
            except Exception as error:  # whatever it is: reporting changes no number
                self._sinks.remove(sink)
                reason = error.strerror if isinstance(error, OSError) else repr(error)
                self.text(f"warning: {sink} cannot be written: {reason}; continuing without it")


def headline(description: str, trainer: Trainer, processes: int) -> str:
    """Return the lines that a run begins with: its data, network, leaves and ranks."""
    network, shards = trainer.network, trainer.shards
    sizes = "-".join(str(n) for n in network.sizes)
    ranks = f"{processes} rank" + "s" * (processes > 1)
    if (count := trainer.world.world_size // processes) > 1:
        ranks += f" of {count} threads"
    leaves = tree.leaf_count(shards.batch_size, shards.micro_batch_size)
    return (
        f"{description}\n"
        f"network {sizes}, {network.parameter_count:,} parameters; "
        f"{shards.examples:,} examples in batches of {shards.batch_size} "
        f"({leaves} leaves) on {ranks}"
    )


def summary(result: dict[str, Any], folder: Path | None) -> str:
    """Return the lines that a run ends with: its scores, the hash of θ and its folder."""
    scores = [figure(key, v) for key, v in result.items() if key.startswith("test_")]
    lines = ["  ".join(scores)] if scores else []
    lines.append(f"theta sha256 {result['theta_sha256']}")
    if folder:
        lines.append(f"saved in {folder}")
    return "\n".join(lines)
