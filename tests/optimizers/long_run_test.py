"""Ages and counts after more updates than anybody waits for."""

import functools
import math

import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import ReDo
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy
from tests.long_runs import LongRun

_new_run = functools.cache(LongRun)


@pytest.mark.parametrize("updates", [2**24 - 2, 2**24, 10**9, 2**31 - 5])
def test_books_are_right_after_so_many_updates(updates):
    run = _new_run()
    run.jump_to(updates)
    units = run.units
    mean = to_numpy(units.mean_activation)
    replaced = int(to_numpy(units.num_replaced))
    for number in range(updates + 1, updates + 5):
        before = to_numpy(units.age)
        h = to_numpy(run.model.layers[0](run.x)).mean(axis=0)
        mature = run.update()
        assert mature >= 49
        assert int(to_numpy(units.num_updates)) == number
        due = math.floor(run.due) - replaced
        replaced += due
        assert int(to_numpy(units.num_replaced)) == replaced
        # All but those that were replaced age, up to what float32 counts.
        age = to_numpy(units.age)
        kept = age > 0
        assert np.sum(~kept) == due
        expected = np.minimum(before + 1, 2**24)
        np.testing.assert_array_equal(age[kept], expected[kept])
        # The running mean no longer needs to be corrected.
        step = np.where(before < 100, np.nan, 1 - 0.99)
        mean = mean + step * (h - mean)
        is_old = kept & (before > 100)
        np.testing.assert_allclose(
            to_numpy(units.mean_activation)[is_old], mean[is_old], rtol=1e-5
        )
        mean = to_numpy(units.mean_activation)


def test_some_units_are_due_in_these_updates():
    run = _new_run()
    run.jump_to(10**9)
    before = math.floor(run.due)
    for _ in range(100):
        run.update()
    assert int(to_numpy(run.units.num_replaced)) == math.floor(run.due)
    assert math.floor(run.due) > before


def test_checks_go_on_where_the_number_of_updates_begins_again():
    model = make_model(activation="relu")
    optimizer = ReDo(keras.optimizers.SGD(0.0), threshold=0.0, period=2)
    model.compile(optimizer, "mse")
    x, y = make_data(4)
    model.train_on_batch(x, y)
    units = optimizer.hidden[0]
    # An int32, whose largest value is followed by the smallest.
    units.num_updates.assign(2**31 - 1)
    checks = 0
    for _ in range(6):
        units.utility.assign(-np.ones(units.size))
        model.train_on_batch(x, y)
        checks += to_numpy(units.utility).max() >= 0
    assert int(to_numpy(units.num_updates)) == -(2**31) + 5
    assert checks == 3
