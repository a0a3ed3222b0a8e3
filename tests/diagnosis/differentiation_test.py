"""The loss of a model, its gradients and second derivatives."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import backend
from keras_plasticity.diagnosis import differentiation
from keras_plasticity.weights import weights_of
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _model():
    """Batch statistics, noise, regularizers, and losses that layers add."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.ActivityRegularization(l2=0.1),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    return model


def _loss(weights, x, y):
    """By hand, in float64."""
    kernel, bias, gamma, beta, last_kernel, last_bias = weights
    hidden = np.tanh(x @ kernel + bias)
    # The statistics are those of a layer that has seen nothing.
    normalized = gamma * hidden / np.sqrt(1.0 + 1e-3) + beta
    outputs = normalized @ last_kernel + last_bias
    # Keras divides by the number of examples here.
    activity = 0.1 * np.sum(normalized**2) / len(x)
    penalty = 0.01 * np.sum(kernel**2)
    return np.mean((outputs - y) ** 2) + activity + penalty


def _differences(function, weights, step):
    """Central differences of a function of a list of arrays, for each entry."""
    results = []
    for i, w in enumerate(weights):
        for index in np.ndindex(w.shape):
            ends = []
            for sign in (1, -1):
                moved = [each.copy() for each in weights]
                moved[i][index] += sign * step
                ends.append(function(moved))
            results.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(results)


def _gradient(weights, x, y):
    return _differences(lambda moved: _loss(moved, x, y), weights, 1e-4)


def _hessian(weights, x, y):
    return _differences(lambda moved: _gradient(moved, x, y), weights, 1e-3)


def _values(model):
    return [to_numpy(v).astype("float64") for v in weights_of(model)]


def _flat(arrays):
    return np.concatenate([np.ravel(each) for each in arrays])


@pytest.mark.parametrize("batch_size", [None, 3])
def test_derivatives_are_those_of_the_loss_by_hand(batch_size):
    model = _model()
    x, y = make_data(7)
    derivatives = differentiation.Differentiation(model)
    rng = np.random.default_rng(0)
    for _ in range(2):
        weights = _values(model)
        loss = derivatives.loss(x, y, batch_size)
        assert loss == pytest.approx(_loss(weights, x, y), rel=1e-5)
        same, gradients = derivatives.loss_and_gradients(x, y, batch_size)
        assert same == pytest.approx(loss, rel=1e-6)
        expected = _gradient(weights, x, y)
        np.testing.assert_allclose(_flat(gradients), expected, atol=1e-5)
        vectors = [rng.normal(0, 1, w.shape) for w in weights]
        products = derivatives.hessian_vector_product(x, y, vectors, batch_size)
        expected = _hessian(weights, x, y) @ _flat(vectors)
        np.testing.assert_allclose(_flat(products), expected, atol=1e-4)
        assert [w.shape for w in weights] == [p.shape for p in products]
        # What the weights are is not a part of what was compiled.
        for v in weights_of(model):
            v.assign(v + 0.1)
