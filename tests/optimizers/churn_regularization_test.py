"""`ChurnRegularization` against finite differences of a NumPy network."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.layers import RecentInputs
from keras_plasticity.optimizers import ChurnRegularization
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")


def forward(weights, x):
    hidden = np.tanh(x @ weights[0] + weights[1])
    return [hidden @ weights[2], hidden @ weights[3] + weights[4]]


def make_model(num_recent):
    inputs = keras.Input((5,))
    x = RecentInputs(num_recent)(inputs)
    x = keras.layers.Dense(6, activation="tanh")(x)
    outputs = [keras.layers.Dense(2, use_bias=False)(x)]
    outputs.append(keras.layers.Dense(3)(x))
    return keras.Model(inputs, outputs)


def gradients_of(function, weights):
    gradients = []
    for weight in weights:
        gradient = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            value = weight[index]
            weight[index] = value + 1e-6
            above = function()
            weight[index] = value - 1e-6
            gradient[index] = (above - function()) / 2e-6
            weight[index] = value
        gradients.append(gradient)
    return gradients


def squared_error(output, before):
    return (output - before) ** 2


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def cross_entropy(output, before):
    log_p = np.log(softmax(output) + 1e-8)
    return -(softmax(before) * log_p).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "coefficient, distance",
    [(0.0, squared_error), (0.7, squared_error), (0.7, cross_entropy)],
)
def test_oracle(coefficient, distance):
    """Two outputs, of which all are in the mean; fewer examples at first."""
    model = make_model(6)
    model.compile(
        ChurnRegularization(
            keras.optimizers.SGD(0.2), coefficient, distance.__name__
        ),
        [keras.losses.MeanSquaredError(), keras.losses.MeanSquaredError()],
    )
    rng = np.random.default_rng(0)
    weights = keras_plasticity.weights_of(model)
    for weight in weights:
        weight.assign(rng.normal(0, 0.6, weight.shape))
    expected = [to_numpy(w).astype("float64") for w in weights]
    x = rng.normal(size=(20, 5)).astype("float32")
    y = [rng.normal(size=(20, n)).astype("float32") for n in (2, 3)]
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    before = [w.copy() for w in expected]
    for step in range(5):
        part = slice(4 * step, 4 * step + 4)
        recent = x[max(0, 4 * step - 6) : 4 * step].astype("float64")
        old = forward(before, recent)

        def loss(part=part, recent=recent, old=old):
            outputs = forward(expected, x[part])
            total = sum(np.mean((a - b[part]) ** 2) for a, b in zip(outputs, y))
            if len(recent):
                churn = [
                    distance(a, b)
                    for a, b in zip(forward(expected, recent), old)
                ]
                total += coefficient * np.concatenate(churn, -1).mean()
            return total

        gradients = gradients_of(loss, expected)
        before = [w.copy() for w in expected]
        for weight, gradient in zip(expected, gradients):
            weight -= 0.2 * gradient
    for weight, value in zip(weights, expected):
        np.testing.assert_allclose(
            to_numpy(weight), value, rtol=0, atol=2e-5, err_msg=weight.path
        )


def test_bad_settings():
    with pytest.raises(ValueError, match="`distance` must be"):
        ChurnRegularization(keras.optimizers.SGD(), distance="l2")
    with pytest.raises(ValueError, match="`coefficient` must be"):
        ChurnRegularization(keras.optimizers.SGD(), -1.0)


def test_no_recent_inputs():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = ChurnRegularization(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="`ChurnRegularization` looks at rece"):
        optimizer.build(model.trainable_variables)
