"""How ready a model is to learn."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import diagnosis
from keras_plasticity.weights import weights_of
from tests.diagnosis.differences import gradient_of
from tests.diagnosis.differences import values_of
from tests.helpers import make_data
from tests.helpers import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

DIMS = (4, 5, 2)


def _model():
    model = make_model(dims=DIMS, layer=keras.layers.Dense)
    model.compile("sgd", "mse")
    return model


def _loss(weights, x, y):
    kernel, bias, last_kernel, last_bias = weights
    outputs = np.tanh(x @ kernel + bias) @ last_kernel + last_bias
    return np.mean((outputs - y) ** 2)


@pytest.mark.parametrize(("size", "number"), [(1, 12), (4, 7), (11, 1)])
def test_readiness_is_that_of_the_gradients_by_hand(size, number):
    model = _model()
    x, y = make_data(11, DIMS)
    weights = values_of(model)
    norm = np.linalg.norm(gradient_of(_loss, weights, x, y))
    rng = np.random.default_rng(3)
    squares = []
    for _ in range(number):
        chosen = rng.choice(11, size, replace=False)
        gradient = gradient_of(_loss, weights, x[chosen], y[chosen])
        squares.append(np.sum(gradient**2))
    expected = norm**4 / (_loss(weights, x, y) * np.mean(squares))
    readiness = diagnosis.optimization_readiness(
        model, (x, y), number, size, batch_size=3, seed=3
    )
    assert readiness == pytest.approx(expected, rel=1e-4)


def test_it_is_the_same_each_time():
    model = _model()
    data = make_data(30, DIMS)
    first = diagnosis.optimization_readiness(model, data)
    assert diagnosis.optimization_readiness(model, data) == first
    assert diagnosis.optimization_readiness(model, data, seed=1) != first
    for v in weights_of(model):
        v.assign(0.5 * v)
    assert diagnosis.optimization_readiness(model, data) != first


def test_nothing_to_learn():
    model = _model()
    x, _ = make_data(8, DIMS)
    y = np.zeros((8, 2))
    for v in weights_of(model):
        v.assign(ops.zeros(v.shape))
    assert diagnosis.optimization_readiness(model, (x, y)) == 0.0
    # A loss, but no gradient: the units are dead.
    model = make_model(dims=(4, 5, 2), activation="relu", use_bias=False)
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(-np.ones((4, 5)))
    assert diagnosis.optimization_readiness(model, (abs(x), y + 1)) == 0.0


def test_it_bounds_the_gain_of_a_step():
    # Of one unit without bias: the loss is smooth, by its second derivative.
    model = make_model(dims=(1, 1), layer=keras.layers.Dense, use_bias=False)
    model.compile("sgd", "mse")
    x, y = make_data(50, (1, 1))
    size = 4
    readiness = diagnosis.optimization_readiness(
        model, (x, y), 300, minibatch_size=size
    )
    w = values_of(model)[0].item()
    smoothness = 2 * np.mean(x**2)
    gradient = np.mean(2 * x * (w * x - y))
    loss = np.mean((w * x - y) ** 2)
    strength = gradient**2 / loss
    rate = 0.5 * readiness / strength / smoothness  # Half of R / beta.
    gains = []
    rng = np.random.default_rng(0)
    for _ in range(4000):
        chosen = rng.choice(50, size, replace=False)
        step = np.mean(2 * x[chosen] * (w * x[chosen] - y[chosen]))
        gains.append(1 - np.mean(((w - rate * step) * x - y) ** 2) / loss)
    assert np.mean(gains) >= 0.5 * 0.5 / smoothness * readiness


def test_a_network_that_has_diverged():
    model = _model()
    model.layers[0].bias.assign(np.full(5, np.nan))
    assert np.isnan(diagnosis.optimization_readiness(model, make_data(5, DIMS)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_minibatches": 0}, "num_minibatches=0"),
        ({"minibatch_size": 0}, "minibatch_size=0"),
        ({"minibatch_size": 6}, "5 examples, minibatch_size=6"),
        ({"batch_size": "2"}, "batch_size=2"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"data": None}, r"`data` must be a tuple.*data=None"),
    ],
)
def test_bad_arguments(arguments, message):
    good = {"model": _model(), "data": make_data(5, DIMS)}
    with pytest.raises(ValueError, match=message):
        diagnosis.optimization_readiness(**{**good, **arguments})


def test_models_that_cannot_be_ready():
    x, y = make_data(5, DIMS)
    model = make_model(dims=DIMS)
    with pytest.raises(ValueError, match="compiled with a loss"):
        diagnosis.optimization_readiness(model, (x, y))
    model.compile("sgd", loss=lambda y, outputs: ops.mean(outputs) - 1e3)
    with pytest.raises(ValueError, match="not negative.*a loss of -"):
        diagnosis.optimization_readiness(model, (x, y))
    model.trainable = False
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must have trainable weights"):
        diagnosis.optimization_readiness(model, (x, y))
