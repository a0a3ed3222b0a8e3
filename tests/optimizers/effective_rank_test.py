"""`EffectiveRank` against finite differences of a literal NumPy network."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.layers import RecentInputs
from keras_plasticity.optimizers import EffectiveRank
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")


def effective_rank(features):
    """As the paper defines it, in float64."""
    values = np.linalg.svd(features, compute_uv=False)
    p = values / max(values.sum(), 1e-8)
    return np.exp(-np.sum(p * np.log(p + 1e-8)))


def dense_features(weights, x):
    first = np.maximum(x @ weights[0] + weights[1], 0)
    return [first, np.maximum(first @ weights[2] + weights[3], 0)]


def dense_model(before):
    return keras.Sequential(
        [
            keras.Input((5,)),
            *before,
            keras.layers.Dense(7, activation="relu"),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.Dense(2),
        ]
    )


def conv_features(weights, x):
    """A 2 x 2 convolution by loops, whose positions are rows."""
    kernel, bias = weights[:2]
    height, width = x.shape[1] - 1, x.shape[2] - 1
    maps = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i : i + 2, j : j + 2]
            maps[:, i, j] = np.tensordot(patch, kernel, 3) + bias
    maps = np.maximum(maps, 0)
    hidden = np.tanh(maps.reshape(len(x), -1) @ weights[2])
    return [maps.reshape(-1, maps.shape[-1]), hidden]


def conv_model(before):
    return keras.Sequential(
        [
            keras.Input((4, 3, 2)),
            *before,
            keras.layers.Conv2D(3, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="tanh", use_bias=False),
            keras.layers.Dense(2),
        ]
    )


def rank_gradients(features, weights, x):
    """Central differences of the mean effective rank."""

    def mean_rank():
        return np.mean([effective_rank(h) for h in features(weights, x)])

    gradients = []
    for weight in weights:
        gradient = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            before = weight[index]
            weight[index] = before + 1e-6
            above = mean_rank()
            weight[index] = before - 1e-6
            gradient[index] = (above - mean_rank()) / 2e-6
            weight[index] = before
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize(
    "make, features, shape",
    [
        (dense_model, dense_features, (5,)),
        (conv_model, conv_features, (4, 3, 2)),
    ],
)
def test_oracle(make, features, shape):
    """Nothing but rank steps: the learning rate is 0."""
    model = make([RecentInputs(6)])
    optimizer = EffectiveRank(
        keras.optimizers.SGD(0.0), rank_learning_rate=0.05, period=3, steps=2
    )
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    weights = keras_plasticity.weights_of(model)
    for weight in weights:
        weight.assign(rng.normal(0.2, 0.6, weight.shape))
    expected = [to_numpy(w).astype("float64") for w in weights]
    x = rng.normal(size=(18, *shape)).astype("float32")
    model.fit(x, np.zeros((18, 2)), batch_size=2, shuffle=False, verbose=0)
    for end in (6, 12, 18):
        recent = x[end - 6 : end].astype("float64")
        for _ in range(2):
            gradients = rank_gradients(features, expected[:-2], recent)
            for weight, gradient in zip(expected, gradients):
                weight += 0.05 * gradient
    for weight, value in zip(weights, expected):
        np.testing.assert_allclose(
            to_numpy(weight), value, rtol=0, atol=2e-5, err_msg=weight.path
        )


def test_rank_and_its_gradient_where_a_decomposition_has_none():
    # Equal singular values, and zero ones: of the backend's own, NaN.
    features = np.zeros((4, 3), "float32")
    features[:2, :2] = np.eye(2)
    variable = keras.Variable(features)
    rank = to_numpy(functional.effective_rank(ops.convert_to_tensor(features)))
    assert rank == pytest.approx(2)
    (gradient,) = backend.gradients(
        lambda: functional.effective_rank(variable.value), [variable]
    )
    gradient = to_numpy(gradient)
    assert np.isfinite(gradient).all()
    # The rank rises by what has no part in it so far.
    assert abs(gradient[:2, :2]).max() < 1e-5 < gradient[2:, 2].max()
    assert float(functional.effective_rank(ops.zeros((3, 2)))) == 1


def test_fewer_examples_than_are_remembered():
    model = dense_model([RecentInputs(9)])
    optimizer = EffectiveRank(keras.optimizers.SGD(0.0), 0.1, period=1)
    model.compile(optimizer, "mse")
    weights = keras_plasticity.weights_of(model)
    expected = [to_numpy(w).astype("float64") for w in weights]
    x = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")
    model.train_on_batch(x, np.zeros((4, 2)))
    gradients = rank_gradients(dense_features, expected[:-2], x)
    for weight, value, gradient in zip(weights, expected, gradients):
        np.testing.assert_allclose(
            to_numpy(weight), value + 0.1 * gradient, rtol=0, atol=1e-5
        )


def test_more_examples_at_once_than_are_remembered():
    layer = RecentInputs(3)
    model = dense_model([layer])
    model.compile(EffectiveRank(keras.optimizers.SGD(0.1)), "mse")
    x = np.random.default_rng(1).normal(size=(5, 5)).astype("float32")
    model.train_on_batch(x, np.zeros((5, 2)))
    examples, is_example = layer.recent()
    np.testing.assert_array_equal(to_numpy(examples), x[-3:])
    assert to_numpy(is_example).all()


def test_examples_survive_a_factor_on_all_gradients():
    """As of clipping by hand."""
    layer = RecentInputs(4)
    model = dense_model([layer])
    optimizer = EffectiveRank(keras.optimizers.SGD(0.1))
    variables = model.trainable_variables
    loss = keras.losses.MeanSquaredError()
    x = np.random.default_rng(1).normal(size=(6, 1, 5)).astype("float32")
    for each in x:
        _, grads = loss_and_gradients(model, loss, each, np.zeros((1, 2)))
        optimizer.apply([0.1 * g for g in grads], variables)
    examples, _ = layer.recent()
    np.testing.assert_allclose(to_numpy(examples), x[2:, 0], rtol=1e-5)


@pytest.mark.parametrize("layers", [["first"], 1])
def test_only_some_layers(layers):
    model = dense_model([RecentInputs(4)])
    first, second, last = model.layers[1:]
    if layers == ["first"]:
        layers = [first.name]
    optimizer = EffectiveRank(
        keras.optimizers.SGD(0.0), 0.1, period=1, layers=layers
    )
    model.compile(optimizer, "mse")
    before = [to_numpy(v) for v in keras_plasticity.weights_of(model)]
    x = np.random.default_rng(1).normal(size=(4, 5))
    model.train_on_batch(x, np.zeros((4, 2)))
    for variable, value in zip(keras_plasticity.weights_of(model), before):
        changed = np.any(to_numpy(variable) != value)
        # The second one's features depend on both layers.
        meant = [first] if layers != 1 else [first, second]
        assert changed == any(
            f"/{each.name}/" in variable.path for each in meant
        )


def test_subclassed_model():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.recent = RecentInputs(4)
            self.first = keras.layers.Dense(7, activation="relu")
            self.second = keras.layers.Dense(4, activation="relu")
            self.last = keras.layers.Dense(2)

        def call(self, x):
            return self.last(self.second(self.first(self.recent(x))))

    model = Model()
    model.compile(EffectiveRank(keras.optimizers.SGD(0.0), 0.1, 1), "mse")
    x = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")
    model(x)
    weights = keras_plasticity.weights_of(model)
    expected = [to_numpy(w).astype("float64") for w in weights]
    model.train_on_batch(x, np.zeros((4, 2)))
    gradients = rank_gradients(dense_features, expected[:-2], x)
    for weight, value, gradient in zip(weights, expected, gradients):
        np.testing.assert_allclose(
            to_numpy(weight), value + 0.1 * gradient, rtol=0, atol=1e-5
        )


def test_no_recent_inputs():
    model = dense_model([])
    with pytest.raises(ValueError, match="`keras_plasticity.layers.RecentInp"):
        EffectiveRank(keras.optimizers.SGD()).build(model.trainable_variables)


def test_an_input_that_is_not_remembered():
    a, b = keras.Input((3,)), keras.Input((2,))
    x = keras.layers.Concatenate()([RecentInputs(4)(a), b])
    x = keras.layers.Dense(4, activation="relu")(x)
    model = keras.Model([a, b], keras.layers.Dense(1)(x))
    message = r"behind each of them. .* shapes \[\(None, 2\)\]"
    with pytest.raises(ValueError, match=message):
        EffectiveRank(keras.optimizers.SGD()).build(model.trainable_variables)


def test_no_hidden_layer():
    model = keras.Sequential(
        [keras.Input((3,)), RecentInputs(4), keras.layers.Dense(1)]
    )
    with pytest.raises(ValueError, match="what hidden layers make. Received"):
        EffectiveRank(keras.optimizers.SGD()).build(model.trainable_variables)


def test_a_layer_with_a_state_of_its_own():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            RecentInputs(4),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Dense(1),
        ]
    )
    with pytest.raises(ValueError, match="Received: layer 'norm' with"):
        EffectiveRank(keras.optimizers.SGD()).build(model.trainable_variables)


def test_dropout_is_no_such_layer():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            RecentInputs(4),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(EffectiveRank(keras.optimizers.SGD(0.1), period=1), "mse")
    loss = model.train_on_batch(np.ones((4, 3)), np.ones((4, 1)))
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank_learning_rate": -1.0}, "`rank_learning_rate` must be"),
        ({"period": 0}, "`period` must be a positive integer"),
        ({"steps": 1.5}, "`steps` must be"),
        ({"layers": "hidden"}, "`layers` must be `None`, a positive int"),
        ({"layers": 0}, "`layers` must be `None`, a positive int"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        EffectiveRank(keras.optimizers.SGD(), **settings)


def test_unknown_layer():
    model = dense_model([RecentInputs(4)])
    optimizer = EffectiveRank(keras.optimizers.SGD(), layers=["hiden"])
    with pytest.raises(ValueError, match=r"Received: \['hiden'\]. Known: \["):
        optimizer.build(model.trainable_variables)
