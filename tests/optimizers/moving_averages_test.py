"""Moving averages by Keras' optimizers, in models that have statistics.

Keras' own optimizers have no average of a statistic, and Keras trips over
that: see `OptimizerWrapper`.
"""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity import optimizers
from tests.helpers import make_data
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_WRAPPERS = {
    "L2": lambda inner: optimizers.L2(inner, 0.0),
    "UPGD": lambda inner: optimizers.UPGD(
        inner, protecting=False, decay=0.0, noise_stddev=0.0
    ),
    "UnitUPGD": lambda inner: optimizers.UnitUPGD(
        inner, protecting=False, decay=0.0, noise_stddev=0.0
    ),
    "HareAndTortoise": lambda inner: optimizers.HareAndTortoise(inner),
    "L2Init": lambda inner: optimizers.L2Init(inner, 0.0),
}


def _train(kinds, wrap, overwriting, before=(), make=keras.optimizers.SGD):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            *before,
            kinds.Dense(6, activation="relu"),
            kinds.Dense(3),
        ]
    )
    inner = make(
        0.05,
        use_ema=True,
        ema_momentum=0.6,
        ema_overwrite_frequency=3 if overwriting else None,
    )
    model.compile(wrap(inner), "mse")
    callbacks = []
    if not overwriting:
        # For the validation, and at the end of each epoch.
        callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    data = make_data(24)
    losses = model.fit(
        *data,
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        validation_data=data,
    ).history
    values = [
        to_numpy(weight)
        for layer in model.layers[-2:]
        for weight in (layer.kernel, layer.bias)
    ]
    return model, [*losses["loss"], *losses["val_loss"], *values]


@pytest.mark.parametrize("overwriting", [False, True])
@pytest.mark.parametrize("name", mostly_slow(_WRAPPERS, "L2"))
def test_averages_are_those_of_a_plain_model(name, overwriting):
    _, expected = _train(keras.layers, lambda inner: inner, overwriting)
    _, actual = _train(layers, _WRAPPERS[name], overwriting)
    for value, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)
    _, without = _train(
        keras.layers,
        lambda inner: inner,
        overwriting,
        make=lambda rate, **kwargs: keras.optimizers.SGD(
            rate, **{**kwargs, "ema_momentum": 0.0}
        ),
    )
    assert np.any(np.abs(without[-2] - expected[-2]) > 1e-4)


def _normalized(inner):
    keras.utils.set_random_seed(1)
    normalization = layers.OnlineNormalization()
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5),
            normalization,
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizers.L2(inner, 0.0), "mse")
    return model, normalization


@pytest.mark.parametrize("scaled", [False, True])
def test_statistics_are_stored(scaled):
    x, y = make_data(8)
    errors = []
    for use_ema in (False, True):
        inner = keras.optimizers.SGD(0.1, use_ema=use_ema)
        if scaled:
            inner = keras.optimizers.LossScaleOptimizer(inner, 2.0**4)
        model, normalization = _normalized(inner)
        for i in (0, 4):
            model.train_on_batch(x[i : i + 4], y[i : i + 4])
        errors.append(to_numpy(normalization.scale_error))
    np.testing.assert_allclose(*errors, rtol=1e-5)
    assert np.all(errors[0] != 0)


def test_a_step_that_loss_scaling_skips_stores_nothing():
    model, normalization = _normalized(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1, use_ema=True), 2.0**4
        )
    )
    x, y = make_data(8)
    errors = []
    for target in (y, np.full_like(y, np.inf), -y):
        model.train_on_batch(x, target)
        errors.append(to_numpy(normalization.scale_error))
    assert np.all(np.isfinite(errors[0])) and np.all(errors[0] != errors[2])
    np.testing.assert_array_equal(errors[0], errors[1])
