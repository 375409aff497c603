"""Settings found and checked in one call: for scripts, tests and stored models."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpbp.base import blas
from ddpbp.config.check import check
from ddpbp.config.find import Origins, convert, find
from ddpbp.config.settings import Config


def resolve(
    path: Path | str | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Find and check the settings, and choose the BLAS kernel that they ask for.

    It warns if NumPy was imported before, since the kernel then stays as it is.

    Parameters
    ----------
    path, assignments, environment, flags
        As `config.find.find` takes them: a TOML file or the name of a shipped configuration, then
        ``"key=value"`` texts, the environment and dotted keys, of which a later one wins.

    Raises
    ------
    ConfigError
        Names the key or file, its value and the allowed ones.
    """
    config, origins = find(path, assignments, environment, flags)
    for note in blas.use_kernel(config.kernel):
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    check(config, origins)
    return config


def parse(tree: Mapping[str, Any]) -> Config:
    """Return the checked settings that nested dictionaries describe (see `config.write.dump`).

    The kernel of the process stays as it is.

    Raises
    ------
    ConfigError
        Names the key, its value and the allowed ones.
    """
    origins = Origins()
    config = convert(tree, origins)
    check(config, origins)
    return config
