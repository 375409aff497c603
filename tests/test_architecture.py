"""Imports go down the floors, one library has one door, and nothing heavy is loaded unasked."""

import ast
import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpbp"

# A room is a folder or a file right below the package. It imports lower floors only.
FLOORS = (
    {"errors"},
    {"base"},
    {"nn", "data", "comm", "metrics"},
    {"config"},
    {"store"},
    {"engine"},
    {"run"},
    {"tools"},
    {"api"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
LAZY = {
    "mpi4py", "rich", "safetensors", "threadpoolctl", "h5py", "pyarrow", "onnx", "matplotlib",
    "tensorboardX", "sklearn", "torch",
}  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, path: Path) -> set[str]:
    """Return the names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert not node.level, f"{path}: relative import"
    assert node.module
    # `from ddpbp.base import tree` names a module, `from ddpbp.base.tree import fold` none
    place = PACKAGE.parent / node.module.replace(".", "/")
    return {
        f"{node.module}.{alias.name}"
        if (place / f"{alias.name}.py").exists() or (place / alias.name / "__init__.py").exists()
        else node.module
        for alias in node.names
    }


def imports_of(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, in functions and for types too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return set().union(*(imported(node, path) for node in nodes))


def at_start(path: Path) -> set[str]:
    """Return the names of the modules that a file imports when it is loaded."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return set().union(*(imported(node, path) for node in body))


PATHS = sorted(p for p in PACKAGE.rglob("*.py") if p.parts[len(PACKAGE.parts)] != "launch")
IMPORTS = {module_of(path): imports_of(path) for path in PATHS}
OURS = {
    module: {
        name for name in imports if name.split(".")[0] == "ddpbp" and name not in ("ddpbp", module)
    }
    for module, imports in IMPORTS.items()
    if module != "ddpbp"  # its names are looked up when they are asked for
}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_its_floor():
    assert {room_of(module) for module in OURS} == HEIGHT.keys(), "a room without a floor, or gone"


def test_a_room_imports_lower_floors_only():
    wrong = [
        f"{module} imports {name}"
        for module, names in OURS.items()
        for name in names
        if room_of(module) != room_of(name) and HEIGHT[room_of(name)] >= HEIGHT[room_of(module)]
    ]
    assert wrong == []


def test_no_room_imports_the_package_itself():
    """Its public names come from rooms above; the version, too, has its file in `base`."""
    assert [module for module, names in IMPORTS.items() if "ddpbp" in names] == []


def test_no_circle_inside_a_room():
    try:
        TopologicalSorter(OURS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_heavy_libraries_load_at_the_call():
    loaded = {
        f"{module_of(path)} imports {name}"
        for path in PATHS
        for name in at_start(path)
        if name.split(".")[0] in LAZY
    }
    assert loaded == set()


def test_only_one_module_knows_mpi():
    doors = {m for m, names in IMPORTS.items() if any(n.split(".")[0] == "mpi4py" for n in names)}
    assert doors == {"ddpbp.comm.mpi"}


def test_the_launcher_and_the_trainer_do_not_import_each_other():
    launch = PACKAGE.parent / "launch"
    names = {name.split(".")[0] for path in launch.rglob("*.py") for name in imports_of_any(path)}
    assert "ddpbp" not in names
    assert "launch" not in {name.split(".")[0] for names in IMPORTS.values() for name in names}


def imports_of_any(path: Path) -> set[str]:
    """Return what a file imports by absolute names; relative imports stay in its package."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            names |= imported(node, path)
    return names


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir()))
def test_every_room_says_what_lives_there(room):
    path = PACKAGE / room / "__init__.py"
    if room in ("__pycache__", "launch", "configs"):
        pytest.skip("not a room")
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    assert len(lines) >= 4, "what lives here, what it may import, where to add the usual thing"
    names = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" and p != path}
    assert names - set(re.findall(r"\w+", "\n".join(lines))) == set(), "one phrase for each file"


def test_importing_the_package_imports_no_numpy():
    init = PACKAGE / "__init__.py"
    assert not any(name.split(".")[0] == "numpy" for name in at_start(init))


def test_files_and_functions_stay_short():
    """A longer file gives its reason in its first docstring: "Long because ..."."""
    long = []
    for path in PATHS:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        reason = "Long because" in (ast.get_docstring(tree) or "")
        if text.count("\n") > 360 and not reason:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                docstring = ast.get_docstring(node, clean=False) or ""
                if lines - docstring.count("\n") > 60:
                    long.append(f"{path.name}: {node.name} has {lines} lines")
    assert long == []


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
