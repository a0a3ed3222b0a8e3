"""Which non-linearity a layer's activations are taken behind."""

import keras
import pytest

from keras_plasticity.graph import activations
from keras_plasticity.graph import trace
from keras_plasticity.layers import OnlineNormalization


def functions(*layers, shape=(4,)):
    """The names of the non-linearities of the hidden layers of a model."""
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Dense(3, name="hidden"),
            *layers,
            keras.layers.Dense(2),
        ]
    )
    traced = trace.trace_model(model, whole_leaves=True)
    found = activations.find_activations(model, traced)
    return {each.name: each.function for each in found}


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.AlphaDropout(0.1),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.1),
        keras.layers.GaussianDropout(0.1),
        keras.layers.GaussianNoise(0.1),
        keras.layers.GroupNormalization(1),
        keras.layers.Identity(),
        keras.layers.LayerNormalization(),
        keras.layers.RMSNormalization(),
        keras.layers.SpatialDropout1D(0.1),
        OnlineNormalization(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_before_a_non_linearity(layer):
    found = functions(layer, keras.layers.Activation("tanh"), shape=(5, 4))
    assert found == {"hidden": "tanh"}


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (keras.layers.ELU(), "elu"),
        (keras.layers.LeakyReLU(), "leaky_relu"),
        (keras.layers.PReLU(), "prelu"),
        (keras.layers.ReLU(), "relu"),
        (keras.layers.Softmax(), "softmax"),
        (keras.layers.Activation("relu6"), "relu6"),
        (keras.layers.Rescaling(2.0), None),
        (keras.layers.Reshape((3, 1)), None),
    ],
    ids=lambda each: type(each).__name__,
)
def test_non_linearities(layer, function):
    assert functions(layer) == {"hidden": function}


def test_that_of_the_next_layer_is_its_own():
    layers = [
        keras.layers.Dense(3, "sigmoid", name="second"),
        keras.layers.ReLU(),
    ]
    assert functions(*layers) == {"hidden": None, "second": "sigmoid"}
