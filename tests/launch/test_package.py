"""The launcher is a package under any name, and a file that runs where nothing is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH

# Without site-packages: neither ddpbp nor what it depends on is installed.
BARE = (sys.executable, "-IS")


def installed(folder: Path) -> Path:
    """Put the package where a wheel has it, inside another one."""
    (folder / "ddpbp").mkdir()
    (folder / "ddpbp" / "__init__.py").touch()
    (folder / "ddpbp" / "launch").symlink_to(LAUNCH.parent)
    return folder / "ddpbp" / "launch" / "launch.py"


def test_it_is_imported_from_inside_ddpbp(tmp_path):
    installed(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ddpbp.launch.start as start"
    subprocess.run([*BARE, "-c", f"{code}; print(start.main)"], check=True)


@pytest.mark.parametrize("place", ["checkout", "installation"])
def test_it_runs_as_a_file(tmp_path, place):
    file = LAUNCH if place == "checkout" else installed(tmp_path)
    # A package of that name elsewhere does not stand in the way.
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text("1 / 0")
    line = [
        sys.executable,
        "-S",
        str(file),
        "-n",
        "3",
        "--simulate",
        "--dry-run",
        "train",
        "seed=2",
    ]
    ended = subprocess.run(
        line, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert ended.stderr == ""
    assert ended.stdout == f"{sys.executable} -m ddpbp train seed=2 --simulate-ranks 3\n"


def test_every_file_is_named_in_the_docstring():
    import launch

    assert launch.__doc__
    named = {line.split()[0] for line in launch.__doc__.splitlines() if ".py  " in line}
    assert named | {"__init__.py"} == {file.name for file in LAUNCH.parent.glob("*.py")}
