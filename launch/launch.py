"""Run the launcher as a file: `python launch/launch.py`, also in a checkout that is not installed.

`ddpbp launch` runs this file, too.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Import the folder of this file as the package `launch`, whatever the path says; run it."""
    file = Path(__file__).resolve().with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("launch", file)
    assert spec
    assert spec.loader
    package = sys.modules["launch"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    from launch.start import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
