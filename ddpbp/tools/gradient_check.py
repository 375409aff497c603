"""Check the gradient by finite differences along random directions, layer by layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from ddpbp.base import draws
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.dataset import Part
from ddpbp.engine.build import make_backprop, make_network
from ddpbp.engine.data import open_dataset
from ddpbp.engine.loading import load
from ddpbp.errors import DdpbpError
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Network, Parameters, initialize

Array = npt.NDArray[Any]

TOLERANCE = 1e-7  # relative, in float64
EXAMPLES = 8  # a single one may have nothing to teach, as (0, 0) → 0 of the exclusive or
_REDRAWS = 50
_STEP = 2.0**-9  # length of a finite difference, along a direction of norm 1
# f′(0) ≈ Σ c_k (f(k h) − f(−k h)) / h, exact up to h⁸
_STENCIL = ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280))


@dataclass(frozen=True)
class TensorCheck:
    """The check of one tensor.

    Attributes
    ----------
    layer : int
    tensor : str
        "W" or "b".
    parameters : int
    analytic, numeric : float
        The derivative along the last direction, by backpropagation and by finite differences.
    error : float
        The largest relative error over the directions.
    redrawn : int
        Directions thrown away because they crossed a kink.
    zero : bool
        Whether the whole gradient of the tensor is zero, so that nothing was checked.
    """

    layer: int
    tensor: str
    parameters: int
    analytic: float
    numeric: float
    error: float
    redrawn: int
    zero: bool


def check(
    config: Config, network: Network, theta: Parameters, part: Part, *, directions: int = 3
) -> list[TensorCheck]:
    """Compare ∇L · v with finite differences of L along random v, for each W[l] and b[l].

    Parameters
    ----------
    config : Config
    network : Network
        In float64; in float32 rounding would hide a wrong gradient.
    theta : Parameters
    part : Part
        The examples; the first `leaf_size`, at least `EXAMPLES` where there are as many.
    directions : int
        Per tensor.

    Returns
    -------
    list of TensorCheck
        Layer by layer.
    """
    examples = examples_checked(config, part)
    backprop = make_backprop(config, network, examples)
    load(backprop, part, slice(0, examples), ((1, examples),))
    grad = network.views(np.zeros(network.parameter_count, network.dtype))
    backprop.forward(theta, 0)
    for _ in backprop.backward(theta, [grad], [0], 1):
        pass
    rows = []
    for l, (start_W, start_b, end) in enumerate(network.spans, start=1):
        for name, begin, stop in (("W", start_W, start_b), ("b", start_b, end)):
            key = draws.key(config.seed, draws.DIRECTION, l, begin)
            rows.append(
                _check_tensor(backprop, theta, grad.flat, (begin, stop), (l, name), key, directions)
            )
    return rows


def examples_checked(config: Config, part: Part) -> int:
    """Return the number of examples that a check takes."""
    return min(max(config.leaf_size, EXAMPLES), len(part))


def _check_tensor(
    backprop: Backprop,
    theta: Parameters,
    grad: Array,
    span: tuple[int, int],
    label: tuple[int, str],
    key: int,
    directions: int,
) -> TensorCheck:
    begin, stop = span
    n, error, redrawn, done = stop - begin, 0.0, 0, 0
    analytic = numeric = 0.0
    step = _STEP
    while done < directions:
        places = np.arange(n, dtype=np.uint64) + np.uint64((done + redrawn) * n)
        v = draws.normal(key, places)
        v /= np.linalg.norm(v)
        difference = _directional(backprop, theta, span, v, step)
        if difference is None and redrawn < _REDRAWS:
            redrawn += 1
            step /= 2.0 if redrawn % 5 == 0 else 1.0  # kinks are close: take a shorter step
            continue
        if difference is None:
            raise DdpbpError(
                f"layer {label[0]}, {label[1]}: every direction crosses a kink; the examples lie "
                "on one (zero features with zero biases do); try another seed"
            )
        numeric, scale = difference
        analytic = float(grad[begin:stop] @ v)
        # Relative to the derivative, but not below what one rounding of the loss can be.
        floor = scale * np.finfo(np.float64).eps / step
        error = max(error, abs(analytic - numeric) / max(abs(analytic), abs(numeric), 1e7 * floor))
        done += 1
    zero = not grad[begin:stop].any()
    return TensorCheck(label[0], label[1], n, analytic, numeric, error, redrawn, zero)


def _directional(
    backprop: Backprop, theta: Parameters, span: tuple[int, int], v: Array, step: float
) -> tuple[float, float] | None:
    """Return the finite difference along v and |L|, or None if it crosses a kink."""
    tensor = theta.flat[span[0] : span[1]]
    original = tensor.copy()
    values: list[float] = []
    sides: list[Array] = []
    try:
        for k in (1, -1, 2, -2, 3, -3, 4, -4):
            np.add(original, k * step * v, out=tensor)
            backprop.forward(theta, 0)
            sides.append(_sides(backprop))
            values.append(backprop.losses()[0])
    finally:
        tensor[:] = original
    if any((side != sides[0]).any() for side in sides[1:]):
        return None
    total = 0.0
    for i, (_, c) in enumerate(_STENCIL):
        total += c * (values[2 * i] - values[2 * i + 1])
    return total / step, abs(values[0])


def _sides(backprop: Backprop) -> Array:
    """Return on which side of every kink the examples are."""
    network, (stack,) = backprop.network, backprop.stacks
    sides = [
        (stack.z[l] > kink).ravel()
        for l in range(1, network.L + 1)
        for kink in network.activation(l).kinks
    ]
    sides += [(d > 0.0).ravel() for d in backprop.loss.kinks(stack.a[-1], stack.y)]
    return np.concatenate(sides) if sides else np.zeros(0, np.bool_)


def check_config(config: Config, *, directions: int = 3) -> tuple[str, bool]:
    """Check the gradient of a configuration on its own data, in float64 and without rounding.

    Returns
    -------
    table : str
        A row for each tensor, and the verdict.
    good : bool
        Whether every relative error is at most `TOLERANCE`, and no gradient is all zero.
    """
    model = structs.replace(config.model, dtype="float64")
    config = structs.replace(config, model=model, wire="none")
    dataset = open_dataset(config, World())
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    theta = initialize(network, config.model.initialization, config.seed)
    rows = check(config, network, theta, dataset.train, directions=directions)
    verdict, good = _verdict(rows, examples_checked(config, dataset.train))
    lines = ["layer  tensor  parameters       backprop    differences  relative error  redrawn"]
    lines += [
        f"{r.layer:>5}  {r.tensor:<6}  {r.parameters:>10,}  {r.analytic:>13.6e}  "
        f"{r.numeric:>13.6e}  {r.error:>14.1e}  {r.redrawn:>7}"
        for r in rows
    ]
    return "\n".join([*lines, verdict]), good


def _verdict(rows: list[TensorCheck], examples: int) -> tuple[str, bool]:
    where = f"on {examples} examples"
    if any(row.error > TOLERANCE for row in rows):
        return f"WRONG {where}: relative errors exceed {TOLERANCE:g}", False
    if zero := [f"layer {row.layer} {row.tensor}" for row in rows if row.zero]:
        return (
            f"NOTHING TO CHECK {where}: the gradient is all zero in {', '.join(zero)}; if units "
            "never fire, try another seed",
            False,
        )
    return f"correct {where}: relative errors are at most {TOLERANCE:g}", True
