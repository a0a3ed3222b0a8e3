import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import ReGraMa
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy
from tests.helpers import train


def _dead_model():
    """A network of which a third of the units never fires."""
    model = make_model((4, 6, 6, 3), activation="relu")
    for layer in model.layers[:-1]:
        layer.bias.assign([0.1, -99, 0.1, -99, 0.1, 0.1])
    return model


@pytest.mark.parametrize("period", [1, 3])
def test_first_check_follows_a_whole_period(period):
    model = _dead_model()
    optimizer = ReGraMa(keras.optimizers.SGD(0.01), period=period)
    model.compile(optimizer, "mse")
    for update in range(1, period + 2):
        model.train_on_batch(*make_data(8))
        expected = 2 if update == period + 1 else 0
        assert optimizer.num_replaced() == {
            "layer_0": expected,
            "layer_1": expected,
        }
    for layer, reader in zip(model.layers, model.layers[1:]):
        np.testing.assert_array_equal(to_numpy(layer.bias)[[1, 3]], 0.0)
        # Not those that the next layer has drawn itself.
        kept = [0, 2, 4, 5] if reader is not model.layers[-1] else slice(None)
        rows = to_numpy(reader.kernel)[[1, 3]][:, kept]
        np.testing.assert_array_equal(rows, 0.0)
        if reader is not model.layers[-1]:
            drawn = to_numpy(reader.kernel)[np.ix_([1, 3], [1, 3])]
            assert np.all(drawn != 0)


def test_units_without_any_gradient_are_all_replaced():
    model = make_model((4, 6, 3), activation="relu")
    model.layers[0].bias.assign(np.full(6, -100.0))
    optimizer = ReGraMa(keras.optimizers.SGD(0.1), period=1)
    train(model, optimizer, make_data(8))
    assert optimizer.num_replaced() == {"layer_0": 6}


def test_silent_units_of_a_bounded_activation_are_found():
    """They are saturated: their activation is large, their gradient nil."""
    model = make_model((4, 6, 3), activation="tanh")
    model.layers[0].bias.assign([0.0, 50, 0, 0, -50, 0])
    optimizer = ReGraMa(keras.optimizers.SGD(0.01), period=1, threshold=1e-3)
    train(model, optimizer, make_data(8))
    np.testing.assert_array_equal(
        to_numpy(model.layers[0].age) == 0, [0, 1, 0, 0, 1, 0]
    )


def test_threshold_and_period_may_change():
    model = _dead_model()
    optimizer = ReGraMa(keras.optimizers.SGD(0.0), threshold=0, period=1000)
    data = make_data(8)
    train(model, optimizer, data)
    optimizer.period = 1
    optimizer.threshold = 100
    train(model, optimizer, data)
    assert optimizer.num_replaced()["layer_0"] >= 6


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("threshold", -0.1, "must be a number that is not negative"),
        ("threshold", "low", "must be a number that is not negative"),
        ("threshold", None, "must be a number that is not negative"),
        ("period", 0, "must be a positive integer"),
        ("period", 2.0, "must be a positive integer"),
        ("period", True, "must be a positive integer"),
    ],
)
def test_bad_argument(name, value, message):
    with pytest.raises(
        ValueError, match=f"`{name}` {message}.*Received: {name}={value}"
    ):
        ReGraMa(keras.optimizers.SGD(), **{name: value})
