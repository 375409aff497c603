"""The console: plain lines on standard output."""

from ddpbp.run.output import figure, print_text
from ddpbp.run.sinks import Record


class Console:
    """Prints texts, and one line per epoch."""

    live = False

    def __init__(self) -> None:
        self._epochs = 0

    def log(self, record: Record) -> None:
        """Print texts and epochs."""
        kind = record["kind"]
        if kind == "text":
            self.print(record["text"])
        elif kind == "begin":
            self._epochs = record["epochs"]
        elif kind == "epoch":
            self.print(self._line(record))

    def print(self, line: str) -> None:
        """Print one line."""
        print_text(line)

    def close(self) -> None:
        """Do nothing: there is no file to close."""

    def _line(self, record: Record) -> str:
        shown = [f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}"]
        shown += [
            figure(name, value)
            for name, value in record.items()
            if name.startswith(("train_", "validation_"))
        ]
        if record["examples_per_second"]:  # none was left, where the run is resumed at the end
            shown.append(f"{record['examples_per_second']:,.0f} examples/s")
        return "  ".join(shown)
