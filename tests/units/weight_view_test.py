import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import backend
from keras_plasticity.units.weight_view import WeightView
from tests.helpers import to_numpy

# Shape of the weight, shape it is seen in, and the axes that are counted.
_VIEWS = {
    "bias": ((5,), (5,), (0,)),
    "one_group_of_a_bias": ((6,), (2, 3), (0,)),
    "dense_units": ((4, 3), (4, 3), (1,)),
    "dense_features": ((4, 3), (4, 3), (0,)),
    "features_after_a_flatten": ((12, 2), (4, 3, 2), (1,)),
    "conv_units": ((2, 3, 4, 5), (2, 3, 4, 5), (3,)),
    "conv_features": ((2, 3, 4, 5), (2, 3, 4, 5), (2,)),
    "depthwise_units": ((2, 3, 4, 2), (2, 3, 4, 2), (2, 3)),
    # The group, which is the last axis but one, is counted first.
    "grouped_conv_features": ((2, 3, 12), (2, 3, 4, 3), (2, 1)),
    "all_axes": ((3, 4), (3, 4), (0, 1)),
}
_view = pytest.mark.parametrize(
    "shape, seen_as, axes", _VIEWS.values(), ids=_VIEWS
)


def _weight(shape, dtype="float32"):
    value = np.random.default_rng(0).normal(0, 1, shape)
    return keras.Variable(value, dtype=dtype)


def _index(seen_as, axes, i):
    """Where the `i`-th one lies in the weight that is seen in a shape."""
    places = np.unravel_index(i, [seen_as[axis] for axis in axes])
    index = [slice(None)] * len(seen_as)
    for axis, place in zip(axes, places):
        index[axis] = place
    return tuple(index)


@_view
def test_take(shape, seen_as, axes):
    weight = _weight(shape)
    view = WeightView(weight, seen_as, axes)
    assert view.size == np.prod([seen_as[axis] for axis in axes])
    value = to_numpy(weight).reshape(seen_as)
    parts = []
    for i in range(view.size):
        part = to_numpy(view.take(ops.convert_to_tensor(i)))
        assert part.shape == view.part_shape
        np.testing.assert_array_equal(part, value[_index(seen_as, axes, i)])
        parts.append(part.reshape(-1))
    # Each entry of the weight belongs to exactly one of them.
    assert np.array_equal(
        np.sort(np.concatenate(parts)), np.sort(value.ravel())
    )


@_view
def test_sum_and_spread(shape, seen_as, axes):
    weight = _weight(shape)
    view = WeightView(weight, seen_as, axes)
    value = to_numpy(weight)
    sums = to_numpy(view.sum(ops.convert_to_tensor(weight)))
    expected = np.empty(seen_as, "float32")
    for i in range(view.size):
        index = _index(seen_as, axes, i)
        np.testing.assert_allclose(
            sums[i], value.reshape(seen_as)[index].sum(), rtol=1e-5, atol=1e-6
        )
        expected[index] = i
    spread = to_numpy(view.spread(ops.arange(view.size, dtype="float32")))
    np.testing.assert_array_equal(
        np.broadcast_to(spread, shape), expected.reshape(shape)
    )


# Only kernels, which have two axes or more, are ever measured.
@pytest.mark.parametrize("name", [n for n, v in _VIEWS.items() if v[1][1:]])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mean_magnitude(name, dtype):
    shape, seen_as, axes = _VIEWS[name]
    weight = _weight(shape, dtype)
    view = WeightView(weight, seen_as, axes)
    magnitude = view.mean_magnitude()
    assert keras.backend.standardize_dtype(magnitude.dtype) == "float32"
    value = np.abs(to_numpy(weight).astype("float32")).reshape(seen_as)
    np.testing.assert_allclose(
        to_numpy(magnitude),
        [value[_index(seen_as, axes, i)].mean() for i in range(view.size)],
        rtol=1e-6,
    )


@_view
def test_assign(shape, seen_as, axes):
    weight, slot = _weight(shape), _weight(shape)
    view = WeightView(weight, seen_as, axes)
    start = expected = to_numpy(weight).reshape(seen_as)
    # The first one, the last one, and one between.
    for i in {0, view.size // 2, view.size - 1}:
        new = -9.0 - np.arange(np.prod(view.part_shape, dtype=int))
        new = new.reshape(view.part_shape).astype("float32")
        expected = expected.copy()
        expected[_index(seen_as, axes, i)] = new
        with backend.no_gradient():
            view.assign(ops.convert_to_tensor(i), ops.convert_to_tensor(new))
        np.testing.assert_array_equal(to_numpy(weight), expected.reshape(shape))
    # A slot of an optimizer has the shape of the weight.
    np.testing.assert_array_equal(to_numpy(slot), start.reshape(shape))
    with backend.no_gradient():
        zeros = ops.zeros(view.part_shape)
        view.assign_in(slot, ops.convert_to_tensor(0), zeros)
    start[_index(seen_as, axes, 0)] = 0
    np.testing.assert_array_equal(to_numpy(slot), start.reshape(shape))
    np.testing.assert_array_equal(to_numpy(weight), expected.reshape(shape))


def test_assign_casts_to_the_weight():
    weight = _weight((4, 3), "float16")
    view = WeightView(weight, (4, 3), (1,))
    with backend.no_gradient():
        view.assign(ops.convert_to_tensor(1), ops.full((4,), 0.1, "float32"))
    np.testing.assert_array_equal(to_numpy(weight)[:, 1], np.float16(0.1))


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_split(axis, counted):
    weight = _weight((6, 6, 2))
    view = WeightView(weight, (6, 6, 2), (axis,)).split((2, 3), counted)
    assert view.size == (2, 3)[counted]
    # Positions by channels, as a `Flatten` leaves them.
    numbers = np.arange(6).reshape(2, 3)
    for i in range(view.size):
        part = to_numpy(view.take(ops.convert_to_tensor(i)))
        expected = to_numpy(weight).take(numbers.take(i, counted), axis=axis)
        np.testing.assert_array_equal(part, expected)
