"""The checks that types cannot express: names of the tables, settings that exclude each other.

The tables import NumPy, which reads its BLAS kernel from the environment once: choose the kernel
before, with `ddpbp.base.blas.use_kernel(config.kernel)`.
"""

import math
from collections.abc import Iterable
from typing import Any

from ddpbp.base.spelling import nearest, shown
from ddpbp.config.find import Origins
from ddpbp.config.settings import Config, flat
from ddpbp.errors import ConfigError

OTHER_NAMES = {
    **{"mse": "squared_error", "l2": "squared_error", "mae": "absolute", "l1": "absolute"},
    **{"bce": "binary_cross_entropy", "nll": "cross_entropy", "linear": "identity"},
}
"""What other libraries call things, by their name here; for messages."""


def check(config: Config, origins: Origins) -> None:
    """Refuse settings that name nothing, are not finite or exclude each other.

    Raises
    ------
    ConfigError
        Names the source, the key, its value and the allowed ones.
    """
    _check_names(config, origins)
    for key, value in flat(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{origins.of(key)}: {key} = {value}: allowed: a finite number")
        if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            raise ConfigError(
                f"{origins.of(key)}: {key} = {shown(value)}: allowed: text; if it is UTF-8, "
                "set LC_ALL=C.UTF-8"
            )
    _check_together(config, origins)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written: undecoded bytes of the command line cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(config: Config, origins: Origins) -> None:
    from ddpbp.nn.activations import hidden_activations
    from ddpbp.nn.initializations import INITIALIZATIONS
    from ddpbp.nn.losses import LOSSES
    from ddpbp.nn.optimizers import OPTIMIZERS
    from ddpbp.nn.schedules import SCHEDULES

    def require(key: str, value: Any, allowed: Iterable[str], why: str = "") -> None:
        if value in allowed:
            return
        similar = OTHER_NAMES.get(str(value).lower(), "") or nearest(str(value), allowed)
        hint = f"; did you mean {similar}?" if similar in allowed else ""
        raise ConfigError(
            f"{origins.of(key)}: {key} = {shown(value)}: allowed{why}: {', '.join(allowed)}{hint}"
        )

    require("model.activation", config.model.activation, hidden_activations())
    require("model.initialization", config.model.initialization, INITIALIZATIONS)
    require("loss.name", config.loss.name, LOSSES)
    require("optimizer.name", config.optimizer.name, OPTIMIZERS)
    require("schedule.name", config.schedule.name, SCHEDULES)
    loss, with_loss = LOSSES[config.loss.name], f" with loss {config.loss.name}"
    if config.model.output is not None:
        require(
            "model.output", config.model.output, loss.outputs or hidden_activations(), with_loss
        )
    if config.data.task is not None:
        require("data.task", config.data.task, loss.tasks, with_loss)


def _check_together(config: Config, origins: Origins) -> None:
    from ddpbp.nn.losses import LOSSES

    readers = [name for name, loss in LOSSES.items() if "label_smoothing" in loss.settings()]
    if config.loss.label_smoothing and config.loss.name not in readers:
        raise ConfigError(
            f"{origins.of('loss.label_smoothing')}: loss.label_smoothing = "
            f"{config.loss.label_smoothing:g} is for loss {', '.join(readers)}, "
            f"not {config.loss.name}"
        )
    if config.wire != "none" and config.model.dtype != "float32":
        raise ConfigError(
            f"{origins.of('wire')}: wire = {config.wire!r} is for "
            f'model.dtype = "float32", not {config.model.dtype}'
        )
    held_out = [v for v in (config.data.validation, config.data.test) if isinstance(v, float)]
    if sum(held_out) >= 1.0:
        place = origins.places.get("data.test") or origins.of("data.validation")
        raise ConfigError(
            f"{place}: data.validation + data.test = {sum(held_out):g}: nothing is left to train "
            "on; allowed: less than 1 together"
        )
