"""Where settings come from: TOML file < `DDPBP_*` environment < `key=value` arguments < flags.

A later source wins. Every message names the place that gave the setting. Nothing here imports
NumPy, so that the kernel which the settings ask for can still be chosen.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from ddpbp.base.files import open_regular
from ddpbp.base.spelling import nearest, shortened, shown
from ddpbp.config.settings import SECTIONS, Config, hints
from ddpbp.errors import ConfigError

DEFAULT = "digits"
MAX_FILE_BYTES = 1_000_000


@dataclass
class Origins:
    """The source of each setting, for messages.

    Attributes
    ----------
    file : str
        The source of all settings that `places` does not name.
    places : dict of str
        "argument epochs=3", by dotted key.
    """

    file: str = "configuration"
    places: dict[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """Return the source of a setting, of a part of it, or of its whole section."""
        related = (
            name
            for name in self.places
            if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")
        )
        return self.places.get(key) or self.places.get(next(related, ""), self.file)


class Unchecked(NamedTuple):
    """Typed settings that no table has checked yet, and their sources."""

    config: Config
    origins: Origins


def find(
    path: Path | str | None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Unchecked:
    """Bring file, environment, `key=value` arguments and flags together.

    Parameters
    ----------
    path : Path, str or None
        A TOML file, or the name of a shipped configuration; None takes the shipped `digits`.
    assignments : sequence of str
        ``"optimizer.learning_rate=0.05"``; the value as TOML writes it, or bare text.
    environment : mapping, optional
        ``DDPBP_OPTIMIZER__LEARNING_RATE=0.05``; the process's own by default.
    flags : mapping, optional
        Dotted keys to values; None stands for an absent flag.

    Raises
    ------
    ConfigError
        Names the key or file, its value and the allowed ones.
    """
    file = shipped()[DEFAULT] if path is None else _file(Path(path))
    tree = _read(file)
    _find_shipped_data(tree, file)
    origins = Origins(str(file))

    def assign(key: str, value: Any, place: str, text: str) -> None:
        _assign(tree, key, value, text)
        origins.places[key] = place

    env = os.environ if environment is None else environment
    for name in sorted(name for name in env if name.startswith("DDPBP_")):
        key = name.removeprefix("DDPBP_").lower().replace("__", ".")
        assign(key, _value(env[name]), f"environment variable {name}", name)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"argument {shown(text)}: expected key=value, as in optimizer.learning_rate=0.05"
            )
        assign(key.strip(), _value(value), f"argument {shortened(text)}", shortened(text))
    for key, value in (flags or {}).items():
        if value is not None:
            assign(key, value, f"flag --{key}", key)
    return Unchecked(convert(tree, origins).with_name(file.stem if path else None), origins)


def convert(tree: Mapping[str, Any], origins: Origins) -> Config:
    """Return the typed settings that nested dictionaries describe.

    Raises
    ------
    ConfigError
        Names the key, its value and the allowed ones.
    """
    _refuse_unknown(tree, Config, "", origins)
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), tree, origins)) from None


# --- files ---------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """Return the configurations that come with ddpbp, installed or in a checkout, by name.

    Raises
    ------
    ConfigError
        If the installation lacks them.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{DEFAULT}.toml").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    raise ConfigError(f"configuration {DEFAULT!r} is not part of this installation; reinstall it")


def _file(path: Path) -> Path:
    """Return the file: itself, or a shipped one named as `xor` or `configs/xor.toml`."""
    named = path in (Path(path.stem), Path("configs") / f"{path.stem}.toml")
    return shipped()[path.stem] if named and path.stem in shipped() and not path.is_file() else path


def _find_shipped_data(tree: dict[str, Any], file: Path) -> None:
    """Point a shipped configuration, used outside a checkout, to the files that lie beside it."""
    if file not in shipped().values() or not isinstance(data := tree.get("data"), dict):
        return
    for key in ("source", "validation", "test"):
        name = data.get(key)
        if isinstance(name, str) and name.startswith("configs/") and not Path(name).exists():
            data[key] = str(file.parent.parent / name)


def _read(file: Path) -> dict[str, Any]:
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"configuration file {file} is larger than {MAX_FILE_BYTES:,} bytes")
        return tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        beside = [p.name for p in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        similar = nearest(file.name, beside)
        hint = f"; did you mean {file.with_name(similar)}?" if similar else ""
        raise ConfigError(
            f"configuration file {file} does not exist{hint}; shipped with ddpbp: "
            f"{', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"configuration file {shortened(str(file))} cannot be read: {why}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"configuration file {file} is not TOML: {shortened(str(error))}"
        ) from None


# --- values --------------------------------------------------------------------------------------


def _value(text: str) -> Any:
    """Return the value that a text is as TOML, else the text itself."""
    try:  # as an item of a list, it can hold neither a comment nor the next line of a file
        tree = tomllib.loads(f"v = [{text}]")
    except (ValueError, RecursionError):
        return text
    return tree["v"][0] if [*tree] == ["v"] and len(tree["v"]) == 1 else text


def _assign(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {shortened(section)} is a value, not a section")
    tree[name] = value


def _refuse_unknown(
    tree: Mapping[str, Any], kind: type[Struct], prefix: str, origins: Origins
) -> None:
    types = get_type_hints(kind)
    for name, value in tree.items():
        key = prefix + name
        if name not in types:
            known = [key for key, _ in hints()]
            similar = nearest(key, known if prefix else [*SECTIONS, *known], 0.7 if prefix else 0.5)
            hint = f"did you mean {similar}?" if similar else f"allowed: {', '.join(types)}"
            raise ConfigError(
                f"{origins.of(key)}: unknown setting {shortened(key)}; {hint} "
                "(all of them: ddpbp config show)"
            )
        if name in SECTIONS and not prefix:
            if not isinstance(value, dict):
                named = "name" in get_type_hints(types[name])
                hint = f"; did you mean {name}.name = {shown(value)}?" if named else ""
                raise ConfigError(f"{origins.of(key)}: {name} is a section, [{name}]{hint}")
            _refuse_unknown(value, types[name], f"{name}.", origins)


def _explain(message: str, tree: Any, origins: Origins) -> str:
    """Turn a message of msgspec into ours: source, key, value, allowed values."""
    text, _, place = message.partition(" - at `$.")
    key = re.sub(r"\[.*", "", place.rstrip("`"))
    value = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    text = text.replace("Expected", "expected")
    hint = dict(hints())[key]
    if text.startswith("Invalid enum value"):
        text = f"allowed: {', '.join(_words(hint))}"
    elif get_origin(hint) is list and not isinstance(value, list):
        text = f"expected a list: {key}=[{shown(value)}]"
    return f"{origins.of(key)}: {key} = {shown(value)}: {text}"


def _words(hint: Any) -> list[str]:
    """List the words that a setting of this type may be."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if hint is int:
        return ["a number"]
    return [word for part in get_args(hint) for word in _words(part)]
