import numpy as np
import pytest

from keras_plasticity import metrics


def test_a_unit_is_dead_only_if_it_is_zero_for_every_example():
    features = np.array(
        [[0.0, 1.0, 0.0, -0.0], [0.0, 0.0, 1e-30, 0.0]], "float32"
    )
    assert metrics.dead_units(features) == 2
    assert metrics.dead_units(features + 1.0) == 0
    assert metrics.dead_units(np.zeros((3, 7))) == 7


def test_bad_features():
    with pytest.raises(ValueError, match=r"features.shape=\(4,\)"):
        metrics.dead_units(np.zeros(4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.dead_units(np.full((2, 2), np.inf))
