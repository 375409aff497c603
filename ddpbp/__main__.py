"""Start: `python -m ddpbp`, the same as the command `ddpbp`."""

import sys

from ddpbp.cli.main import run


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
