"""Imports go down the floors, one library has one door, and nothing heavy is loaded unasked."""

import ast
import json
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpbp"

# The ground bears all; a room is a folder whose modules know each other and no other room.
FLOORS = {
    "ground": {"errors", "draws", "tree", "pin", "wire"},
    "floor 0": {"nn", "data", "comm"},
    "floor 1": {"config", "runfolder", "model", "checkpoint", "stop", "metrics", "report", "build"},
    "floor 2": {"train", "trainer", "resume", "evaluate", "gradcheck", "dryrun"},
    "floor 3": {"cli", "__main__", "bench", "doctor", "plan"},
}
HEIGHT = {room: height for height, rooms in enumerate(FLOORS.values()) for room in rooms}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            assert node.module
            # `from ddpbp import tree` names a module, `from ddpbp.base.tree import fold` none
            found |= {
                f"{node.module}.{alias.name}"
                if (PACKAGE.parent / node.module.replace(".", "/") / f"{alias.name}.py").exists()
                else node.module
                for alias in node.names
            }
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


IMPORTS = {module_of(path): imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}
OURS = {
    module: {name for name in imports if name.startswith("ddpbp.")}
    for module, imports in IMPORTS.items()
    if module != "ddpbp"  # its names are looked up when they are asked for
}


def test_every_module_has_its_floor():
    homeless = {room_of(module) for module in OURS} - HEIGHT.keys()
    assert homeless == set(), "give it a place in FLOORS"


def may_import(room: str, other: str) -> bool:
    """Tell whether one may: what lies below, and its own floor but for the rooms of floor 0."""
    if HEIGHT[room] == HEIGHT[other]:
        return room == other or room not in FLOORS["floor 0"]
    return HEIGHT[other] < HEIGHT[room]


def test_imports_point_to_a_lower_floor_or_stay_at_home():
    wrong = [
        f"{module} imports {name}"
        for module, names in OURS.items()
        for name in names
        if not may_import(room_of(module), room_of(name))
    ]
    assert wrong == []


def test_no_room_imports_itself_by_a_detour():
    rooms: dict[str, set[str]] = {}
    for module, names in OURS.items():
        here = room_of(module)
        rooms.setdefault(here, set()).update({room_of(name) for name in names} - {here})
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_world_knows_mpi():
    doors = {m for m, names in IMPORTS.items() if any(n.split(".")[0] == "mpi4py" for n in names)}
    assert doors == {"ddpbp.comm.mpi"}


def test_importing_the_package_imports_no_numpy():
    assert not any(name.split(".")[0] == "numpy" for name in IMPORTS["ddpbp"])


# --- the start-up budget -------------------------------------------------------------------------

SCRIPT = """
import json, sys
import ddpbp
from ddpbp.cli.main import run
code = run({arguments})
sys.stderr.write(json.dumps([code, sorted(sys.modules)]))
"""
# fmt: off
HEAVY = {
    "mpi4py", "rich", "safetensors", "threadpoolctl", "matplotlib", "torch", "pandas", "scipy",
    "sklearn", "pyarrow", "h5py", "onnx", "tensorboardX", "pygments", "asyncio", "multiprocessing",
    "unittest", "email", "http", "ssl", "sqlite3", "xml", "concurrent", "pydoc", "setuptools",
    "pkg_resources", "numpy.random", "numpy.testing", "numpy.ma", "numpy.fft", "numpy.polynomial",
    "numpy.f2py",
}
# fmt: on


def modules_after(python: Any, *arguments: str) -> list[str]:
    ended = python("-c", SCRIPT.format(arguments=list(arguments)))
    assert ended.returncode == 0, ended.stderr
    code, modules = json.loads(ended.stderr.splitlines()[-1])
    assert code == 0, ended.stderr
    assert ended.stdout
    return list(modules)


def test_a_dry_run_loads_nothing_heavy(python):
    modules = modules_after(python, "train", "--dry-run", "--no-mpi")
    assert "numpy" in modules
    assert HEAVY.isdisjoint(modules), sorted(HEAVY.intersection(modules))


def test_help_loads_no_numpy(python):
    modules = modules_after(python, "--help")
    assert "numpy" not in modules
    assert HEAVY.isdisjoint(modules), sorted(HEAVY.intersection(modules))
