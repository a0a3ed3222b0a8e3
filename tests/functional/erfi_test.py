import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from keras_plasticity.optimizers import trac
from tests.helpers import to_numpy
from tests.reference_erfi import erfi as reference

# By the series in decimal numbers of 50 digits.
_TABLE = {
    0.5: 0.6149520946965110,
    1.0: 1.6504257587975429,
    2.0: 18.564802414575553,
    3.0: 1629.9946226015657,
    5.0: 8298273880.6768035,
    9.0: 9.500776643665996e33,
}


def test_the_reference_and_the_constant():
    for x, value in _TABLE.items():
        np.testing.assert_allclose(reference(x), value, rtol=1e-13)
    np.testing.assert_allclose(reference(np.sqrt(0.5)), trac._ERFI, rtol=1e-15)


def test_erfi():
    x = np.concatenate(
        [
            np.linspace(-9.5, 9.5, 2001),
            *(sign * 10.0 ** np.arange(-30, 0) for sign in (-1, 1)),
        ]
    ).astype("float32")
    values = to_numpy(functional.erfi(ops.convert_to_tensor(x)))
    assert values.dtype == "float32"
    expected = reference(x)
    # Five times what a rounding of `x` to 24 binary digits does.
    rounding = 5 * 2.0**-24 * (1 + 2 * x.astype("float64") ** 2)
    assert np.all(np.abs(values - expected) <= rounding * np.abs(expected))
    np.testing.assert_array_equal(values[:2001], -values[:2001][::-1])


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 1)])
def test_erfi_of_a_shape(shape):
    result = functional.erfi(ops.full(shape, 0.5))
    assert to_numpy(result).shape == shape
    np.testing.assert_allclose(to_numpy(result), _TABLE[0.5], rtol=1e-6)


def test_erfi_at_the_ends():
    x = [0.0, 9.7, -9.7, 1e30, np.inf, -np.inf, np.nan]
    values = functional.erfi(ops.convert_to_tensor(np.array(x, "float32")))
    np.testing.assert_array_equal(
        to_numpy(values),
        [0, np.inf, -np.inf] + [np.inf, np.inf, -np.inf, np.nan],
    )


def test_erfi_of_what_is_no_tensor():
    with pytest.raises(ValueError, match="`x` must be a tensor of real"):
        functional.erfi("one")
