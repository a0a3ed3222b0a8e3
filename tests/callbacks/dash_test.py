"""The directions of DASH are computed by a program that is kept."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import callbacks
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_data
from tests.helpers import to_numpy


def _compiled(loss="mse"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(20, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", loss)
    return model


def _shrink(model, data, **kwargs):
    callbacks.DASH(batch_size=8, **kwargs).on_boundary(model, 0, 1, *data)
    return [to_numpy(variable) for variable in model.variables]


def _change_loss(model):
    model.compile("sgd", "mae")


def _freeze(model):
    model.layers[0].trainable = False


def _add_regularization(model):
    # Like any change of what `call` computes, it takes a new compilation.
    model.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    model.compile("sgd", "mse")


@pytest.mark.parametrize("change", [_change_loss, _freeze, _add_regularization])
def test_what_has_changed_is_seen(change):
    data = make_data(20)
    used, new = _compiled(), _compiled()
    before = used.get_weights()
    first = _shrink(used, data, min_factor=0.0)
    used.set_weights(before)
    for model in (used, new):
        change(model)
    expected = _shrink(new, data, min_factor=0.0)
    found = _shrink(used, data, min_factor=0.0)
    for actual, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-7)
    assert any(
        not np.allclose(a, b) for a, b in zip(first, expected, strict=True)
    )


def test_other_settings_and_weights():
    data, others = make_data(20), make_data(20, seed=1)
    used = _compiled()
    before = used.get_weights()
    _shrink(used, data)
    for kwargs in ({}, {"alpha": 0.9}, {"min_factor": 0.0}):
        new = _compiled()
        used.set_weights([0.5 * weight for weight in before])
        new.set_weights(used.get_weights())
        expected = _shrink(new, others, **kwargs)
        actual = _shrink(used, others, **kwargs)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch computes eagerly."
)
def test_it_is_compiled_once():
    traced = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return inputs

    model = keras.Sequential(
        [keras.Input((4,)), Counted(), keras.layers.Dense(3)]
    )
    model.compile("sgd", "mse")
    data = make_data(20)
    _shrink(model, data)
    traced.clear()
    for _ in range(3):
        _shrink(model, data)
    assert not traced


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_half_precision(policy):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu", dtype=policy),
            keras.layers.Dense(3, dtype=policy),
        ]
    )
    model.compile("sgd", "mse")
    _shrink(model, make_data(20))
    for variable in model.trainable_variables:
        assert variable.dtype == policy
        assert np.isfinite(to_numpy(ops.cast(variable, "float32"))).all()


class Reconstruction(keras.Model):
    """Learns without targets."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x, y, outputs, *arguments, training=True):
        return ops.mean(ops.square(outputs - x))


def test_without_targets():
    x, _ = make_data(20)

    def new():
        keras.utils.set_random_seed(0)
        model = Reconstruction()
        model(x[:1])
        model.compile("sgd")
        return model

    class Stream:
        def __len__(self):
            return 2

        def task(self, index):
            return x, None

    engine, fit = new(), new()
    OnlineTrainer(engine).fit(Stream(), 4, callbacks=[callbacks.DASH()])
    dash = callbacks.DASH((x, None))
    for _ in range(2):
        fit.fit(x, batch_size=4, shuffle=False, verbose=0, callbacks=[dash])
    without = new()
    OnlineTrainer(without).fit(Stream(), 4)
    for a, b, c in zip(*(m.get_weights() for m in (engine, fit, without))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(a - c).max() > 1e-4


@pytest.mark.parametrize("data", [(None, None), (None, np.ones((3, 1)))])
def test_data_without_inputs(data):
    with pytest.raises(ValueError, match=r"`data` must be .* a tuple \(x, y\)"):
        callbacks.DASH(data)


def test_the_model_is_not_kept():
    model = _compiled()
    _shrink(model, make_data(20))
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None
