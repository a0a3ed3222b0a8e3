import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy


@pytest.mark.parametrize("decay_rate", [0.0, 0.5, 0.99, 0.9999, 0.9999999])
def test_step_size(decay_rate):
    age = np.array([1, 2, 3, 10, 1000, 100000, 2**24], "float64")
    # In extended form, where 1 - decay**age does not lose its digits.
    powers = np.exp(age * np.log(decay_rate)) if decay_rate else 0 * age
    expected = (1 - decay_rate) / (1 - powers)
    step_size = functional.step_size(
        ops.convert_to_tensor(age.astype("float32")), decay_rate
    )
    np.testing.assert_allclose(to_numpy(step_size), expected, rtol=1e-5)
    assert to_numpy(step_size)[0] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("decay_rate", [0.0, 0.5, 0.9, 0.99])
def test_running_mean_is_the_corrected_mean(decay_rate):
    values = np.random.default_rng(0).normal(2, 1, (40, 3))
    mean = ops.zeros((3,))
    raw = np.zeros(3)
    for t, value in enumerate(values, start=1):
        step_size = functional.step_size(
            ops.full((3,), float(t), dtype="float32"), decay_rate
        )
        mean = functional.running_mean(
            mean, ops.convert_to_tensor(value.astype("float32")), step_size
        )
        raw = decay_rate * raw + (1 - decay_rate) * value
        np.testing.assert_allclose(
            to_numpy(mean), raw / (1 - decay_rate**t), rtol=1e-5
        )
