"""The one exception of the launcher, how it prints a message, and output that is lost."""

import contextlib
import os
import sys


class LaunchError(Exception):
    """Wrong use, or a host that cannot be used: one message, exit code 2."""


def print_message(text: str) -> None:
    """Print a message of the launcher, marked as such, after what the ranks have printed."""
    print_text("")
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()


def print_text(text: str) -> None:
    """Print a text now; if it is lost, `end_output` reports that."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.write(text)
            sys.stdout.flush()


def end_output(code: int) -> int:
    """Flush standard output; return the exit code: 1 if output was lost and nothing else failed.

    A reader that closed its end is no fault.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor may it fail when Python exits
        if not isinstance(error, BrokenPipeError):
            print_message(f"standard output cannot be written ({error.strerror})")
            return code or 1
    return code
