import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.layers import Dense
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.units.backward_pass import UNIT
from tests.gradients import loss_and_gradients
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import observed_means
from tests.helpers import to_numpy
from tests.helpers import train

_UNIT_STATISTICS = ("utility", "age", "mean_activation")


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "mixed_float16", "mixed_bfloat16"]
)
def test_statistics_are_float32(dtype):
    layer = Dense(3, dtype=dtype)
    layer.build((None, 5))
    assert layer.kernel.dtype == (
        "float16" if dtype == "float16" else "float32"
    )
    for name in _UNIT_STATISTICS:
        statistic = getattr(layer, name)
        assert tuple(statistic.shape) == (3,)
        assert keras.backend.standardize_dtype(statistic.dtype) == "float32"
        np.testing.assert_array_equal(to_numpy(statistic), 0.0)
    for variable in layer.statistics.weights:
        assert variable.dtype == "float32"
        assert variable.overwrite_with_gradient
        is_count = variable is layer.statistics.count
        assert tuple(variable.shape) == ((2,) if is_count else (5,))
    # The weights of the layer itself come first, as in `keras.layers.Dense`.
    assert [v.name for v in layer.trainable_variables[:2]] == ["kernel", "bias"]


def test_statistics_before_build():
    with pytest.raises(ValueError, match="once it is built"):
        _ = Dense(3, name="new").age


def test_serialization():
    layer = Dense(
        3,
        activation="relu",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer="l2",
        name="hidden",
    )
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == "keras_plasticity>Dense"
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is Dense
    assert twin.get_config() == layer.get_config()
    # A plain layer stays plain.
    plain = keras.layers.deserialize(
        keras.layers.serialize(keras.layers.Dense(3))
    )
    assert type(plain) is keras.layers.Dense


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (2, 3, 2, 5)], ids=str)
def test_computes_what_the_plain_layer_computes(shape):
    plain, plastic = keras.layers.Dense(3, "tanh"), Dense(3, activation="tanh")
    x = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    plain.build(shape)
    plastic.build(shape)
    plastic.kernel.assign(plain.kernel)
    for training in (False, True):
        np.testing.assert_array_equal(
            to_numpy(plastic(x, training=training)),
            to_numpy(plain(x, training=training)),
        )
    assert plastic.compute_output_shape(shape) == shape[:-1] + (3,)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_observed_statistics(shape, dtype):
    x = np.random.default_rng(0).normal(0.5, 1, shape).astype("float32")
    if dtype == "mixed_bfloat16":
        # Rounded beforehand, so that the layer receives these numbers. That it
        # rounds its inputs a compiler may leave out: XLA does so on a GPU.
        x = to_numpy(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    model = keras.Sequential([keras.Input(shape[1:]), Dense(2, dtype=dtype)])
    statistics = model.layers[0].statistics
    before = np.linspace(-1, 1, 5).astype("float32")
    shrinkage = np.linspace(0, 0.9, 5).astype("float32")
    statistics.running_mean.assign(UNIT * before)
    statistics.shrinkage.assign(UNIT * shrinkage)
    # A plain optimizer stores them too: nothing else is needed.
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(x, np.zeros(shape[:-1] + (2,), "float32"))
    rows = x.reshape(-1, 5).astype("float64")
    mean = rows.mean(axis=0)
    center = before + (1 - shrinkage) * (mean - before)
    expected = {
        "activation_mean": mean,
        "activation_magnitude": np.abs(rows).mean(axis=0),
        "activation_deviation": np.abs(rows - center).mean(axis=0),
        "firing": (rows > 0).mean(axis=0),
    }
    observed = observed_means(model.layers[0])
    assert set(observed) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            observed[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )
    np.testing.assert_array_equal(
        to_numpy(statistics.count), [UNIT * shape[0], UNIT]
    )
    for name in _UNIT_STATISTICS:
        np.testing.assert_array_equal(
            to_numpy(getattr(model.layers[0], name)), 0.0
        )


def test_gradients_are_those_of_the_plain_layer():
    data = make_data(8)
    loss = keras.losses.MeanSquaredError()
    plain = make_model(layer=keras.layers.Dense)
    plastic = make_model()
    _, expected = loss_and_gradients(plain, loss, *data)
    _, gradients = loss_and_gradients(plastic, loss, *data)
    by_path = {
        v.path.split("/", 1)[1]: to_numpy(g)
        for v, g in zip(plastic.trainable_variables, gradients)
    }
    for variable, gradient in zip(plain.trainable_variables, expected):
        np.testing.assert_allclose(
            by_path[variable.path.split("/", 1)[1]],
            to_numpy(gradient),
            rtol=1e-5,
            atol=1e-7,
        )


def test_statistics_are_left_alone_outside_training():
    model = make_model()
    train(model, ContinualBackprop(keras.optimizers.SGD(0.1)), make_data(8))
    before = [to_numpy(v) for v in model.variables]
    x, y = make_data(8, seed=5)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    model(x)
    for value, variable in zip(before, model.variables):
        np.testing.assert_array_equal(value, to_numpy(variable))


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_weights_file_of_a_plain_model(tmp_path):
    path = tmp_path / "plain.weights.h5"
    plain = make_model(layer=keras.layers.Dense)
    plain.save_weights(path)
    plastic = make_model(seed=5)
    train(
        plastic,
        ContinualBackprop(keras.optimizers.SGD(0.1), replacement_rate=0),
        make_data(8),
    )
    plastic.load_weights(path)
    assert_same_weights(plastic, plain)
    # What was known of other weights says nothing of these.
    for layer in plastic.layers:
        for name in _UNIT_STATISTICS:
            np.testing.assert_array_equal(to_numpy(getattr(layer, name)), 0.0)
        for variable in layer.statistics.variables:
            np.testing.assert_array_equal(to_numpy(variable), 0.0)


def test_weights_file_for_a_plain_model(tmp_path):
    path = tmp_path / "plastic.weights.h5"
    plastic = make_model()
    train(plastic, ContinualBackprop(keras.optimizers.SGD(0.1)), make_data(8))
    plastic.save_weights(path)
    plain = make_model(layer=keras.layers.Dense, seed=5)
    plain.load_weights(path)
    assert_same_weights(plain, plastic)


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_saving_keeps_statistics(file, tmp_path):
    model = make_model()
    # Trained without `compile`, so that the file holds no optimizer.
    wrapper = ContinualBackprop(
        keras.optimizers.SGD(0.1), replacement_rate=0, utility="overall"
    )
    wrapper.build(model.trainable_variables)
    loss = keras.losses.MeanSquaredError()
    for seed in range(2):
        _, gradients = loss_and_gradients(model, loss, *make_data(8, seed=seed))
        wrapper.apply(gradients, model.trainable_variables)
    if file == "model.keras":
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
    else:
        model.save_weights(tmp_path / file)
        loaded = make_model(seed=9)
        loaded.load_weights(tmp_path / file)
    assert_same_weights(loaded, model)
    for a, b in zip(loaded.layers, model.layers):
        assert type(a) is Dense
        for name in _UNIT_STATISTICS:
            np.testing.assert_array_equal(
                to_numpy(getattr(a, name)), to_numpy(getattr(b, name))
            )
        for v, w in zip(a.statistics.variables, b.statistics.variables):
            np.testing.assert_array_equal(to_numpy(v), to_numpy(w))
    assert np.all(to_numpy(loaded.layers[0].age) == 2)
    assert np.any(to_numpy(loaded.layers[0].utility) != 0)
