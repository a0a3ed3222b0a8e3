import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_INF, _NAN = float("inf"), float("nan")
_RATES = [1e-6, 0.0007, 0.00513, 1 / 3, 1.0, 0.1234567890123, 0.0]


def _exact(rate):
    """The rate as a person would write it."""
    return Fraction(repr(rate))


@pytest.mark.parametrize("rate", _RATES + [1e-4, 0.1, 5e-7, 0.999999])
@pytest.mark.parametrize("units", [1, 5, 2000, 10**6])
def test_count_digits(rate, units):
    whole, digits, base = functional.count_digits(rate, units)
    total = Fraction(whole)
    for i, digit in enumerate(digits):
        assert 0 <= digit < base
        # What `advance_count` adds up stays an int32.
        assert base - 1 + digit * units + units + 1 < 2**31
        total += Fraction(digit, base ** (i + 1))
    assert total == _exact(rate)


def test_digits_beyond_the_thirtieth_are_dropped():
    assert functional.count_digits(1e-31, 10)[:2] == (0, ())


@pytest.mark.parametrize(
    ("rate", "units", "name"),
    [
        (0.1, -(10**12), "units"),
        (0.1, 0, "units"),
        (0.1, 10**12, "units"),
        (0.1, 2.0, "units"),
        (1.5, 10, "replacement_rate"),
        (_NAN, 10, "replacement_rate"),
        (True, 10, "replacement_rate"),
    ],
)
def test_no_digits(rate, units, name):
    with pytest.raises(ValueError, match=f"^`{name}` must be .* {name}="):
        functional.count_digits(rate, units)


def test_digits_of_a_number_of_numpy():
    expected = functional.count_digits(1e-4, 2000)
    assert functional.count_digits(np.float32(1e-4), np.int64(2000)) == expected


@pytest.mark.parametrize("rate", _RATES)
def test_advance_count_is_exact_at_each_update(rate):
    units = 2000
    digits = functional.count_digits(rate, units)
    count = ops.zeros((max(1, len(digits[1])),), dtype="int32")
    mature = np.random.default_rng(0).integers(0, units + 1, 300)
    replaced = 0
    for i, m in enumerate(mature):
        due, count = functional.advance_count(
            count, ops.convert_to_tensor(int(m), dtype="int32"), digits
        )
        replaced += int(due)
        expected = math.floor(_exact(rate) * int(mature[: i + 1].sum()))
        assert replaced == expected


@pytest.mark.parametrize(
    "rate", mostly_slow(_RATES, 1e-6, 1 / 3, 0.1234567890123)
)
def test_advance_count_is_exact_over_a_million_updates(rate):
    units = 2000
    digits = functional.count_digits(rate, units)
    places = max(1, len(digits[1]))
    if keras.backend.backend() == "jax":
        # One layer through all of them, compiled.
        import jax

        mature = np.random.default_rng(0).integers(0, units + 1, 10**6)

        @jax.jit
        def run(mature):
            def step(state, m):
                due, count = functional.advance_count(state[0], m, digits)
                return (count, state[1] + due), None

            start = (ops.zeros((places,), "int32"), ops.zeros((), "int32"))
            return jax.lax.scan(step, start, mature)[0][1]

        replaced = int(run(mature.astype("int32")))
        assert replaced == math.floor(_exact(rate) * int(mature.sum()))
        return
    # A thousand layers side by side, through a thousand updates each.
    mature = np.random.default_rng(0).integers(0, units + 1, (1000, 1000))
    count = ops.zeros((places, 1000), dtype="int32")
    replaced = np.zeros(1000, int)
    for m in mature.astype("int32"):
        due, count = functional.advance_count(
            count, ops.convert_to_tensor(m), digits
        )
        replaced += to_numpy(due)
    expected = [math.floor(_exact(rate) * int(t)) for t in mature.sum(axis=0)]
    np.testing.assert_array_equal(replaced, expected)


@pytest.mark.parametrize(
    "utility, age, expected",
    [
        pytest.param([3, 1, 2], [9, 9, 9], 1, id="lowest"),
        pytest.param([3, 1, 2], [9, 5, 9], 2, id="lowest_is_not_mature"),
        pytest.param([3, 1, 2], [9, 6, 9], 1, id="just_mature"),
        pytest.param([1, 0, 0], [9, 9, 9], 1, id="first_of_equals"),
        pytest.param([0, 0, 0], [1, 1, 9], 2, id="only_one_mature"),
        pytest.param([-1, -2, 0], [9, 9, 9], 1, id="negative"),
        pytest.param([1, _INF, _INF], [1, 9, 9], 1, id="only_inf_is_mature"),
        pytest.param([0, _NAN, _NAN], [1, 1, 9], 2, id="only_nan_is_mature"),
        pytest.param([0, _NAN, _INF], [1, 9, 9], 1, id="nan_equals_inf"),
        pytest.param([0, _INF, _NAN], [1, 9, 9], 1, id="inf_equals_nan"),
        pytest.param([_NAN, 3e38, 9], [9, 9, 1], 1, id="nan_is_last"),
        pytest.param([_INF, _NAN, 7], [9, 9, 9], 2, id="finite_is_first"),
        pytest.param([-5, -_INF, 0], [9, 9, 9], 1, id="minus_inf_is_lowest"),
        pytest.param([-_INF, 5, 4], [1, 9, 9], 2, id="not_if_immature"),
    ],
)
def test_least_useful_unit(utility, age, expected):
    unit = functional.least_useful_unit(
        ops.convert_to_tensor(utility, dtype="float32"),
        ops.convert_to_tensor(age, dtype="float32"),
        maturity_threshold=5,
    )
    assert int(unit) == expected
