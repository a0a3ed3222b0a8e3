import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_data
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_MOMENTUM = 0.9


def _model(kind=layers.BatchNormalization, seed=0, **kwargs):
    """It normalizes its inputs, of which a test knows all moments."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            kind(momentum=_MOMENTUM, **kwargs),
            layers.Dense(6, activation="tanh"),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(seed)
    for dense in model.layers[1:]:
        dense.kernel.assign(rng.normal(0, 0.5, dense.kernel.shape))
    return model


def _moments(model):
    return [to_numpy(each) for each in model.layers[0].moving_moments()]


def _step(moments, x):
    """Moving moments after a batch, in float64."""
    x = x.astype("float64")
    batch = x.mean(axis=0), x.var(axis=0)
    return [
        _MOMENTUM * old + (1 - _MOMENTUM) * new
        for old, new in zip(moments, batch)
    ]


def _first():
    return [np.zeros(4), np.ones(4)]


def _assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs, accumulated",
    [({}, None), ({"scale": False, "center": False, "epsilon": 0.1}, 2)],
    ids=["default", "bare"],
)
def test_it_is_that_of_keras(kwargs, accumulated):
    x, y = make_data(24)
    results = []
    for kind in (keras.layers.BatchNormalization, layers.BatchNormalization):
        model = _model(kind, **kwargs)
        optimizer = keras.optimizers.Adam(
            0.01, gradient_accumulation_steps=accumulated
        )
        model.compile(optimizer, "mse")
        history = model.fit(x, y, 4, epochs=2, shuffle=False, verbose=0).history
        results.append(
            history["loss"]
            + [model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)]
            + [to_numpy(v) for v in keras_plasticity.weights_of(model)]
        )
        layer = model.layers[0]
        results[-1] += [to_numpy(layer.moving_mean)]
        results[-1] += [to_numpy(layer.moving_variance)]
    _assert_close(_moments(model), results[0][-2:])
    for one, other in zip(*results, strict=True):
        _assert_close(one, other)


@pytest.mark.slow
def test_axis_and_mask():
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (6, 3, 5)).astype("float32")
    mask = rng.random((6, 3)) > 0.3
    for kwargs, arguments in (({"axis": 1}, {}), ({}, {"mask": mask})):
        one = keras.layers.BatchNormalization(**kwargs)
        other = layers.BatchNormalization(**kwargs)
        for training in (True, True, False):
            results = [
                to_numpy(layer(x, training=training, **arguments))
                for layer in (one, other)
            ]
            _assert_close(*results)


def _inner(name):
    if name == "loss_scale":
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    steps = 2 if name == "accumulation" else None
    return keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)


@pytest.mark.parametrize(
    "inner", mostly_slow(["sgd", "loss_scale", "accumulation"], "accumulation")
)
def test_hare_and_tortoise(inner):
    """Against what the docstring says, in float64."""
    decay, period = 0.7, 3
    model = _model(center=False, scale=False)
    optimizer = HareAndTortoise(_inner(inner), decay_rate=decay, period=period)
    model.compile(optimizer, "mse")
    x, y = make_data(8 * 5)
    x = 3 * x + 1
    hare, tortoise, updates = _first(), _first(), 0
    for step in range(8):
        part = slice(5 * step, 5 * step + 5)
        model.train_on_batch(x[part], y[part])
        hare = _step(hare, x[part])
        if inner != "accumulation" or step % 2:
            updates += 1
            tortoise = [
                decay * old + (1 - decay) * new
                for old, new in zip(tortoise, hare)
            ]
            if updates % period == 0:
                hare = tortoise
        _assert_close(_moments(model), hare)
        with optimizer.tortoise():
            _assert_close(_moments(model), tortoise)
            normalized = to_numpy(model.layers[0](x))
        mean, variance = tortoise
        _assert_close(normalized, (x - mean) / np.sqrt(variance + 1e-3))
        _assert_close(_moments(model), hare)
    optimizer.reset_hare()
    _assert_close(_moments(model), tortoise)


def test_it_is_saved(tmp_path):
    x, y = make_data(20)
    model = _model()
    model.compile(HareAndTortoise(_inner("sgd"), 0.7, period=3), "mse")
    model.fit(x, y, 4, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, twin):
        one.fit(x, y, 4, shuffle=False, verbose=0)
    _assert_close(_moments(model), _moments(twin))
    with model.optimizer.tortoise(), twin.optimizer.tortoise():
        _assert_close(_moments(model), _moments(twin))


def test_in_the_engine():
    x, y = make_data(24)

    class Stream:
        def __len__(self):
            return 2

        def task(self, index):
            return x + index, y

    def compiled(learner):
        model = _model(seed=learner)
        model.compile(HareAndTortoise(_inner("sgd"), 0.7, period=5), "mse")
        return model

    trainer = OnlineTrainer(compiled, 2)
    trainer.fit(lambda learner: Stream(), batch_size=4)
    for learner in range(2):
        model = compiled(learner)
        for task in range(2):
            model.fit(*Stream().task(task), 4, shuffle=False, verbose=0)
        trained = trainer.model(learner)
        _assert_close(_moments(trained), _moments(model))
        with trained.optimizer.tortoise(), model.optimizer.tortoise():
            _assert_close(_moments(trained), _moments(model))


def test_units_before_it_are_replaced():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6),
            layers.BatchNormalization(),
            keras.layers.ReLU(),
            layers.Dense(3),
        ]
    )
    optimizer = ContinualBackprop(
        HareAndTortoise(keras.optimizers.SGD(0.1), period=2),
        replacement_rate=0.1,
        maturity_threshold=1,
    )
    model.compile(optimizer, "mse")
    x, y = make_data(40)
    model.fit(x, y, 4, verbose=0)
    assert sum(optimizer.num_replaced().values()) > 2
    assert np.all(np.isfinite(model.predict(x, verbose=0)))


def test_excluded():
    x, y = make_data(8)
    model = _model()
    optimizer = HareAndTortoise(
        _inner("sgd"), 0.5, period=1, exclude=(model.layers[0].name,)
    )
    model.compile(optimizer, "mse")
    model.train_on_batch(x, y)
    _assert_close(_moments(model), _step(_first(), x))


def test_a_new_layer_has_new_statistics():
    x, y = make_data(8)
    model = _model()
    model.compile("sgd", "mse")
    reset = keras_plasticity.callbacks.ResetLayers(
        layers=[model.layers[0].name], skip=0
    )
    model.fit(x, y, 4, verbose=0)
    assert np.abs(_moments(model)[0]).min() > 0
    model.fit(x, y, 8, verbose=0, callbacks=[reset])
    _assert_close(_moments(model), _step(_first(), x))


def test_renorm():
    with pytest.raises(ValueError, match="`renorm` must be `False`"):
        layers.BatchNormalization(renorm=True)
