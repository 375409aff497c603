"""The exceptions of the launcher, and how it prints."""

import os
import sys


class LaunchError(Exception):
    """Wrong use, or a host that cannot be used: one message, exit code 2."""


class OutputLostError(Exception):
    """Standard output cannot be written: one message, exit code 1."""


def print_message(text: str) -> None:
    """Print a message of the launcher, marked as such, after what the ranks have printed."""
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


def print_text(text: str) -> None:
    """Print a text to standard output now; a reader that closed its end is no fault.

    Raises
    ------
    OutputLostError
        If it cannot be written; from then on all output goes nowhere.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            reason = f"standard output cannot be written ({error.strerror})"
            raise OutputLostError(reason) from None
