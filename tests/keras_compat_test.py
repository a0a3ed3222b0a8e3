"""Patches of Keras objects, each by itself: what broke if Keras has changed."""

import sys
import threading
import types

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


_ATTENTION = {
    "multi-head": lambda: keras.layers.MultiHeadAttention(2, 3),
    "grouped": lambda: keras.layers.GroupQueryAttention(3, 2, 1),
    "plastic": lambda: keras_plasticity.layers.MultiHeadAttention(2, 3),
}


@pytest.fixture(params=_ATTENTION)
def attention(request, monkeypatch):
    """An attention layer as in Keras 3.16, and the module that calls `ops`.

    A tuple of a function that makes the layer, the module, and its backend.
    """
    make = _ATTENTION[request.param]
    kind = next(k for k in type(make()).__mro__ if k in keras_compat.ATTENTION)
    module = sys.modules[kind.__module__]
    backend = types.ModuleType("keras.src.backend.some_backend")
    backend.__getattr__ = vars(module)["backend"].__getattribute__
    backend.ops = types.ModuleType("keras.src.backend.some_backend.ops")
    backend.ops.einsum = lambda *args: "takes no symbolic tensors"
    monkeypatch.setattr(module, "backend", backend)
    return make, module, backend


def test_threads_that_trace_attention_leave_nothing_behind(attention):
    make, module, backend = attention
    entered, left = threading.Event(), threading.Event()
    seen = []

    def trace_too():
        with keras_compat.forget_calls(make()):
            entered.set()
            seen.append(module.backend.ops.einsum)
            left.wait(10)

    thread = threading.Thread(target=trace_too)
    with keras_compat.forget_calls(make()):
        thread.start()
        # It has to wait. If it did not, it would put back what it finds now.
        entered.wait(0.5)
        assert module.backend is not backend
    left.set()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [keras.ops.einsum]
    assert module.backend is backend


def test_attention_is_traced_inside_a_trace(attention):
    make, module, backend = attention
    with keras_compat.forget_calls(make()):
        outer = module.backend
        with keras_compat.forget_calls(make()):
            assert module.backend is outer
            assert outer.module is backend
        assert module.backend is outer
        with pytest.raises(KeyError), keras_compat.forget_calls(make()):
            raise KeyError
        assert module.backend is outer
    assert module.backend is backend


def test_threads_that_trace_other_layers_do_not_wait():
    entered = threading.Event()

    def trace_too():
        with keras_compat.forget_calls(keras.layers.Dense(3)):
            entered.set()

    with keras_compat.forget_calls(keras.layers.MultiHeadAttention(2, 3)):
        threading.Thread(target=trace_too).start()
        assert entered.wait(10)
