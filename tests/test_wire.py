"""Sums in 16 bits: rounded to the nearest, packed without loss."""

import numpy as np
import pytest

from ddpbp.base.rounding import WIRES

# Mantissa bits that a form keeps, and its smallest exponent.
FORMS = {"bf16": (7, -126), "fp16": (10, -14)}


def nearest(value: float, mantissa: int, least: int) -> float:
    """Round to `mantissa` bits in plain arithmetic; `round` takes ties to even."""
    if value == 0.0 or not np.isfinite(value):
        return value
    exponent = max(int(np.floor(np.log2(abs(value)))), least) - mantissa
    return round(value / 2.0**exponent) * 2.0**exponent


@pytest.mark.parametrize("name", FORMS)
def test_rounds_to_the_nearest_and_packs_exactly(name):
    wire = WIRES[name]
    assert wire is not None
    random = np.random.default_rng(0)
    values = (random.random(5000) - 0.5) * 10.0 ** random.integers(-7, 4, 5000)
    ties = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
    array = np.array([*values, *ties, 0.0, -0.0, np.inf, -np.inf], np.float32)
    expected = [nearest(float(v), *FORMS[name]) for v in array]
    wire.round(array)
    np.testing.assert_array_equal(array, np.array(expected, np.float32))
    packed, back = np.empty(array.size, np.uint16), np.empty_like(array)
    wire.pack(array, packed)
    wire.unpack(packed, back)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", FORMS)
def test_what_is_not_a_number_stays_so(name):
    wire = WIRES[name]
    assert wire is not None
    with np.errstate(invalid="ignore"):
        array = np.array([np.nan, np.inf - np.float32(np.inf)], np.float32)
    wire.round(array)
    assert np.isnan(array).all()
