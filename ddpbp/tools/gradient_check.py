"""Is the gradient right? Finite differences along random directions, layer by layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpbp.base import draws
from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.data.sources import Part
from ddpbp.engine.build import make_backprop, make_network
from ddpbp.engine.data import open_dataset
from ddpbp.engine.loading import load
from ddpbp.nn.backprop import Backprop
from ddpbp.nn.network import Network, Parameters, initialize

Array = npt.NDArray[Any]

TOLERANCE = 1e-7  # relative, in float64
_REDRAWS = 50
_STEP = 2.0**-9  # length of a finite difference, along a direction of norm 1
# f′(0) ≈ Σ c_k (f(k h) − f(−k h)) / h, exact up to h⁸
_STENCIL = ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280))


@dataclass(frozen=True)
class Row:
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
    """

    layer: int
    tensor: str
    parameters: int
    analytic: float
    numeric: float
    error: float
    redrawn: int


def check(
    config: Config, network: Network, theta: Parameters, part: Part, *, directions: int = 3
) -> list[Row]:
    """Compare ∇L · v with finite differences of L along random v, for each W[l] and b[l].

    Parameters
    ----------
    config : Config
    network : Network
        In float64, or rounding hides what is looked for.
    theta : Parameters
    part : Part
        The examples; one leaf of at most `config.leaf_size` is taken.
    directions : int
        Per tensor.

    Returns
    -------
    list of Row
        Layer by layer.
    """
    examples = min(config.leaf_size, len(part))
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


def _check_tensor(
    backprop: Backprop,
    theta: Parameters,
    grad: Array,
    span: tuple[int, int],
    label: tuple[int, str],
    key: int,
    directions: int,
) -> Row:
    begin, stop = span
    n, error, redrawn, done = stop - begin, 0.0, 0, 0
    analytic = numeric = 0.0
    step = _STEP
    while done < directions:
        places = np.arange(n, dtype=np.uint64) + np.uint64((done + redrawn) * n)
        v = draws.normal(key, places)
        v /= np.linalg.norm(v)
        found = _directional(backprop, theta, span, v, step)
        if found is None and redrawn < _REDRAWS:
            redrawn += 1
            step /= 2.0 if redrawn % 5 == 0 else 1.0  # kinks lie close: look closer
            continue
        if found is None:
            raise ArithmeticError(
                f"layer {label[0]}, {label[1]}: every direction crosses a kink; the examples lie "
                "on one (zero features with zero biases do); try another seed"
            )
        numeric, scale = found
        analytic = float(grad[begin:stop] @ v)
        # Relative to the derivative, but not below what one rounding of the loss can be.
        floor = scale * np.finfo(np.float64).eps / step
        error = max(error, abs(analytic - numeric) / max(abs(analytic), abs(numeric), 1e7 * floor))
        done += 1
    return Row(label[0], label[1], n, analytic, numeric, error, redrawn)


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
    """Tell on which side of every kink the examples are."""
    network, (stack,) = backprop.network, backprop.stacks
    found = [
        (stack.z[l] > kink).ravel()
        for l in range(1, network.L + 1)
        for kink in network.activation(l).kinks
    ]
    found += [(d > 0.0).ravel() for d in backprop.loss.kinks(stack.a[-1], stack.y)]
    return np.concatenate(found) if found else np.zeros(0, np.bool_)


def check_config(config: Config, *, directions: int = 3) -> tuple[str, bool]:
    """Check the gradient of a configuration on its own data, in float64.

    Returns
    -------
    table : str
        A row for each tensor.
    good : bool
        Whether every relative error is at most `TOLERANCE`.
    """
    config.model.dtype = "float64"
    dataset = open_dataset(config, World())
    network = make_network(config, dataset.train.x.shape[1], dataset.outputs)
    theta = initialize(network, config.model.initialization, config.seed)
    rows = check(config, network, theta, dataset.train, directions=directions)
    good = all(row.error <= TOLERANCE for row in rows)
    lines = ["layer  tensor  parameters       backprop    differences  relative error  redrawn"]
    lines += [
        f"{r.layer:>5}  {r.tensor:<6}  {r.parameters:>10,}  {r.analytic:>13.6e}  "
        f"{r.numeric:>13.6e}  {r.error:>14.1e}  {r.redrawn:>7}"
        for r in rows
    ]
    lines.append(
        f"{'correct' if good else 'WRONG'}: relative errors "
        f"{'are at most' if good else 'exceed'} {TOLERANCE:g}"
    )
    return "\n".join(lines), good
