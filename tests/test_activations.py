"""Activations: σ against plain formulas, σ′ against differences, limits far out, and bits."""

from typing import Any

import numpy as np
import pytest

from ddpbp.nn.activations import ACTIVATIONS, Array, hidden_activations

DTYPES = (np.float32, np.float64)
# σ(-1e4), σ(1e4), σ′(-1e4), σ′(1e4)
LIMITS = {
    "identity": (-1e4, 1e4, 1, 1),
    "sigmoid": (0, 1, 0, 0),
    "tanh": (-1, 1, 0, 0),
    "relu": (0, 1e4, 0, 1),
    "leaky_relu": (-100, 1e4, 0.01, 1),
    "elu": (-1, 1e4, 0, 1),
    "gelu": (0, 1e4, 0, 1),
    "silu": (0, 1e4, 0, 1),
    "softplus": (0, 1e4, 0, 1),
}


def value(name: str, z: Array) -> Array:
    out = np.empty_like(z)
    ACTIVATIONS[name].value(z.copy(), out)
    return out


def slope(name: str, z: Array) -> Array:
    z, a, out, activation = z.copy(), np.empty_like(z), np.ones_like(z), ACTIVATIONS[name]
    activation.value(z, a)
    if activation.slope:
        activation.slope(z, a, out)
    return out


def samples(dtype: Any = np.float64, size: int = 2_000) -> Array:
    return np.asarray(4.0 * np.random.default_rng(1).standard_normal(size), dtype)


@pytest.mark.parametrize("name", hidden_activations())
def test_slope_is_the_derivative(name):
    z, h = samples(), 1e-4
    for kink in ACTIVATIONS[name].kinks:
        z = z[abs(z - kink) > 2 * h]
    difference = (
        8 * (value(name, z + h) - value(name, z - h))
        - (value(name, z + 2 * h) - value(name, z - 2 * h))
    ) / (12 * h)
    np.testing.assert_allclose(slope(name, z), difference, rtol=1e-9, atol=1e-10)


def test_values_are_those_of_the_plain_formulas():
    z = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    gate = np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)
    plain = {
        "identity": z,
        "sigmoid": 1 / (1 + np.exp(-z)),
        "tanh": np.tanh(z),
        "relu": np.where(z > 0, z, 0),
        "leaky_relu": np.where(z > 0, z, 0.01 * z),
        "elu": np.where(z > 0, z, np.exp(z) - 1),
        "gelu": z / 2 * (1 + np.tanh(gate)),
        "silu": z / (1 + np.exp(-z)),
        "softplus": np.log(1 + np.exp(z)),
    }
    assert [*plain] == hidden_activations()
    for name, expected in plain.items():
        np.testing.assert_allclose(value(name, z), expected, rtol=1e-14, atol=1e-16, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", hidden_activations())
def test_far_out_there_are_limits_and_no_warnings(name, dtype):
    z = np.array([-1e4, 1e4], dtype)
    ends = np.concatenate([value(name, z), slope(name, z)])
    np.testing.assert_allclose(ends, LIMITS[name], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_may_overwrite_z_and_value_too_where_it_says_so(dtype):
    for name, activation in ACTIVATIONS.items():
        if activation.slope:
            z = samples(dtype, 70_000)  # more than one cache block
            expected = value(name, z), slope(name, z)
            a = z if activation.in_place else np.empty_like(z)
            activation.value(z, a)
            np.testing.assert_array_equal(a, expected[0], name)
            activation.slope(z, a, z)
            np.testing.assert_array_equal(z, expected[1], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", hidden_activations())
def test_a_slice_has_the_bits_of_the_whole(name, dtype):
    z = samples(dtype)
    whole = value(name, z), slope(name, z)
    for start in (0, 1, 3, 7, 8, 15, 31):
        for length in (1, 2, 3, 5, 7, 9, 16, 17, 33, 64, 101):
            part = slice(start, start + length)
            parts = value(name, z[part]), slope(name, z[part])
            for mine, expected in zip(parts, whole, strict=True):
                assert mine.tobytes() == expected[part].tobytes(), (start, length)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_a_leaf_has_the_bits_of_the_stack(dtype):
    for count, n, size in ((5, 10, 7), (4, 3, 1), (3, 1, 5), (6, 130, 1), (2, 130, 33)):
        z = samples(dtype, count * n * size).reshape(count, n, size)
        whole = value("softmax", z)
        for i in range(count):
            assert value("softmax", z[i : i + 1]).tobytes() == whole[i].tobytes(), (count, n, size)


def test_softmax_is_a_distribution_over_the_units_of_each_example():
    z = samples().reshape(5, 8, 50)
    a = value("softmax", z)
    np.testing.assert_allclose(a.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(a, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=1e-13)
    far = value("softmax", np.array([[1e4, -1e4, 1e4], [-1e4, 1e4, 1e4]], np.float32))
    np.testing.assert_array_equal(far, [[1, 0, 0.5], [0, 1, 0.5]])


def test_softmax_pullback_is_the_product_with_the_jacobian():
    a = value("softmax", samples(size=2 * 4 * 3).reshape(2, 4, 3))
    d_a = np.random.default_rng(2).standard_normal(a.shape)
    out = d_a.copy()
    ACTIVATIONS["softmax"].pull_back(np.empty_like(a), a, out)
    for leaf in range(2):
        for example in range(3):
            s = a[leaf, :, example]
            jacobian = np.diag(s) - np.outer(s, s)
            np.testing.assert_allclose(
                out[leaf, :, example], jacobian.T @ d_a[leaf, :, example], atol=1e-15
            )
