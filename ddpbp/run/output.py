"""Writing to standard output, and a figure as text."""

import os
import sys

from ddpbp.errors import DdpbpError


def figure(name: str, value: float) -> str:
    """Format one figure of a record: "validation loss 0.0123"."""
    digits = ".4f" if name.endswith(("accuracy", "match", "r2")) else "#.4g"
    return f"{name.replace('_', ' ')} {value:{digits}}"


def print_text(text: str, end: str = "\n") -> None:
    """Write to standard output; a reader that closed its end is no fault.

    Raises
    ------
    DdpbpError
        If it cannot be written, as on a full disk; from then on there is no standard output.
    """
    if sys.stdout is None:
        raise DdpbpError("standard output is closed")
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the rest of the output goes nowhere
    except OSError as error:
        sys.stdout = None  # as Python has it where there is none
        raise DdpbpError(f"standard output cannot be written: {error.strerror}") from None
