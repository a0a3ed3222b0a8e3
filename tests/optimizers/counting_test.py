"""How many units of a layer are due, whatever its rate and its size."""

import decimal
import functools
import math
from fractions import Fraction

import keras
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import make_model
from tests.helpers import to_numpy

_THRESHOLD = 5
# Decimal places that a rate set later has at least.
_PLACES = 12
_rates = st.one_of(
    st.builds(
        lambda digits, places: digits / 10**places,
        st.integers(1, 99),
        st.integers(2, _PLACES),
    ),
    st.sampled_from([0.0, 1.0]),
)


@functools.cache
def _built(size):
    """An optimizer of a layer of so many units, and the layer's books."""
    model = make_model((2, size, 1))
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(), maturity_threshold=_THRESHOLD
    )
    optimizer.build(model.trainable_variables)
    return model, optimizer, optimizer.hidden[0]


@given(
    # Fewer digits fit beside more units.
    st.sampled_from([3, 3000, 30_000]),
    st.lists(st.tuples(_rates, st.integers(0, 3000)), min_size=1, max_size=5),
)
def test_units_due_are_exact_however_the_rate_changes(size, updates):
    _, optimizer, units = _built(size)
    optimizer._count.assign(0 * to_numpy(optimizer._count))
    exact, due = Fraction(0), 0
    for rate, mature in updates:
        optimizer.replacement_rate = rate
        age = np.full(size, float(_THRESHOLD))
        age[:mature] = 2.0**24
        units.age.assign(age)
        due += int(optimizer.num_due(units))
        exact += Fraction(repr(rate)) * min(mature, size)
        assert due == math.floor(exact)
    left = enumerate(to_numpy(optimizer._count)[:, 0].tolist(), start=1)
    left = sum(Fraction(digit, optimizer._rate_base**i) for i, digit in left)
    assert left == exact - due


@given(st.sampled_from([3, 3000, 30_000]), _rates)
def test_a_rate_is_read_back_from_its_digits(size, rate):
    _, optimizer, _ = _built(size)
    setting = ContinualBackprop.replacement_rate
    assert setting.decode(optimizer, setting.encode(optimizer, rate)) == rate


def test_the_precision_of_a_programs_decimals_does_not_matter():
    _, optimizer, units = _built(3)
    with decimal.localcontext(prec=2):
        optimizer.replacement_rate = 0.123456789
        assert optimizer.most_due(units) == 1
        setting = ContinualBackprop.replacement_rate
        array = to_numpy(setting.variable(optimizer))
        assert setting.decode(optimizer, array) == 0.123456789
