import numpy as np
import pytest

from keras_plasticity import metrics


def test_every_entry_counts_the_same():
    weights = [np.array([[-1.0, 1.0], [2.0, 0.0]]), np.array([6.0])]
    assert metrics.weight_magnitude(weights) == pytest.approx(10 / 5)


def test_float32_sums_are_exact_enough():
    weights = [np.full((1000, 1000), 0.1, "float32")]
    expected = float(np.float32(0.1))
    assert metrics.weight_magnitude(weights) == pytest.approx(expected, 1e-9)


@pytest.mark.parametrize("weights", [[], [np.zeros((0, 3))]])
def test_no_entries(weights):
    with pytest.raises(ValueError, match="at least one entry"):
        metrics.weight_magnitude(weights)
