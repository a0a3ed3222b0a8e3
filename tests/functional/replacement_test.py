import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.long_runs import digits_of

_INF, _NAN = float("inf"), float("nan")
_RATES = [1e-6, 0.0007, 0.00513, 1 / 3, 1.0, 0.1234567890123, 0.0]
_MOST_UNITS = 2**31 // 10 - 3

# Rates as people write them, and any others.
_rates = st.one_of(
    st.builds(
        lambda digits, places: digits / 10**places,
        st.integers(1, 999),
        st.integers(3, 20),
    ),
    st.floats(0, 1),
)
_units = st.one_of(st.integers(1, 5000), st.integers(1, _MOST_UNITS))


def _exact(rate):
    """The rate as a person would write it, to the 30th decimal place."""
    return Fraction(math.floor(Fraction(repr(rate)) * 10**30), 10**30)


@pytest.mark.parametrize("rate", _RATES + [1e-4, 0.1, 5e-7, 0.999999])
@pytest.mark.parametrize("units", [1, 5, 2000, 10**6])
def test_count_digits(rate, units):
    _check_digits(rate, units)


@given(_rates, _units)
def test_digits_are_those_of_any_rate(rate, units):
    _check_digits(rate, units)


def _check_digits(rate, units):
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


# Rates have 30 digits at most, one by one where layers are the largest.
_LAYERS, _LONGEST = 8, 30


@given(
    st.lists(st.tuples(_rates, st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(1, 10**6),
    st.integers(0, 2**32),
)
def test_count_is_exact_whatever_the_rate_was_before(changes, units, seed):
    rng = np.random.default_rng(seed)
    count = ops.zeros((_LONGEST, _LAYERS), "int32")
    due = np.zeros(_LAYERS, int)
    exact = np.full(_LAYERS, Fraction(0))
    for rate, updates in changes:
        digits = functional.count_digits(rate, units)
        for _ in range(updates):
            mature = rng.integers(0, units, _LAYERS, endpoint=True)
            mature[:2] = 0, units
            now, count = functional.advance_count(
                count, ops.convert_to_tensor(mature.astype("int32")), digits
            )
            due += to_numpy(now)
            exact += _exact(rate) * mature
            np.testing.assert_array_equal(due, [math.floor(e) for e in exact])
    assert count.shape == (_LONGEST, _LAYERS)


@given(_rates, st.integers(1, 10**6), st.integers(0, 10**12))
def test_count_is_exact_after_a_billion_updates(rate, units, updates):
    whole, fraction, base = functional.count_digits(rate, units)
    exact = _exact(rate) * units * updates
    before = math.floor(exact)
    count = digits_of(exact - before, len(fraction), base)
    count = np.asarray([*count, *[0] * (_LONGEST - len(count))], "int32")
    count = ops.convert_to_tensor(count)
    for update in range(1, 4):
        due, count = functional.advance_count(
            count,
            ops.convert_to_tensor(units, "int32"),
            (whole, fraction, base),
        )
        before += int(due)
        assert before == math.floor(exact + update * _exact(rate) * units)


@given(st.integers(0, 2**31 - 1), st.integers(1, 9))
def test_quotient(number, places):
    quotient = backend.quotient(
        ops.convert_to_tensor(number, "int32"), 10**places
    )
    assert int(quotient) == number // 10**places


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
        pytest.param([1, 0, -0.0], [9, 9, 9], 1, id="zero_is_minus_zero"),
    ],
)
def test_least_useful_unit(utility, age, expected):
    unit = functional.least_useful_unit(
        ops.convert_to_tensor(utility, dtype="float32"),
        ops.convert_to_tensor(age, dtype="float32"),
        maturity_threshold=5,
    )
    assert int(unit) == expected


_utilities = st.one_of(
    # Numbers so small that some backends round them to 0 are left out.
    st.floats(width=32, allow_subnormal=False),
    st.sampled_from([0.0, 1.0, 3.4e38, _INF, -_INF, _NAN]),
)
_ages = st.sampled_from([0.0, 4.0, 5.0, 6.0, 2.0**24])


@given(
    st.sampled_from([1, 3, 8]).flatmap(
        lambda n: st.lists(st.tuples(_utilities, _ages), min_size=n, max_size=n)
    )
)
def test_units_are_chosen_from_the_least_useful_one_on(units):
    utility, age = np.asarray(units, "float32").T.copy()
    mature = np.flatnonzero(age > 5)
    # NaN, infinity and what is nearly infinite are the same.
    known = np.where(utility < np.float32(3.4e38), utility, _INF)
    expected = mature[np.argsort(known[mature], kind="stable")]
    chosen = []
    for _ in mature:
        unit = functional.least_useful_unit(
            ops.convert_to_tensor(utility), ops.convert_to_tensor(age), 5
        )
        chosen.append(int(unit))
        age[chosen[-1]] = 0
    assert chosen == list(expected)
