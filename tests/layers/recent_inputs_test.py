import keras
import numpy as np
import pytest

from keras_plasticity.layers import Dense
from keras_plasticity.layers import RecentInputs
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy


def _model(layer, source=keras.layers):
    return keras.Sequential(
        [keras.Input((3,)), layer, Dense(4, activation="relu"), Dense(1)]
    )


def test_remembers_the_last_examples_of_training():
    layer = RecentInputs(5)
    model = _model(layer)
    model.compile(ContinualBackprop(keras.optimizers.SGD(0.1)), "mse")
    x = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    examples, is_example = layer.recent()
    assert not to_numpy(is_example).any() and not to_numpy(examples).any()
    for start, stop in ((0, 2), (2, 3)):
        model.train_on_batch(x[start:stop], np.zeros((stop - start, 1)))
        model.predict(x, verbose=0)  # Is not remembered.
    examples, is_example = layer.recent()
    assert to_numpy(is_example).tolist() == [False] * 2 + [True] * 3
    np.testing.assert_array_equal(to_numpy(examples)[2:], x[:3])
    model.train_on_batch(x[3:], np.zeros((4, 1)))
    np.testing.assert_array_equal(to_numpy(layer.recent()[0]), x[2:])


def test_changes_nothing():
    layer = RecentInputs(5)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    for training in (False, True, None):
        np.testing.assert_array_equal(to_numpy(layer(x, training=training)), x)


def test_is_saved(tmp_path):
    layer = RecentInputs(2)
    model = _model(layer)
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
    model.train_on_batch(x, np.zeros((3, 1)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert loaded.num_examples == 2
    np.testing.assert_array_equal(to_numpy(loaded.recent()[0]), x[1:])


def test_integers():
    with pytest.raises(ValueError, match="inputs of dtype int32"):
        RecentInputs(2, dtype="int32")(np.ones((2, 3), "int32"))


def test_unknown_shape():
    with pytest.raises(ValueError, match="whose shape must be known"):
        RecentInputs(2)(keras.Input((None, 3)))


@pytest.mark.parametrize("number", [0, -1, 2.5, "a"])
def test_bad_number(number):
    with pytest.raises(ValueError, match="`num_examples` must be"):
        RecentInputs(number)
