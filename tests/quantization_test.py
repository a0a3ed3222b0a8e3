"""Plastic layers are not quantized: they say so, whoever asks for it."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import layers
from tests.helpers import make_plain_model
from tests.helpers import to_numpy

_X = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")


def _sequential():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(7, name="plain"),
            layers.Dense(6, activation="relu", name="hidden"),
            layers.Dense(4, name="last"),
        ]
    )


def _nested():
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, name="plain")(inputs)
    return keras.Model(inputs, keras.Sequential([_sequential()])(x))


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.plain = keras.layers.Dense(7, name="plain")
        self.parts = [layers.Dense(6, name="hidden"), layers.Dense(4)]

    def call(self, x):
        for part in [self.plain, *self.parts]:
            x = part(x)
        return x


def _subclassed():
    model = _Subclassed()
    model(_X)
    return model


def _convolutional():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, name="plain"),
            keras.layers.Reshape((4, 4)),
            layers.Conv1D(3, 2, name="hidden"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )


def _made_plastic():
    model = make_plain_model(dims=(8, 6, 5, 4))
    plain = keras.layers.Dense(8, name="plain")
    model = keras.Sequential([keras.Input((8,)), plain, *model.layers])
    keras_plasticity.models.make_plastic(model)
    model.get_layer("layer_0").name = "hidden"
    return model


_MODELS = [_sequential, _nested, _subclassed, _convolutional, _made_plastic]
_MODES = {
    "int8": {"mode": "int8"},
    "int4": {"mode": "int4"},
    "float8": {"mode": "float8"},
    "config": {"config": keras.quantizers.Int8QuantizationConfig()},
    "gptq": {
        "config": keras.quantizers.GPTQConfig(dataset=["a"], tokenizer=str)
    },
    "type_check": {"mode": "int8", "type_check": False},
    "by_name": {"mode": "int8", "filters": "^plain|^hidden$"},
    "by_names": {"mode": "int8", "filters": ["^plain$", "hid.en"]},
    "by_function": {
        "mode": "int8",
        "filters": lambda layer: layer.name in ("plain", "hidden"),
    },
}


def _check_refused(make, arguments):
    model = make()
    variables = model.variables
    before = to_numpy(model(_X))
    with pytest.raises(ValueError, match="'.*' cannot be quantized.*filters"):
        model.quantize(**arguments)
    assert all(a is b for a, b in zip(model.variables, variables))
    np.testing.assert_array_equal(to_numpy(model(_X)), before)


@pytest.mark.parametrize("make", _MODELS)
def test_models_refuse(make):
    _check_refused(make, {"mode": "int8"})


@pytest.mark.parametrize("mode", _MODES)
def test_in_all_modes(mode):
    _check_refused(_sequential, _MODES[mode])


def test_the_layer_is_named():
    with pytest.raises(ValueError, match="Plastic layer 'hidden' cannot"):
        _sequential().quantize("int8")
    with pytest.raises(ValueError, match="Plastic layer 'last' cannot"):
        _sequential().quantize("int8", filters="last")


@pytest.mark.parametrize(
    "filters",
    ["plain", lambda layer: not isinstance(layer, layers.PlasticLayer)],
    ids=["name", "function"],
)
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.filterwarnings("ignore:__array__ implementation:")
def test_what_the_filters_choose_is_quantized(filters):
    model = _sequential()
    before = to_numpy(model(_X))
    model.quantize("int8", filters=filters)
    plain, hidden, last = model.layers
    assert plain.quantization_mode == "int8"
    assert hidden.quantization_mode is last.quantization_mode is None
    np.testing.assert_allclose(to_numpy(model(_X)), before, atol=0.1)
    # They are plastic as before.
    model.compile(
        keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.01), replacement_rate=0.5
        ),
        "mse",
    )
    model.fit(_X, np.zeros((5, 4)), verbose=0)
    assert to_numpy(hidden.age).tolist() == [1.0] * 6


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
def test_plain_models_are_quantized():
    model = make_plain_model()
    model.quantize("int8")
    assert {layer.quantization_mode for layer in model.layers} == {"int8"}


@pytest.mark.parametrize("policy", ["int8_from_float32", "float8_from_float32"])
@pytest.mark.parametrize("is_built", [True, False])
def test_dtype_policy(policy, is_built):
    layer = layers.Dense(3, name="dense")
    if is_built:
        layer.build((None, 8))
    with pytest.raises(ValueError, match="'dense' cannot be quantized"):
        layer.dtype_policy = policy
    assert layer.dtype_policy.name == "float32"
    assert tuple(layer(_X).shape) == (5, 3)
    layer.dtype_policy = "mixed_bfloat16"
    assert layer.compute_dtype == "bfloat16"
