"""Patches of Keras objects, each by itself: what broke if Keras has changed."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import graph
from keras_plasticity import keras_compat
from tests.helpers import make_data
from tests.helpers import make_plain_model
from tests.helpers import to_numpy


class _Doubled(keras.layers.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)

    def quantize(self, *args, **kwargs):
        raise NotImplementedError("of the new class")


def test_a_layer_of_another_class_computes_as_that_class():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3)
    model = keras.Model(inputs, layer(inputs))
    x, _ = make_data(5)
    before, weights = model.predict(x, verbose=0), layer.get_weights()
    keras_compat.change_class(layer, _Doubled)
    # A new function: the old one was compiled with the old class.
    model.make_predict_function(force=True)
    np.testing.assert_allclose(
        model.predict(x, verbose=0),
        2.0 * before,
        rtol=1e-5,
        err_msg="A model's graph does not call a layer by its class any more.",
    )
    for old, new in zip(weights, layer.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_layer_of_another_class_is_quantized_as_that_class():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    keras_compat.change_class(layer, _Doubled)
    keras_compat.rebind_quantize(layer)
    with pytest.raises(NotImplementedError, match="of the new class"):
        layer.quantize("int8")


def test_models_from_before_the_patch_refuse_quantization_too():
    model = make_plain_model()
    keras_plasticity.models.make_plastic(model)
    with pytest.raises(ValueError, match="'layer_0' cannot be quantized"):
        keras.Model.quantize.__wrapped__(model, "int8", filters="layer_0")


def test_make_plastic_changes_classes():
    model = make_plain_model()
    keras_plasticity.models.make_plastic(model)
    for layer in model.layers:
        assert type(layer) is keras_plasticity.layers.Dense


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Only JAX steps are stateless."
)
@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_gradients_are_transformed_within_the_context(kind):
    model = make_plain_model()
    optimizer = kind(0.1)
    model.compile(optimizer, "mse", run_eagerly=True)
    data = make_data(4)
    before = to_numpy(model.layers[0].kernel)
    with keras_compat.transform_gradients(
        optimizer, lambda grads: [0.0 * g for g in grads]
    ):
        model.train_on_batch(*data)
    np.testing.assert_array_equal(
        to_numpy(model.layers[0].kernel),
        before,
        err_msg="Keras' JAX step does not go through `stateless_apply` of the "
        "optimizer any more, so `after_backward` has no effect there.",
    )
    model.train_on_batch(*data)
    assert np.all(to_numpy(model.layers[0].kernel) != before)


def test_the_module_of_functional_models():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    config = keras.saving.serialize_keras_object(model)
    assert config["module"] == keras_compat.FUNCTIONAL_MODULE


def test_models_are_noted_when_they_are_compiled():
    part = keras.Sequential(
        [keras.Input((4,)), keras_plasticity.layers.Dense(3)]
    )
    model = keras.Sequential([keras.Input((4,)), part])
    optimizer = keras.optimizers.SGD()
    variables = model.trainable_variables
    assert graph.find_model(part.layers, variables, optimizer) is None
    model.compile(optimizer, "mse")
    assert graph.find_model(part.layers, variables, optimizer) is model
    # Keras would warn of a class that has a `compile` of its own.
    assert keras.models.clone_model(model).compiled


def test_models_with_a_graph():
    class OfOnesOwn(keras.Sequential):
        def call(self, inputs):
            return super().call(inputs)

    inputs = keras.Input((3,))
    layers = [keras.Input((3,)), keras.layers.Dense(2)]
    functional = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    for model, expected in (
        (keras.Sequential(layers), True),
        (keras.Sequential(layers[1:]), False),  # Not built.
        (OfOnesOwn(layers), False),
        (OfOnesOwn(layers[1:]), False),
        (functional, True),
        (layers[1], False),
    ):
        assert keras_compat.is_graph_model(model) == expected
