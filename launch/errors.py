"""The one exception of the launcher, and how it prints a message."""

import sys


class LaunchError(Exception):
    """Wrong use, or a host that cannot be used: one message, exit code 2."""


def print_message(text: str) -> None:
    """Print a message of the launcher, marked as such, after what the ranks have printed."""
    if sys.stdout is not None:
        sys.stdout.flush()
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()
