"""What the front doors for PyTorch and Optax have in common."""

import numpy as np
import pytest

from keras_plasticity.native import unit_statistics
from tests.helpers import to_numpy


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.3, 1.0])
def test_new_statistics_are_zero(rate):
    settings = unit_statistics.Settings(replacement_rate=rate)
    for each in unit_statistics.new_statistics(settings, 5):
        np.testing.assert_array_equal(to_numpy(each), 0)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("replacement_rate", [0, 1], [-1e-9, 1.1]),
        ("maturity_threshold", [0, 2**24 - 1], [-1, 2**24, 1.5]),
        ("decay_rate", [0, 0.999], [-0.1, 1]),
    ],
)
def test_ranges(name, good, bad):
    for value in good:
        settings = unit_statistics.Settings(**{name: value})
        assert getattr(settings, name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"`{name}` must be .*{value}"):
            unit_statistics.Settings(**{name: value})
