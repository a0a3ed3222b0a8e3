import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import backend
from keras_plasticity.units.feature_map import FeatureMap
from keras_plasticity.units.weight_view import WeightView
from tests.helpers import to_numpy

# The unit of each feature, and the number of units.
_MAPS = {
    "identity": ([0, 1, 2], 3),
    "one_unit": ([0], 1),
    # A `Flatten` of channels that are the last axis, and of the first.
    "tiled": ([0, 1, 2, 0, 1, 2], 3),
    "repeated": ([0, 0, 1, 1, 2, 2], 3),
    "many_of_one_unit": ([0, 0, 0, 0], 1),
    "concatenated": ([-1, -1, 0, 1, 2, -1], 3),
    "concatenated_tiled": ([0, 1, 0, 1, -1, -1, -1], 2),
    "flipped": ([2, 1, 0], 3),
    "irregular": ([1, 0, 0, 2, 1, 2], 3),
}
_map = pytest.mark.parametrize(
    "units_of_features, units", _MAPS.values(), ids=_MAPS
)


@_map
def test_features_of_unit(units_of_features, units):
    feature_map = FeatureMap(units_of_features, units)
    assert feature_map.features == len(units_of_features)
    assert feature_map.is_identity == (units_of_features == list(range(units)))
    for unit in range(units):
        expected = np.flatnonzero(np.equal(units_of_features, unit))
        np.testing.assert_array_equal(
            feature_map.features_of_unit[unit], expected
        )
        features = feature_map.features_of(ops.convert_to_tensor(unit))
        assert [int(feature) for feature in features] == expected.tolist()


@_map
def test_to_units(units_of_features, units):
    values = np.random.default_rng(0).normal(0, 1, len(units_of_features))
    values = values.astype("float32")
    result = FeatureMap(units_of_features, units).to_units(
        ops.convert_to_tensor(values)
    )
    expected = [
        values[np.equal(units_of_features, unit)].mean()
        for unit in range(units)
    ]
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


@_map
def test_sum_to_units(units_of_features, units):
    values = np.random.default_rng(0).normal(0, 1, len(units_of_features))
    result = FeatureMap(units_of_features, units).sum_to_units(
        ops.convert_to_tensor(values.astype("float32"))
    )
    expected = [
        values[np.equal(units_of_features, unit)].sum() for unit in range(units)
    ]
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-5)


@_map
def test_to_features(units_of_features, units):
    values = np.arange(10.0, 10 + units, dtype="float32")
    other = -np.arange(len(units_of_features), dtype="float32")
    result = FeatureMap(units_of_features, units).to_features(
        ops.convert_to_tensor(values), ops.convert_to_tensor(other)
    )
    expected = [
        other[i] if unit < 0 else values[unit]
        for i, unit in enumerate(units_of_features)
    ]
    np.testing.assert_array_equal(to_numpy(result), expected)


@pytest.mark.parametrize(
    "name, groups",
    [(name, 1) for name in _MAPS]
    + [(name, 2) for name, (units, _) in _MAPS.items() if len(units) % 2 == 0],
)
def test_slices(name, groups):
    units_of_features, units = _MAPS[name]
    features = len(units_of_features)
    # The kernel of a convolution at two positions, with two units.
    shape, axes = (2, features, 2), (1,)
    if groups > 1:
        shape, axes = (2, features // groups, groups, 1), (2, 1)
    feature_map = FeatureMap(units_of_features, units)
    for unit in range(units):
        kernel = keras.Variable(np.ones((2, features // groups, 2)))
        view = WeightView(kernel, shape, axes)
        slices = feature_map.slices(view, ops.convert_to_tensor(unit))
        with backend.no_gradient():
            for each, index in slices:
                each.assign(index, ops.zeros(each.part_shape))
        # All entries of the unit's features are zero, and no others.
        for feature in range(features):
            part = to_numpy(view.take(ops.convert_to_tensor(feature)))
            is_of_unit = units_of_features[feature] == unit
            np.testing.assert_array_equal(part, 0.0 if is_of_unit else 1.0)


@pytest.mark.parametrize(
    "units_of_features, units",
    [
        ([0, 1, 1], 2),  # One of them is read more often.
        ([0, 2], 3),  # One of them is not read.
        ([0, 1, 2], 2),  # There is no such unit.
        ([-1, -1], 2),
    ],
    ids=str,
)
def test_units_that_are_not_read_alike(units_of_features, units):
    with pytest.raises(ValueError, match=f"same number of .* {units} units"):
        FeatureMap(units_of_features, units)
