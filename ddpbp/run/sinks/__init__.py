"""Where the records of a run go: one file for each kind of sink.

console   one plain line per epoch
bar       a live bar on a terminal, and the console's lines above it
jsonl     metrics.jsonl, the record of truth

A sink has `log(record)`, `close()` and `live`. To add one, write a file here and pass it to
`train(..., sinks=[...])`. A sink that raises is dropped with a warning; it never stops a run.

A record is a dictionary with its "kind":

========  ===================================================================
text      "text": one line for a person
begin     "epochs", "examples_per_epoch", "done": examples seen before a resume
progress  "epoch", "step", "examples", "loss" of one step; only for live sinks
step      "epoch", "step", "loss", every `log_every_steps`
epoch     "epoch", "step", "learning_rate", the scores, "seconds", the rate
end       nothing more
========  ===================================================================
"""

from typing import Any, Protocol

Record = dict[str, Any]


class Sink(Protocol):
    """A place to which the records of a run go.

    Attributes
    ----------
    live : bool
        Whether it wants a record of every step.
    """

    live: bool

    def log(self, record: Record) -> None:
        """Take one record; a kind that the sink does not know is ignored."""

    def close(self) -> None:
        """Close files and the like; called once."""
