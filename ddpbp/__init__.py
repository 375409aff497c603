"""Distributed data-parallel backpropagation: the same bits on one process and on many.

Importing ddpbp gives BLAS one thread and loads no NumPy. A script that uses `kernel` calls
`resolve` or `load_model` before it imports NumPy. The names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddpbp.base import blas
from ddpbp.base.version import __version__ as __version__

if TYPE_CHECKING:
    from ddpbp.api import Model as Model
    from ddpbp.api import Trained as Trained
    from ddpbp.api import evaluate as evaluate
    from ddpbp.api import load_model as load_model
    from ddpbp.api import predict as predict
    from ddpbp.api import train as train
    from ddpbp.comm.join import join as join
    from ddpbp.comm.simulated import simulate as simulate
    from ddpbp.comm.world import World as World
    from ddpbp.config.read import resolve as resolve
    from ddpbp.config.settings import Config as Config
    from ddpbp.engine.build import assemble as assemble
    from ddpbp.engine.evaluator import Evaluator as Evaluator
    from ddpbp.engine.trainer import Parts as Parts
    from ddpbp.engine.trainer import Trainer as Trainer
    from ddpbp.errors import ConfigError as ConfigError
    from ddpbp.errors import DataError as DataError
    from ddpbp.errors import DdpbpError as DdpbpError
    from ddpbp.errors import Diverged as Diverged
    from ddpbp.errors import OutOfStep as OutOfStep
    from ddpbp.errors import Stopped as Stopped
    from ddpbp.nn.backprop import Backprop as Backprop
    from ddpbp.nn.network import Network as Network
    from ddpbp.nn.network import Parameters as Parameters
    from ddpbp.nn.network import initialize as initialize
    from ddpbp.run.callbacks import Callback as Callback

_HOMES = {
    "Backprop": "ddpbp.nn.backprop",
    "Callback": "ddpbp.run.callbacks",
    "Config": "ddpbp.config.settings",
    "ConfigError": "ddpbp.errors",
    "DataError": "ddpbp.errors",
    "DdpbpError": "ddpbp.errors",
    "Diverged": "ddpbp.errors",
    "Evaluator": "ddpbp.engine.evaluator",
    "Model": "ddpbp.api",
    "Network": "ddpbp.nn.network",
    "OutOfStep": "ddpbp.errors",
    "Parameters": "ddpbp.nn.network",
    "Parts": "ddpbp.engine.trainer",
    "Stopped": "ddpbp.errors",
    "Trained": "ddpbp.api",
    "Trainer": "ddpbp.engine.trainer",
    "World": "ddpbp.comm.world",
    "assemble": "ddpbp.engine.build",
    "evaluate": "ddpbp.api",
    "initialize": "ddpbp.nn.network",
    "join": "ddpbp.comm.join",
    "load_model": "ddpbp.api",
    "predict": "ddpbp.api",
    "resolve": "ddpbp.config.read",
    "simulate": "ddpbp.comm.simulated",
    "train": "ddpbp.api",
}

__all__ = sorted(_HOMES)

blas.limit_threads()


if not TYPE_CHECKING:  # with it, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'ddpbp' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
