import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy


def _bins(ages, max_age):
    ages = ops.convert_to_tensor(np.asarray(ages, "float32"))
    return to_numpy(functional.age_bin(ages, max_age))


@pytest.mark.parametrize("max_age", [1, 7, 1023, 1024, 1025, 2047, 20_000])
def test_bins_are_contiguous_and_as_many_as_stated(max_age):
    bins = _bins(np.arange(max_age + 1), max_age)
    np.testing.assert_array_equal(
        np.unique(bins), np.arange(functional.num_age_bins(max_age))
    )
    assert np.all(np.diff(bins) >= 0)


def test_ages_beyond_the_largest_are_in_bin_0():
    np.testing.assert_array_equal(_bins([64, 65, 10_000], 64), [64, 0, 0])


def test_age_is_known_to_within_a_fifth_of_a_percent():
    max_age = 8_000_000
    rng = np.random.default_rng(0)
    ages = np.concatenate([np.arange(1000, 1100), rng.integers(1, max_age, 50)])
    bins = _bins(ages, max_age)
    histogram = np.zeros((len(ages), max(bins) + 1), "float32")
    histogram[np.arange(len(ages)), bins] = 1
    quantiles = functional.age_quantile(ops.convert_to_tensor(histogram), 0.5)
    for age, found in zip(ages.tolist(), to_numpy(quantiles)):
        assert found <= age < found * (1 + 1 / 512) + 1e-9
        assert found == age or age > 1024


@pytest.mark.parametrize("quantile", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_quantile_is_the_smallest_age_that_reaches_it(quantile):
    rng = np.random.default_rng(1)
    events = rng.integers(0, 60, (50, 37))
    histogram = np.zeros((50, functional.num_age_bins(64)), "float32")
    expected = []
    for unit, ages in enumerate(events):
        np.add.at(histogram[unit], ages, 1)
        positive = ages[ages > 0]
        shares = [np.float32(np.mean(positive <= a)) for a in range(1, 65)]
        expected.append(1 + int(np.argmax(np.array(shares) >= quantile)))
    actual = functional.age_quantile(ops.convert_to_tensor(histogram), quantile)
    np.testing.assert_array_equal(to_numpy(actual), expected)


def test_without_events_the_quantile_is_1():
    histogram = np.zeros((2, 10), "float32")
    histogram[1, 0] = 5  # At age 0, which is left out.
    quantile = functional.age_quantile(ops.convert_to_tensor(histogram), 0.9)
    np.testing.assert_array_equal(to_numpy(quantile), [1, 1])


@pytest.mark.parametrize("shape", [(), (5,), (5, 0), (5, 1), (1, 5, 2)])
def test_no_histogram_of_units(shape):
    with pytest.raises(
        ValueError, match=r"must be .* \(units, bins\)"
    ) as error:
        functional.age_quantile(ops.zeros(shape), 0.5)
    assert f"histogram.shape={shape}" in str(error.value)
