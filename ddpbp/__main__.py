"""Start: `python -m ddpbp`, the same as the command `ddpbp`."""

import signal
import sys


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    # Last: or each module of Python and NumPy would be looked for in the folder of the run first,
    # by every rank; and a token.py there would be taken for Python's.
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    # From its first moment on, before there is anything to save, Ctrl-C ends the process at once. A
    # rank that waits for others in C would not run Python's handler, and they would wait for it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ddpbp.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
