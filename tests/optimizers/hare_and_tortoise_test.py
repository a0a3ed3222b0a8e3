import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.callbacks import EvaluateTortoise
from keras_plasticity.optimizers import L2
from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train


def _weights(model):
    return [to_numpy(v) for v in keras_plasticity.weights_of(model)]


def _hare(**kwargs):
    settings = {"decay_rate": 0.9, "period": 10**6, **kwargs}
    return HareAndTortoise(keras.optimizers.Adam(0.01), **settings)


def _mean(model, x, y):
    return np.mean((to_numpy(model(x)) - y) ** 2)


def test_period():
    model = make_plain_model()
    optimizer = _hare(period=3)
    model.compile(optimizer, "mse")
    x, y = make_data(4)
    for step in range(1, 8):
        model.train_on_batch(x, y)
        hare = _weights(model)
        with optimizer.tortoise():
            tortoise = _weights(model)
        for one, other in zip(hare, tortoise):
            assert np.array_equal(one, other) == (step % 3 == 0)


def test_the_first_tortoise_is_the_first_hare():
    model = make_plain_model()
    start = _weights(model)
    optimizer = _hare(decay_rate=0.75)
    train(model, optimizer, make_data(4))
    with optimizer.tortoise():
        tortoise = _weights(model)
    for first, hare, mean in zip(start, _weights(model), tortoise):
        expected = 0.75 * first + 0.25 * hare
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_reset_hare():
    model = make_plain_model()
    optimizer = _hare()
    train(model, optimizer, make_data(20))
    with optimizer.tortoise():
        tortoise = _weights(model)
    optimizer.reset_hare()
    state = [to_numpy(v) for v in optimizer.inner_optimizer.variables]
    for one, other in zip(_weights(model), tortoise):
        np.testing.assert_array_equal(one, other)
    # The two go on, each with memory of its own.
    model.fit(*make_data(20), batch_size=4, verbose=0)
    with optimizer.tortoise():
        for one, other in zip(_weights(model), tortoise):
            assert np.all(one != other)
    assert any(np.any(value) for value in state)


def test_the_hare_goes_on_where_it_was():
    x, y = make_data(40)
    models = make_plain_model(), make_plain_model()
    for is_looked_at, model in enumerate(models):
        optimizer = _hare()
        model.compile(optimizer, "mse")
        for epoch in range(3):
            model.fit(x, y, 4, shuffle=False, verbose=0)
            if is_looked_at:
                with pytest.raises(KeyError), optimizer.tortoise():
                    model.evaluate(x, y, verbose=0)
                    raise KeyError("Whatever happens within.")
    for one, other in zip(*map(_weights, models)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("outer", [lambda optimizer: optimizer, L2])
def test_evaluate_tortoise(outer):
    x, y = make_data(40)
    optimizer = _hare()
    model = make_plain_model()
    model.compile(outer(optimizer), "mse")
    history = model.fit(
        x,
        y,
        epochs=3,
        validation_data=(x, y),
        callbacks=[EvaluateTortoise()],
        verbose=0,
    ).history
    hare = _weights(model)
    with optimizer.tortoise():
        expected = _mean(model, x, y)
    assert abs(expected - _mean(model, x, y)) > 1e-4
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-5)
    loss = model.evaluate(x, y, callbacks=[EvaluateTortoise()], verbose=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for one, other in zip(_weights(model), hare):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_the_hare_comes_back_after_an_interrupted_evaluation(method):
    class Interrupt(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.begin = _weights(self.model)

        def on_train_batch_end(self, batch, logs=None):
            self.end = _weights(self.model)

    x, y = make_data(40)
    model = make_plain_model()
    model.compile(_hare(), "mse")
    model.fit(x, y, verbose=0)
    hare = _weights(model)
    tortoise, look = EvaluateTortoise(), Look()
    with pytest.raises(KeyboardInterrupt):
        model.evaluate(x, y, callbacks=[tortoise, Interrupt()], verbose=0)
    if method == "evaluate":
        model.evaluate(x, y, callbacks=[tortoise], verbose=0)
        expected = hare
    else:
        settings = {"validation_data": (x, y), "verbose": 0}
        model.fit(x, y, callbacks=[look, tortoise], **settings)
        expected = look.end
        for one, other in zip(look.begin, hare, strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(_weights(model), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluate_tortoise_without_one():
    model = make_plain_model()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="needs a model that is compiled with"):
        model.evaluate(*make_data(4), callbacks=[EvaluateTortoise()], verbose=0)


def test_statistics_of_normalization_are_the_hares():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    optimizer = _hare()
    train(model, optimizer, make_data(20))
    before = [to_numpy(v) for v in model.non_trainable_variables]
    with optimizer.tortoise():
        for variable, value in zip(model.non_trainable_variables, before):
            np.testing.assert_array_equal(to_numpy(variable), value)


@pytest.mark.parametrize("make", [make_plain_model, make_model])
def test_in_the_engine(make):
    x, y = make_data(24)

    class Stream:
        def __len__(self):
            return 2

        def task(self, index):
            return x, y

    class Evaluate(TaskCallback):
        losses = []

        def on_task_end(self, task, results):
            for learner in range(2):
                model = self.trainer.model(learner)
                losses = [_mean(model, x, y)]
                with model.optimizer.tortoise():
                    losses.append(_mean(model, x, y))
                self.losses.append(losses)

    def compiled(learner):
        model = make(seed=learner)
        model.compile(_hare(period=5), "mse")
        return model

    evaluate = Evaluate()
    OnlineTrainer(compiled, 2).fit(
        lambda learner: Stream(), batch_size=4, callbacks=[evaluate]
    )
    expected = []
    for learner in range(2):
        model = compiled(learner)
        for task in range(2):
            model.fit(x, y, 4, shuffle=False, verbose=0)
            losses = [_mean(model, x, y)]
            with model.optimizer.tortoise():
                losses.append(_mean(model, x, y))
            expected.append((task, learner, losses))
    expected = [losses for _, _, losses in sorted(expected)]
    np.testing.assert_allclose(evaluate.losses, expected, rtol=1e-4)
    assert all(abs(one - other) > 1e-6 for one, other in expected)


def test_not_built():
    optimizer = _hare()
    with pytest.raises(ValueError, match="no tortoise before the optimizer is"):
        optimizer.reset_hare()
    with pytest.raises(ValueError, match="no tortoise before the optimizer is"):
        with optimizer.tortoise():
            pass


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"decay_rate": 1}, r"`decay_rate` must be a number in \[0, 1\)"),
        ({"period": 0.5}, "`period` must be a positive integer"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HareAndTortoise(keras.optimizers.SGD(), **settings)
