"""The Dockerfile passes its linter."""

import subprocess
import sys
from pathlib import Path

from tests.launch.conftest import LAUNCH


def test_the_dockerfile_is_clean():
    linter = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run(
        [linter, LAUNCH.parents[1] / "Dockerfile"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "")
