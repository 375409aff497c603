"""What the READMEs show is true: their commands run as they stand and print what is shown.

The blocks of a README run in order, in one folder. The words after its three backticks decide:

sh, python                    run; the exit code is 0
python as NAME                saved under this name, then run
python excerpt of FILE        its lines stand in that file, in this order
sh not run in tests: REASON   left out
text                          after a block that runs: what it prints; "..." stands for any lines
text WORDS                    not compared
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import ddpbp
from ddpbp.base.blas import HASWELL

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "launch/README.md",
    "ddpbp/run/README.md",
    "ddpbp/tools/README.md",
    "tests/benchmarks/README.md",
]
README = (ROOT / "README.md").read_text()
# The kernel of the printed numbers, so that a machine with AVX-512 prints them too.
KERNEL = {"DDPBP_KERNEL": "haswell", **HASWELL}


class Block(NamedTuple):
    """A fenced block: its first line in the file, the words after the backticks, its text."""

    line: int
    words: str
    text: str


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a document."""
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])
        for found in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.M)
    ]


def runs(words: str) -> bool:
    """Return whether a block with these words is run."""
    return re.fullmatch(r"sh|python( as \S+)?", words) is not None


def pattern(shown: str) -> str:
    """Return what the output has to match in full; speeds are the machine's."""
    lines = [
        "(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in shown.splitlines()
    ]
    return re.sub(r"[\d,]+\\ examples/s", lambda _: r"[\d,]+\ examples/s", "".join(lines))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_says_what_it_is(name):
    allowed = r"(sh|sh not run in tests: .+|python( as \S+| excerpt of \S+)?|text.*)"
    for block in blocks((ROOT / name).read_text()):
        assert re.fullmatch(allowed, block.words), f"{name}:{block.line}: {block.words}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_run_and_print_what_is_shown(name, shell, tmp_path):
    ended = None
    for block in blocks((ROOT / name).read_text()):
        where = f"{name}:{block.line}"
        if runs(block.words):
            lines = block.text
            if block.words != "sh":
                file = block.words.removeprefix("python as ") if " " in block.words else "block.py"
                (tmp_path / file).write_text(block.text)
                lines = f"python {file}"
            ended = shell(lines, cwd=tmp_path, **KERNEL)
            assert ended.returncode == 0, f"{where}\n{block.text}\n{ended.stdout}{ended.stderr}"
        else:
            if block.words == "text" and ended is not None:
                printed = re.fullmatch(pattern(block.text), ended.stdout)
                assert printed, f"{where} shows\n{block.text}\nbut this is printed\n{ended.stdout}"
            ended = None


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_excerpts_stand_in_their_files_in_this_order():
    excerpts = [b for b in blocks(README) if b.words.startswith("python excerpt of ")]
    assert excerpts
    for block in excerpts:
        source = (ROOT / block.words.split()[-1]).read_text()
        places = [source.index(line.strip()) for line in block.text.splitlines()]
        assert all(a < b for a, b in pairwise(places)), block.words


def test_the_equations_quote_the_code():
    nn = ROOT / "ddpbp" / "nn"
    source = "".join((nn / name).read_text() for name in ("layers/dense.py", "backprop.py"))
    rows = [line for line in README.splitlines() if re.match(r"\| \((F|BP\d)\)", line)]
    assert len(rows) == 5
    for row in rows:
        quoted = re.findall(r"`([^`]+)`", re.sub(r"\[.*?\]\(.*?\)", "", row))
        assert quoted
        assert [code for code in quoted if code not in source] == []


def modules(folder: Path) -> set[str]:
    """Return the names of the modules of a folder, "/" after those that are folders."""
    files = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
    return files | {f"{file.parent.name}/" for file in folder.glob("*/__init__.py")}


def test_the_tree_names_every_file():
    tree = next(block.text for block in blocks(README) if block.text.startswith("ddpbp/\n"))
    rooms: dict[str, set[str]] = {}
    room = ""
    for line in tree[: tree.index("launch/")].splitlines()[1:]:
        name = line[2:].split()[0]
        if line.startswith("    "):
            rooms[room].add(name)
        else:
            room = name
            rooms[room] = set()
    package = ROOT / "ddpbp"
    assert set(rooms) == modules(package)
    # A room of which no file is listed stands for its files.
    opened = {room: names for room, names in rooms.items() if names}
    assert opened == {room: modules(package / room) for room in opened}


def test_the_changelog_lists_this_version():
    changelog = README[README.index("## Changelog") :]
    assert f"- **{ddpbp.__version__}**" in changelog
