"""The model file: weights as safetensors, and what is needed to use them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.config.read import parse
from ddpbp.config.settings import Config
from ddpbp.config.write import dump
from ddpbp.data.dataset import Standardization
from ddpbp.errors import ConfigError, DataError
from ddpbp.nn.network import Network, Parameters
from ddpbp.store.run_folder import MODEL, write_whole

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Model:
    """A trained network with what is needed to use it.

    Attributes
    ----------
    config : Config
    network : Network
    theta : Parameters
    classes : tuple of str or None
    standardization : Standardization or None
    columns : tuple of str or None
    target : str or None
        The names of the features and of the targets, where the training file had a header.
    """

    config: Config
    network: Network
    theta: Parameters
    classes: tuple[str, ...] | None
    standardization: Standardization | None
    columns: tuple[str, ...] | None = None
    target: str | None = None


def save_model(path: Path, model: Model) -> None:
    """Write a model file, whole or not at all.

    Raises
    ------
    DdpbpError
        If it cannot be written.
    """
    write_whole(path, model_file(model, {}))


def model_file(model: Model, beside: Mapping[str, Array]) -> list[Any]:
    """Return the pieces of a model file: safetensors, named as in `torch.nn.Sequential`.

    Layer l is "{2 (l - 1)}.weight" (n_l, n_{l-1}) and "{2 (l - 1)}.bias" (n_l,): the activations
    stand in between. `beside` are tensors that a model does not need, as those of an optimizer.
    The pieces are views, so it costs no memory.
    """
    tensors = dict(beside)
    for l in range(1, model.network.L + 1):
        tensors[f"{2 * (l - 1)}.weight"] = model.theta.W[l]
        tensors[f"{2 * (l - 1)}.bias"] = model.theta.b[l][:, 0]
    if model.standardization:
        tensors["standardization.mean"] = model.standardization.mean
        tensors["standardization.deviation"] = model.standardization.deviation
    description = {
        "config": dump(model.config),
        "sizes": model.network.sizes,
        "hidden": model.network.hidden,
        "output": model.network.output,
        "classes": model.classes,
        "columns": model.columns,
        "target": model.target,
    }
    # The format orders tensors by the size of their elements, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"ddpbp": json.dumps(description)}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": f"F{8 * tensors[name].itemsize}",
            "shape": tensors[name].shape,
            "data_offsets": (begin, end),
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    flat = [np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8) for name in names]
    return [len(head).to_bytes(8, "little"), head, *flat]


def load_model(path: Path) -> Model:
    """Read a model that `save_model` wrote; `path` is the file or its run folder.

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    from safetensors import SafetensorError, safe_open

    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file} does not exist: give the run folder of a finished run, or its {MODEL}"
        )
    try:
        with safe_open(file, framework="numpy") as opened:  # type: ignore[no-untyped-call]
            found = json.loads((opened.metadata() or {})["ddpbp"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except KeyError:
        raise DataError(f"{file} holds no ddpbp model: its metadata lack the key 'ddpbp'") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file} is damaged or no safetensors file: {error}") from None
    try:
        return _model(found, tensors)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error!r}") from None


def _model(found: Any, tensors: dict[str, Array]) -> Model:
    """Put a model together; anything that does not fit is one of the errors of `load_model`."""
    config = parse(found["config"])
    network = Network(
        tuple(found["sizes"]), found["hidden"], found["output"], np.dtype(config.model.dtype)
    )
    for l in range(1, network.L + 1):
        network.activation(l)

    def tensor(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        array = tensors[name]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
        return array

    theta = network.views(np.empty(network.parameter_count, network.dtype))
    for l in range(1, network.L + 1):
        n, n_in = theta.W[l].shape
        theta.W[l][...] = tensor(f"{2 * (l - 1)}.weight", (n, n_in), network.dtype)
        theta.b[l][:, 0] = tensor(f"{2 * (l - 1)}.bias", (n,), network.dtype)
    standardization = None
    if "standardization.mean" in tensors:
        features = (network.sizes[0],)
        mean, deviation = (
            tensor(f"standardization.{name}", features, np.float64)
            for name in ("mean", "deviation")
        )
        standardization = Standardization(mean, deviation)
    classes, columns = (
        tuple(found[name]) if found.get(name) is not None else None
        for name in ("classes", "columns")
    )
    return Model(config, network, theta, classes, standardization, columns, found.get("target"))
