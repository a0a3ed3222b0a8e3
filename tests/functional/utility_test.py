import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy

_H = np.array([0.5, 0.0, 2.0], "float32")
_D = np.array([0.25, 0.0, 0.5], "float32")
_OUT = np.array([2.0, 3.0, 0.0], "float32")
_IN = np.array([4.0, 0.5, 0.1], "float32")


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("contribution", (_H, _OUT), [1.0, 0.0, 0.0]),
        ("mean_corrected_contribution", (_D, _OUT), [0.5, 0.0, 0.0]),
        ("adaptation", (_IN,), [0.25, 2.0, 10.0]),
        ("overall", (_D, _OUT, _IN), [0.125, 0.0, 0.0]),
        ("weight_magnitude", (_OUT,), [2.0, 3.0, 0.0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_utility(name, arguments, expected):
    tensors = [ops.convert_to_tensor(a) for a in arguments]
    result = getattr(functional, name)(*tensors)
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


def test_zero_incoming_weights_do_not_make_nans():
    zero = ops.zeros((2,))
    assert np.all(np.isfinite(to_numpy(functional.adaptation(zero))))
    overall = functional.overall(zero, ops.ones((2,)), zero)
    np.testing.assert_array_equal(to_numpy(overall), 0.0)


@pytest.mark.parametrize("axis", [0, 1, -1, -2, 2])
def test_mean_magnitude(axis):
    shape = (3, 4, 5) if axis == 2 else (3, 4)
    weights = np.random.default_rng(0).normal(0, 1, shape)
    result = functional.mean_magnitude(
        ops.convert_to_tensor(weights.astype("float32")), axis
    )
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    np.testing.assert_allclose(
        to_numpy(result), np.abs(weights).mean(axis=others), rtol=1e-5
    )


def test_mean_magnitude_of_a_bias():
    result = functional.mean_magnitude(ops.convert_to_tensor([1.0, -3.0]), 0)
    np.testing.assert_array_equal(to_numpy(result), [1.0, 3.0])


def test_mean_magnitude_of_half_precision_is_float32():
    # 1,000 times 100 overflows float16 when summed.
    weights = ops.full((1000, 2), -100.0, dtype="float16")
    result = functional.mean_magnitude(weights, -1)
    assert to_numpy(result).dtype == "float32"
    np.testing.assert_allclose(to_numpy(result), 100.0)
