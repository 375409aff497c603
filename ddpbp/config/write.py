"""Settings as other things: dictionaries, TOML, a JSON schema, a hash, a list of differences."""

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from ddpbp.config import settings
from ddpbp.config.settings import SECTIONS, Config, flat, harmless
from ddpbp.nn.schedules import SCHEDULES

COMMENT_COLUMN = 32


def dump(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries of plain values."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """List the settings on which numbers depend and that have changed: "key: a → b".

    Parameters
    ----------
    before : mapping
        An earlier configuration as `dump` made it; a setting that it lacks was at its default.
    config : Config
    """
    old = flat(Config()) | _flat_tree(before)
    free = harmless()
    if not SCHEDULES[config.schedule.name].depends_on_length:
        free.add("epochs")
    return [
        f"{key}: {old.get(key)!r} → {value!r}"
        for key, value in flat(config).items()
        if key not in free and old.get(key) != value
    ]


def fingerprint(config: Config) -> str:
    """Return a hash over the settings that numbers depend on."""
    values, free = flat(config), harmless()
    text = msgspec.json.encode({key: values[key] for key in sorted(values) if key not in free})
    return hashlib.sha256(text).hexdigest()


def _flat_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in tree.items() if key not in SECTIONS}
    for section in SECTIONS:
        values |= {f"{section}.{key}": value for key, value in tree.get(section, {}).items()}
    return values


def to_toml(config: Config, *, explain: bool = False) -> str:
    """Write the configuration as TOML; settings that are unset stand as comments.

    Parameters
    ----------
    config : Config
    explain : bool
        Add the meaning of each setting, as a comment behind it.
    """
    comments = meanings() if explain else {}
    lines, section = [], ""
    for key, value in flat(config).items():
        new, _, name = key.rpartition(".")
        if new != section:
            section = new
            lines += ["", _commented(f"[{section}]", comments.get(section))]
        lines.append(_commented(_toml_line(name, value), comments.get(key)))
    return "\n".join(lines) + "\n"


def _toml_line(name: str, value: Any) -> str:
    if value is None:
        return f"# {name} ="
    return f"{name} = {msgspec.json.encode(value).decode()}"  # TOML's scalars and lists as JSON's


def _commented(line: str, comment: str | None) -> str:
    return f"{line:<{COMMENT_COLUMN}}  # {comment}" if comment else line


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file, with the meaning of each setting."""
    tree = msgspec.json.schema(Config)
    names = {"Config": ""} | {_struct_of(section): f"{section}." for section in SECTIONS}
    for struct, prefix in names.items():
        for name, definition in tree["$defs"][struct]["properties"].items():
            if meaning := meanings().get(prefix + name):
                definition["description"] = meaning
    return tree


@cache
def meanings() -> dict[str, str]:
    """Return the meaning of each setting and section, by key: the docstrings of their source."""
    module = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    texts = _docstrings(classes["Config"], "")
    for section in SECTIONS:
        struct = classes[_struct_of(section)]
        texts |= _docstrings(struct, f"{section}.")
        texts[section] = ast.get_docstring(struct) or ""
    return texts


def _struct_of(section: str) -> str:
    return type(getattr(Config(), section)).__name__


def _docstrings(struct: ast.ClassDef, prefix: str) -> dict[str, str]:
    """Return the string that stands below each field."""
    return {
        f"{prefix}{line.target.id}": below.value.value
        for line, below in zip(struct.body, struct.body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }
