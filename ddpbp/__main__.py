"""Start: pin what must be pinned before NumPy is imported, then parse and run."""

import sys

from ddpbp import pin


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    pin.threads()
    from ddpbp.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
