"""Sums over a batch, of whatever axes."""

import numpy as np
import pytest
from keras import ops

from keras_plasticity.units.unit_statistics import sum_of_features
from tests.helpers import to_numpy


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 3), (1,)),
        ((1, 3), (1,)),
        ((4, 5, 3), (2,)),
        ((4, 3, 5), (1,)),
        ((1, 1, 3), (2,)),
        ((4, 5, 6, 3), (3,)),
        ((4, 5, 6, 2, 3), (4,)),
        ((4, 5, 2, 3), (2, 3)),
        ((4, 5, 2, 3), (3, 2)),
        ((1, 1, 2, 3), (3, 2)),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_sum_of_features(shape, axes, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    others = [i for i in range(len(shape)) if i not in axes]
    moved = np.transpose(x, [*others, *axes])
    moved = moved.reshape(*moved.shape[: len(others)], -1)
    weights = None
    if masked:
        if 1 in axes:
            pytest.skip("It counts features, not steps.")
        weights = rng.integers(0, 2, shape[:2]).astype("float32")
        weights[0, 0] = 1.0
        # What does not count may be no number.
        x[weights == 0] = np.nan
        moved = moved[weights > 0]
        expected = (
            moved.reshape(len(moved), -1, moved.shape[-1])
            .mean(axis=1)
            .sum(axis=0)
        )
        weights = ops.convert_to_tensor(weights)
    else:
        moved = moved.reshape(shape[0], -1, moved.shape[-1])
        expected = moved.mean(axis=1).sum(axis=0)
    actual = sum_of_features(ops.convert_to_tensor(x), axes, weights)
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-5, atol=1e-6)
