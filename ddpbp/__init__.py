"""Distributed data-parallel backpropagation: the same bits on one process and on many.

Importing ddpbp gives BLAS one thread; import it before NumPy. The names below load on first use.
"""

from importlib import import_module
from typing import Any

from ddpbp.base import blas

__version__ = "0.1.0"

_HOMES = {
    "Backprop": "ddpbp.nn.backprop",
    "Config": "ddpbp.config.settings",
    "DdpbpError": "ddpbp.errors",
    "Evaluator": "ddpbp.engine.evaluator",
    "Model": "ddpbp.store.model_file",
    "Network": "ddpbp.nn.network",
    "Parameters": "ddpbp.nn.network",
    "Trained": "ddpbp.run.training",
    "Trainer": "ddpbp.engine.trainer",
    "World": "ddpbp.comm.world",
    "initialize": "ddpbp.nn.network",
    "join": "ddpbp.comm.join",
    "load_model": "ddpbp.store.model_file",
    "resolve": "ddpbp.config.read",
    "simulate": "ddpbp.comm.simulated",
}

__all__ = sorted(_HOMES)

blas.limit_threads()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
