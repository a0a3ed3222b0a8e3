import keras
import numpy as np
import pytest

from keras_plasticity.layers import Conv2D
from keras_plasticity.layers import Dense
from keras_plasticity.optimizers import SelfNormalizedResets
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

# Never reached.
_LONG = {
    "min_threshold": 5000,
    "initial_threshold": 10_000,
    "threshold_period": 10**6,
}


def _silence(optimizer):
    """The count of examples for each unit of the first hidden layer."""
    (silence,) = [v for v in optimizer.variables if v.path.endswith("_silence")]
    return to_numpy(silence)


def _train_on(model, x, y, **kwargs):
    optimizer = SelfNormalizedResets(keras.optimizers.SGD(0.0), **_LONG)
    model.compile(optimizer, "mse", **kwargs)
    for i in range(0, len(x), 8):
        model.train_on_batch(x[i : i + 8], y[i : i + 8])
    return optimizer


@pytest.mark.parametrize(
    "activation",
    mostly_slow(
        [
            None,
            "relu",
            "tanh",
            "sigmoid",
            "hard_sigmoid",
            "softplus",
            "elu",
            "gelu",
            "silu",
            "leaky_relu",
            "exponential",
            keras.layers.LeakyReLU(),
        ],
        None,
        "relu",
        "sigmoid",
        "gelu",
    ),
    ids=str,
)
def test_a_unit_fires_where_its_pre_activation_is_positive(activation):
    model = make_model((4, 20, 3), activation=activation)
    layer = model.layers[0]
    layer.bias.assign(np.linspace(-5, 1, 20))
    x, y = make_data(8, (4, 20, 3))
    optimizer = _train_on(model, x, y)
    pre_activation = x @ to_numpy(layer.kernel) + to_numpy(layer.bias)
    fired = np.any(pre_activation > 0, axis=0)
    assert 0 < fired.sum() < 20
    np.testing.assert_array_equal(_silence(optimizer), np.where(fired, 0, 8))


def test_one_position_is_enough():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            Conv2D(3, 3, activation="relu", name="conv"),
            keras.layers.Flatten(),
            Dense(2),
        ]
    )
    # Channel 0 fires at one position of one example, 1 nowhere, 2 everywhere.
    kernel = np.zeros((3, 3, 1, 3))
    kernel[1, 1, 0] = [1, -1, 1]
    model.layers[0].kernel.assign(kernel)
    model.layers[0].bias.assign([-0.5, -0.5, 0.5])
    x = np.zeros((8, 6, 6, 1), "float32")
    x[5, 3, 2] = 1
    optimizer = _train_on(model, x, np.zeros((8, 2), "float32"))
    np.testing.assert_array_equal(_silence(optimizer), [0, 8, 0])


def test_silence_counts_examples():
    model = make_model((4, 5, 3), activation="relu")
    model.layers[0].bias.assign([-100, -100, 100, 100, 100])
    # Batches of 8, 8 and 4.
    optimizer = _train_on(model, *make_data(20, (4, 5, 3)))
    np.testing.assert_array_equal(_silence(optimizer), [20, 20, 0, 0, 0])


def test_accumulated_steps_are_one_update():
    model = make_model((4, 5, 3), activation="relu")
    model.layers[0].bias.assign([-100, -100, 100, 100, 100])
    x, y = make_data(32, (4, 5, 3))
    optimizer = SelfNormalizedResets(
        keras.optimizers.SGD(0.0, gradient_accumulation_steps=2), **_LONG
    )
    model.compile(optimizer, "mse")
    for i in range(0, 24, 8):
        model.train_on_batch(x[i : i + 8], y[i : i + 8])
    np.testing.assert_array_equal(_silence(optimizer), [16, 16, 0, 0, 0])
    model.train_on_batch(x[24:], y[24:])
    np.testing.assert_array_equal(_silence(optimizer), [32, 32, 0, 0, 0])
    np.testing.assert_array_equal(to_numpy(model.layers[0].age), 2)


def test_a_silent_unit_is_replaced_at_its_threshold():
    model = make_model((4, 5, 3), activation="relu", kernel_initializer="ones")
    model.layers[0].bias.assign([-100, 100, 100, 100, 100])
    optimizer = SelfNormalizedResets(
        keras.optimizers.SGD(0.0),
        min_threshold=20,
        initial_threshold=20,
        threshold_period=10**6,
    )
    model.compile(optimizer, "mse")
    x, y = make_data(24, (4, 5, 3))
    for i, replaced in ((0, 0), (8, 0), (16, 1)):
        model.train_on_batch(x[i : i + 8], y[i : i + 8])
        assert optimizer.num_replaced() == {"layer_0": replaced}
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel)[:, 0], 1.0)
    assert to_numpy(model.layers[0].bias)[0] == 0
    np.testing.assert_array_equal(to_numpy(model.layers[1].kernel)[0], 0.0)


def test_config():
    optimizer = SelfNormalizedResets(
        keras.optimizers.SGD(),
        quantile=0.75,
        min_threshold=5,
        max_threshold=50,
        initial_threshold=20,
        threshold_period=7,
        seed=4,
        name="other",
    )
    config = optimizer.get_config()
    twin = SelfNormalizedResets.from_config(config)
    assert twin.get_config() == config
    for name in ("quantile", "min_threshold", "max_threshold"):
        assert getattr(twin, name) == getattr(optimizer, name)
    assert (twin.initial_threshold, twin.threshold_period) == (20, 7)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"quantile": 0}, r"`quantile` must be a number in \(0, 1\)"),
        ({"quantile": 1.0}, r"`quantile` must be a number in \(0, 1\)"),
        ({"quantile": float("nan")}, "`quantile` must be a number in"),
        ({"quantile": "high"}, "`quantile` must be a number in"),
        ({"quantile": True}, "`quantile` must be a number in"),
        ({"min_threshold": 0}, "of at least 1 and at most 20000"),
        (
            {"min_threshold": 30_000},
            "of at least 1 and at most 20000",
        ),
        ({"max_threshold": 0}, "`max_threshold` must be an integer"),
        (
            {"max_threshold": 2**24},
            "of at least 1 and at most 8388608",
        ),
        ({"max_threshold": 1e4}, "`max_threshold` must be an integer"),
        (
            {"initial_threshold": 50},
            "`initial_threshold` must be an integer of at least 100 and at "
            "most 20000. Received: initial_threshold=50",
        ),
        (
            {"max_threshold": 5000},
            "`initial_threshold` must be an integer of at least 100 and at "
            "most 5000. Received: initial_threshold=10000",
        ),
        ({"threshold_period": 0}, "`threshold_period` must be a positive"),
        ({"threshold_period": 2.5}, "`threshold_period` must be a positive"),
    ],
    ids=str,
)
def test_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelfNormalizedResets(keras.optimizers.SGD(), **arguments)
