"""The model file: the weights as safetensors, and in its metadata all that is needed to use them.

Layer l is "{2 (l - 1)}.weight" (n_l, n_{l-1}) and "{2 (l - 1)}.bias" (n_l,), the names of a
`torch.nn.Sequential` in which activations stand between the layers; no other tensor is needed. The
metadata have two keys: "ddpbp", the description of the model as JSON, and "sha256", the hash of
that text. The description holds the hash of θ, so a flipped bit anywhere is noticed.

Formats
-------
1   No format number and no hashes; the standardisation is two tensors, "standardization.mean" and
    "standardization.deviation". Read, no longer written.
2   The standardisation stands in the description: `repr` of a float64 gives the same float64 back.

Importing this module and reading a header import no NumPy: `config.kernel` of a model is needed
before NumPy is loaded. A change that an older ddpbp would misread takes the next number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ddpbp.base.spelling import shortened
from ddpbp.config.read import parse
from ddpbp.config.settings import Config
from ddpbp.config.write import dump
from ddpbp.errors import ConfigError, DataError
from ddpbp.store.files import Buffer, decode_json, require_format, write_whole
from ddpbp.store.run_folder import MODEL, REPLACED
from ddpbp.store.tensors import encode, read_metadata, read_tensors

if TYPE_CHECKING:
    import numpy.typing as npt

    from ddpbp.data.standardization import Standardization
    from ddpbp.nn.network import Network, Parameters

    Array = npt.NDArray[Any]

FORMAT = 2
OPTIMIZER = "optimizer."  # begins the names of the tensors that only a checkpoint has


class _Description(msgspec.Struct):
    """What the description holds; the fields without a default are in every format."""

    config: dict[str, Any]
    sizes: Annotated[list[Annotated[int, msgspec.Meta(ge=1)]], msgspec.Meta(min_length=2)]
    hidden: str
    output: str
    classes: list[str] | None = None
    columns: list[str] | None = None
    target: str | None = None
    theta_sha256: str = ""


@dataclass(frozen=True)
class StoredModel:
    """A trained network with all that is needed to use it.

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


def write_model(path: str | Path, model: StoredModel) -> None:
    """Write a model file, whole or not at all.

    Raises
    ------
    DdpbpError
        If it cannot be written.
    """
    from ddpbp.base.hashing import digest

    write_whole(path, encode_model(model, digest([model.theta.flat])))


def encode_model(
    model: StoredModel, theta_sha256: str, besides: Mapping[str, Array] | None = None
) -> list[Buffer]:
    """Return the pieces of a model file; they are views, so it costs no memory.

    Parameters
    ----------
    model : StoredModel
    theta_sha256 : str
        The hash of `model.theta.flat`.
    besides : mapping of str to array, optional
        Tensors that a model does not need, as those of an optimizer.
    """
    tensors = dict(besides or {})
    for l in range(1, model.network.L + 1):
        tensors[f"{2 * (l - 1)}.weight"] = model.theta.W[l]
        tensors[f"{2 * (l - 1)}.bias"] = model.theta.b[l][:, 0]
    standardization = model.standardization and {
        "mean": model.standardization.mean.tolist(),
        "deviation": model.standardization.deviation.tolist(),
    }
    description = {
        "format": FORMAT,
        "config": dump(model.config),
        "sizes": model.network.sizes,
        "hidden": model.network.hidden,
        "output": model.network.output,
        "classes": model.classes,
        "columns": model.columns,
        "target": model.target,
        "standardization": standardization,
        "theta_sha256": theta_sha256,
    }
    text = json.dumps(description)
    return encode(tensors, {"ddpbp": text, "sha256": _text_sha256(text)})


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the description of a model without its weights, and without importing NumPy.

    Parameters
    ----------
    path : str or Path
        A model file, or the run folder or checkpoint that it is in.

    Returns
    -------
    dict
        "format", "config" (as `config.write.dump` made it), "sizes", "hidden", "output", "classes",
        "columns", "target" and, since format 2, "standardization" and "theta_sha256".

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    file = _file_of(path)
    metadata = read_metadata(file)
    if "ddpbp" not in metadata:
        raise DataError(f"{file} holds no ddpbp model: its metadata lack the key 'ddpbp'")
    text = metadata["ddpbp"]
    header = decode_json(file, text)
    header["format"] = require_format(file, header, FORMAT)
    hashed = header["format"] > 1 or "sha256" in metadata
    if hashed and metadata.get("sha256") != _text_sha256(text):
        raise DataError(f"{file} is damaged: its header does not match its hash")
    try:
        msgspec.convert(header, _Description)
    except msgspec.ValidationError as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error}") from None
    return header


def read_kernel(path: str | Path) -> str:
    """Read the name of the BLAS kernel that a model was trained on, without importing NumPy.

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    return str(read_header(path)["config"].get("kernel", "native"))


def read_model(path: str | Path) -> StoredModel:
    """Read a model; `path` is its file, or the run folder or checkpoint that it is in.

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    return read_model_and_optimizer(path)[0]


def read_model_and_optimizer(path: str | Path) -> tuple[StoredModel, dict[str, Array]]:
    """Read a model and the optimizer's vectors that lie beside it in a checkpoint.

    Raises
    ------
    DataError
        Names the file and what is wrong with it.
    """
    from ddpbp.base.hashing import digest

    file = _file_of(path)
    header, tensors = read_header(file), read_tensors(file)
    try:
        model = _assemble(header, tensors)
        intact = header["format"] == 1 or digest([model.theta.flat]) == header["theta_sha256"]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{file} is damaged, or of another version of ddpbp: {error!r}") from None
    if not intact:
        raise DataError(f"{file} is damaged: its weights do not match their hash")
    vectors = {name: tensor for name, tensor in tensors.items() if name.startswith(OPTIMIZER)}
    return model, vectors


def _file_of(path: str | Path) -> Path:
    """Return the model file that is meant by its own path or by that of the folder it is in."""
    path = Path(path)
    try:
        file = path / MODEL if path.is_dir() else path
        found = file.is_file()
    except OSError as error:
        raise DataError(f"{shortened(str(path))} cannot be read: {error.strerror}") from None
    if not found:
        replaced = file.parent / REPLACED
        kept = f"; the run that was to be replaced is in {replaced}" if replaced.is_dir() else ""
        raise DataError(
            f"{file} does not exist: give the run folder of a finished run, or its {MODEL}{kept}"
        )
    return file


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _assemble(header: Mapping[str, Any], tensors: Mapping[str, Array]) -> StoredModel:
    """Build the model; content that does not fit raises an error that the reader catches."""
    import numpy as np

    from ddpbp.data.standardization import Standardization
    from ddpbp.nn.network import Network

    config = parse(header["config"])
    sizes, dtype = tuple(header["sizes"]), np.dtype(config.model.dtype)

    def checked(name: str, array: Array, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
        return array

    def named(l: int) -> tuple[str, str]:
        return f"{2 * (l - 1)}.weight", f"{2 * (l - 1)}.bias"

    for l, (n_in, n) in enumerate(pairwise(sizes), start=1):  # no memory for sizes that are lies
        for name, shape in zip(named(l), ((n, n_in), (n,)), strict=True):
            checked(name, tensors[name], shape, dtype)
    network = Network(sizes, header["hidden"], header["output"], dtype)
    theta = network.views(np.empty(network.parameter_count, dtype))
    for l in range(1, network.L + 1):
        theta.W[l][...], theta.b[l][:, 0] = (tensors[name] for name in named(l))
    scale = header.get("standardization")
    if header["format"] == 1 and "standardization.mean" in tensors:
        scale = {name: tensors[f"standardization.{name}"] for name in ("mean", "deviation")}
    standardization = None
    if scale is not None:
        features = (network.sizes[0],)
        mean, deviation = (
            checked(f"standardization.{name}", np.asarray(scale[name]), features, np.float64)
            for name in ("mean", "deviation")
        )
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and deviation.min() > 0):
            raise ValueError("the standardization is not finite or has a deviation of 0")
        standardization = Standardization(mean, deviation)
    classes, columns = (
        None if header.get(name) is None else tuple(header[name]) for name in ("classes", "columns")
    )
    for names, count in ((classes, sizes[-1]), (columns, sizes[0])):
        if names is not None and not len(names) == len({*names}) == count:
            raise ValueError(f"{len(names)} names for {count} classes or columns")
    return StoredModel(
        config, network, theta, classes, standardization, columns, header.get("target")
    )
