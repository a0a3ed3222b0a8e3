import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy


def _tensor(*values):
    return ops.convert_to_tensor(np.array(values, "float32"))


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def test_first_order_utility():
    result = functional.first_order_utility(
        _tensor(1, -2, 0), _tensor(3, 0.5, 7)
    )
    np.testing.assert_array_equal(to_numpy(result), [-3, 1, 0])


@pytest.mark.parametrize("largest", [0.5, 3.0])
def test_global_protection(largest):
    utility = np.array([[0.5, -4.0], [0.0, 0.25]], "float32")
    result = functional.global_protection(
        ops.convert_to_tensor(utility), largest
    )
    expected = _sigmoid(utility / largest)
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-5)


@pytest.mark.parametrize("largest", [0.0, -1.0, -1e-30])
def test_nothing_is_known_to_be_useful(largest):
    utility = _tensor(largest, -2, -3e38, 0)
    for each in (largest, _tensor(largest)[0]):
        result = functional.global_protection(utility, each)
        np.testing.assert_array_equal(to_numpy(result), 0.5)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (3, 2, 4, 5)])
def test_local_protection(shape):
    utility = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    # Of a convolution, over the width alone.
    axis = {4: 1, 5: 2}.get(len(shape), 0)
    norm = np.linalg.norm(utility, axis=axis, keepdims=True)
    expected = _sigmoid(utility / norm)
    result = functional.local_protection(ops.convert_to_tensor(utility))
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-5)


def test_local_protection_of_a_silent_unit():
    utility = np.array([[0.0, 1.0], [0.0, 1.0]], "float32")
    result = to_numpy(
        functional.local_protection(ops.convert_to_tensor(utility))
    )
    np.testing.assert_array_equal(result[:, 0], 0.5)
    np.testing.assert_allclose(result[:, 1], _sigmoid(0.5**0.5), rtol=1e-6)


def test_local_protection_of_half_precision():
    # Its squares are less than float16 can tell from 0.
    utility = ops.cast(_tensor(1e-5, -1e-5), "float16")
    result = to_numpy(functional.local_protection(utility))
    np.testing.assert_allclose(result, _sigmoid([0.707, -0.707]), rtol=1e-2)


def test_below_mean():
    utility = _tensor(0, 1, 2, 5)
    for factor, expected in (
        (0.0, [1, 0, 0, 0]),
        (0.5, [1, 1, 0, 0]),
        (1.0, [1, 1, 1, 0]),
        (2.5, [1, 1, 1, 1]),
    ):
        result = to_numpy(functional.below_mean(utility, factor))
        np.testing.assert_array_equal(result, np.array(expected, bool))


@pytest.mark.parametrize("number", [0, 1, 5, 11, 12])
def test_least(number):
    rng = np.random.default_rng(1)
    utility = rng.permutation(12).reshape(3, 4).astype("float32")
    result = functional.least(ops.convert_to_tensor(utility), number)
    np.testing.assert_array_equal(to_numpy(result), utility < number)


def test_least_of_equal_ones():
    utility = np.zeros(100, "float32")
    utility[::2] = 1.0
    result = to_numpy(functional.least(ops.convert_to_tensor(utility), 20))
    np.testing.assert_array_equal(np.flatnonzero(result), np.arange(1, 41, 2))


def test_least_takes_what_is_no_number_last():
    result = functional.least(_tensor(np.nan, 3, np.inf, 1), 2)
    np.testing.assert_array_equal(to_numpy(result), [0, 1, 0, 1])


def test_bad_input():
    with pytest.raises(ValueError, match="tensors of the same shape"):
        functional.first_order_utility(_tensor(1, 2), _tensor(1, 2, 3))
    with pytest.raises(ValueError, match="`number` must be a tensor of int"):
        functional.least(_tensor(1, 2), 0.5)
    with pytest.raises(ValueError, match="`number` must be a single integer"):
        functional.least(_tensor(1, 2), np.array([1, 2]))
