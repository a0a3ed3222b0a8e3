import keras
import numpy as np
import pytest

from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.layers import Injectable
from tests.callbacks.boundary_callback_test import injectable
from tests.helpers import make_data
from tests.helpers import to_numpy


def test_before_an_injection_it_is_its_layer():
    wrapped = injectable()
    plain = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "relu"),
            keras.layers.Dense(3),
        ]
    )
    plain.set_weights([to_numpy(v) for v in wrapped.trainable_variables])
    plain.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = make_data(20)
    for model in (wrapped, plain):
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        wrapped.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6
    )
    assert not any(
        to_numpy(v).any()
        for frozen in (wrapped.layers[-1].old, wrapped.layers[-1].new)
        for v in frozen.weights
    )


def test_it_has_the_name_and_weights_of_its_layer():
    model = injectable()
    layer = model.layers[-1]
    assert layer.name == "head"
    assert [v.path.split("/", 1)[1] for v in layer.weights] == [
        f"head/{name}/{kind}"
        for name in ("head", "head_old", "head_new")
        for kind in ("kernel", "bias")
    ]
    assert model.output_shape == (None, 3)


def test_its_frozen_layers_stay_frozen():
    model = injectable()
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert [v.path.split("/")[-2:] for v in model.trainable_variables] == [
        ["first", "kernel"],
        ["first", "bias"],
        ["head", "kernel"],
        ["head", "bias"],
    ]


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_it_is_saved(tmp_path, suffix):
    model = injectable()
    layer = model.layers[-1]
    rng = np.random.default_rng(0)
    for v in layer.weights:
        v.assign(rng.normal(size=v.shape))
    x, _ = make_data(5)
    expected = model.predict(x, verbose=0)
    path = str(tmp_path / f"model.{suffix}")
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    assert len(loaded.trainable_variables) == 4
    assert isinstance(loaded.layers[-1].layer, keras.layers.Dense)


def test_several_layers_may_be_one():
    head = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, "relu"),
            keras.layers.Dense(2),
        ]
    )
    layer = Injectable(head)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer(x)),
        keras.ops.convert_to_numpy(head(x)),
        rtol=1e-6,
    )
    assert len(layer.trainable_variables) == 4
    assert len(layer.weights) == 12


def test_its_frozen_layers_are_not_measured():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "relu", name="first"),
            Injectable(
                keras.Sequential(
                    [
                        keras.layers.Dense(5, "relu", name="second"),
                        keras.layers.Dense(3, name="last"),
                    ],
                    name="head",
                )
            ),
        ]
    )
    model.compile("sgd", "mse")
    monitor = PlasticityMonitor(make_data(9))
    model.fit(*make_data(9), verbose=0, callbacks=[monitor])
    measured = monitor.history[-1]
    assert measured["dead_units"].keys() == {"first", "second", "total"}
    assert measured["weight_change"].keys() == {
        *("first", "second", "last", "total")
    }


def test_no_regularizer_of_frozen_weights():
    layer = Injectable(keras.layers.Dense(3, kernel_regularizer="l2"))
    layer.build((None, 4))
    assert len(layer.losses) == 1


def test_bad_arguments():
    with pytest.raises(TypeError, match="`layer` must be a Keras layer"):
        Injectable(3)
    softmax = keras.layers.Dense(3, activation="softmax")
    for layer in (softmax, keras.Sequential([softmax])):
        with pytest.raises(ValueError, match="`layer` must be linear"):
            Injectable(layer)

    class Odd(keras.layers.Layer):
        def __init__(self, needed):
            super().__init__()

    with pytest.raises(ValueError, match="described by its config"):
        Injectable(Odd(3))
