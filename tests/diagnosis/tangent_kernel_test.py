"""The tangent kernel of a model."""

import keras
import numpy as np
import pytest

from keras_plasticity import diagnosis
from keras_plasticity import diagnostics
from tests.diagnosis.differences import gradient_of
from tests.diagnosis.differences import values_of
from tests.helpers import make_data
from tests.helpers import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _output(weights, x, _):
    kernel, bias, last_kernel, last_bias = weights
    return (np.tanh(x @ kernel + bias) @ last_kernel + last_bias).item()


def test_the_kernel_of_one_output():
    model = make_model(dims=(4, 6, 1), layer=keras.layers.Dense)
    x, y = make_data(20, (4, 6, 1))
    # Every third one: the first and the last are among them.
    chosen = x[[0, 3, 6, 9, 12, 15, 19]]
    expected = np.stack(
        [
            gradient_of(_output, values_of(model), each[None], None)
            for each in chosen
        ]
    )
    gradients = diagnosis.tangent_kernel_gradients(model, x, num_examples=7)
    np.testing.assert_allclose(
        gradients @ gradients.T, expected @ expected.T, atol=1e-4
    )
    rank = diagnosis.tangent_kernel_rank(model, (x, y), 7)
    assert rank == pytest.approx(
        diagnostics.tangent_kernel_rank(expected), rel=1e-4
    )
    condition = diagnosis.tangent_kernel_condition(model, (x, y), 7)
    assert condition == pytest.approx(
        diagnostics.tangent_kernel_condition(expected), rel=0.05
    )
    # It need not be compiled, and changes nothing.
    assert not model.compiled
    # As many as there are.
    gradients = diagnosis.tangent_kernel_gradients(model, (x, y))
    assert gradients.shape == (20, 4 * 6 + 6 + 6 + 1)


def test_it_learns_by_its_kernel():
    # A small step of gradient descent on the outputs, with the direction that
    # the outputs are combined by, changes them as the kernel says.
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    x, _ = make_data(5)
    gradients = diagnosis.tangent_kernel_gradients(model, x)
    assert diagnosis.tangent_kernel_rank(model, (x, None)) > 2
    direction = np.random.default_rng(0).normal(size=3)
    direction /= np.linalg.norm(direction)
    residuals = np.array([1.0, -1.0, 0.5, 0.0, 2.0])
    step = 1e-2 * residuals @ gradients
    before = model.predict(x, verbose=0) @ direction
    for v in model.trainable_variables:
        size = np.prod(v.shape)
        part, step = step[:size], step[size:]
        v.assign(v + part.reshape(v.shape))
    after = model.predict(x, verbose=0) @ direction
    kernel = gradients @ gradients.T
    np.testing.assert_allclose(
        (after - before) / 1e-2, kernel @ residuals, atol=2e-2
    )


def test_one_example_and_none_to_tell_apart():
    model = make_model(dims=(4, 6, 1))
    x, y = make_data(3, (4, 6, 1))
    one = (x[:1], y[:1])
    assert diagnosis.tangent_kernel_rank(model, one) == pytest.approx(1.0)
    assert diagnosis.tangent_kernel_condition(model, one) == 1.0
    same = (np.repeat(x[:1], 4, axis=0), np.repeat(y[:1], 4, axis=0))
    assert diagnosis.tangent_kernel_rank(model, same) == pytest.approx(1.0)
    assert diagnosis.tangent_kernel_condition(model, same) == np.inf


def test_outputs_that_do_not_depend_on_the_weights():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="relu", use_bias=False),
            keras.layers.Rescaling(0.0),
        ]
    )
    x, y = make_data(5)
    assert diagnosis.tangent_kernel_rank(model, (x, y)) == 0.0
    assert diagnosis.tangent_kernel_condition(model, (x, y)) == np.inf


def test_a_network_that_has_diverged():
    model = make_model()
    model.layers[0].bias.assign(np.full(6, np.nan))
    data = make_data(5)
    assert np.isnan(diagnosis.tangent_kernel_rank(model, data))
    assert np.isnan(diagnosis.tangent_kernel_condition(model, data))


def test_bad_arguments():
    model, (x, y) = make_model(), make_data(5)
    for measure in (
        diagnosis.tangent_kernel_condition,
        diagnosis.tangent_kernel_gradients,
        diagnosis.tangent_kernel_rank,
    ):
        with pytest.raises(ValueError, match="num_examples=0"):
            measure(model, (x, y), num_examples=0)
        with pytest.raises(ValueError, match="an array of inputs.*data=None"):
            measure(model, None)
        with pytest.raises(ValueError, match=r"must fit model.*\[\(1, 3\)\]"):
            measure(model, x[:, :3])
        with pytest.raises(ValueError, match="must be built"):
            measure(keras.Sequential([keras.layers.Dense(2)]), (x, y))
        with pytest.raises(TypeError, match="`model` must be"):
            measure(None, (x, y))
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        diagnosis.tangent_kernel_rank(model, (x, y))
