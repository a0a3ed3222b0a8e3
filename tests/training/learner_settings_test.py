"""Learners with settings of their own train by them, or are refused."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD
from keras.optimizers import Adam
from keras.optimizers import Lion

import keras_plasticity
from keras_plasticity.training import OnlineTrainer
from tests.helpers import mostly_slow

_IS_JAX = keras.backend.backend() == "jax"

pytestmark = pytest.mark.usefixtures("fast_compilation")


class Stream:
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(2, 12, 4)).astype("float32")
        self.y = rng.normal(size=(2, 12, 3)).astype("float32")

    def __len__(self):
        return 2

    def task(self, index):
        return self.x[index], self.y[index]


class Scale(keras.layers.Layer):
    """A layer whose config does not tell its factor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor = 1.0

    def call(self, inputs):
        return self.factor * inputs


class PowerLoss:
    """An object without a config."""

    def __init__(self, power):
        self.power = power

    def __call__(self, y, prediction):
        return ops.mean(ops.abs(y - prediction) ** self.power, axis=-1)


def power_loss(power):
    """A function that has no other config than its name."""

    def loss(y, prediction):
        return ops.mean(ops.abs(y - prediction) ** power, axis=-1)

    return loss


def scaled_magnitude(scale):
    def utility(outgoing_magnitude):
        return scale * outgoing_magnitude

    return utility


def build(
    seed=0,
    activation="relu",
    rate=0.2,
    factor=None,
    frozen=None,
    regularizer=None,
    initializer=keras.initializers.HeNormal,
    dtype=None,
    optimizer=partial(SGD, 0.05),
    wrapper=None,
    **compile_arguments,
):
    """A model whose optimizer is wrapped if `wrapper` is a dict of settings."""
    keras.utils.set_random_seed(seed)
    optimizer = optimizer()
    layer = keras.layers.Dense
    if wrapper is not None:
        layer = keras_plasticity.layers.Dense
        settings = {"replacement_rate": 0.1, "maturity_threshold": 2, **wrapper}
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            optimizer, seed=seed, **settings
        )
    hidden = [
        layer(
            4,
            activation=activation,
            kernel_initializer=initializer(seed=seed + i),
            kernel_regularizer=regularizer,
            dtype=dtype,
        )
        for i in range(2)
    ]
    if frozen is not None:
        hidden[frozen].trainable = False
    layers = [
        keras.Input((4,)),
        *hidden,
        keras.layers.Dropout(rate, seed=seed),
        layer(3),
    ]
    if factor is not None:
        layers.append(Scale())
        layers[-1].factor = factor
    model = keras.Sequential(layers)
    model.compile(optimizer, **{"loss": "mse", **compile_arguments})
    return model


def train_together(*arguments):
    """Trains a learner with each of these arguments of `build`."""
    trainer = OnlineTrainer(
        lambda learner: build(learner, **arguments[learner]), len(arguments)
    )
    return trainer, trainer.fit(Stream, batch_size=3)


def assert_each_trains_as_if_alone(*arguments):
    together, results = train_together(*arguments)
    for learner, own in enumerate(arguments):
        alone = OnlineTrainer(build(learner, **own))
        expected = alone.fit(Stream(learner), batch_size=3)
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        for actual, weights in zip(
            together.model(learner).get_weights(), alone.model().get_weights()
        ):
            np.testing.assert_allclose(actual, weights, rtol=1e-3, atol=1e-5)


def _schedule(rate):
    return keras.optimizers.schedules.ExponentialDecay(0.1, 5, rate)


# What differs between two learners, and what the error says of it.
_IN_THE_PROGRAM = {
    "transfer_mean": (
        dict(wrapper=dict(transfer_mean=False)),
        dict(wrapper=dict(transfer_mean=True)),
        "optimizer.transfer_mean=False and True$",
    ),
    "reset_optimizer_state": (
        dict(
            wrapper=dict(reset_optimizer_state=True),
            optimizer=partial(SGD, 0.05, momentum=0.9),
        ),
        dict(
            wrapper=dict(reset_optimizer_state=False),
            optimizer=partial(SGD, 0.05, momentum=0.9),
        ),
        "optimizer.reset_optimizer_state=True and False$",
    ),
    "utility": (
        dict(wrapper=dict(utility="contribution")),
        dict(wrapper=dict(utility="adaptation")),
        "optimizer.utility='contribution' and 'adaptation'$",
    ),
    "function of a wrapper": (
        dict(wrapper=dict(utility=scaled_magnitude(1.0))),
        dict(wrapper=dict(utility=scaled_magnitude(-1.0))),
        "the code of a function$",
    ),
    "initializer of new units": (
        dict(wrapper={}),
        dict(wrapper={}, initializer=keras.initializers.HeUniform),
        "kernel_initializer=HeNormal and HeUniform",
    ),
    "wrapped optimizer": (
        dict(wrapper={}, optimizer=partial(SGD, 0.1, momentum=0.5)),
        dict(wrapper={}, optimizer=partial(SGD, 0.1, momentum=0.9)),
        "optimizer.inner_optimizer.momentum=0.5 and 0.9$",
    ),
    "argument of an optimizer": (
        dict(optimizer=partial(Adam, beta_1=0.9)),
        dict(optimizer=partial(Adam, beta_1=0.8)),
        "optimizer.beta_1=0.9 and 0.8$",
    ),
    "clipping": (
        dict(),
        dict(optimizer=partial(SGD, 0.05, clipnorm=0.5)),
        "optimizer.clipnorm=None and 0.5$",
    ),
    "class of an optimizer": (
        dict(optimizer=partial(SGD, 0.05, momentum=0.5)),
        dict(optimizer=partial(Lion, 0.05)),
        "optimizer=SGD and Lion$",
    ),
    "schedule": (
        dict(optimizer=lambda: SGD(_schedule(0.9))),
        dict(optimizer=lambda: SGD(_schedule(0.5))),
        "optimizer.learning_rate.decay_rate=0.9 and 0.5$",
    ),
    "schedule or not": (
        dict(optimizer=lambda: SGD(_schedule(0.9))),
        dict(),
        "optimizer.learning_rate=ExponentialDecay and 'a number'$",
    ),
    "activation": (
        dict(activation="relu"),
        dict(activation="tanh"),
        r"layers\[1\].activation='relu' and 'tanh'; .*layers\[2\].activation",
    ),
    "dropout": (
        dict(rate=0.2),
        dict(rate=0.3),
        r"model.layers\[3\].rate=0.2 and 0.3$",
    ),
    "regularizer": (
        dict(regularizer=keras.regularizers.L2(0.25)),
        dict(regularizer=keras.regularizers.L2(0.5)),
        "kernel_regularizer.l2=0.25 and 0.5",
    ),
    "dtype": (
        dict(dtype="float32"),
        dict(dtype="mixed_bfloat16"),
        "dtype.name='float32' and 'mixed_bfloat16'",
    ),
    "frozen layer": (
        dict(frozen=0),
        dict(frozen=1),
        r"\[1\].trainable=False and True; .*\[2\].trainable=True and False",
    ),
    "loss": (dict(loss="mse"), dict(loss="mae"), "loss='mse' and 'mae'$"),
    # Keras leaves it out of the config.
    "argument of a loss": (
        dict(loss=keras.losses.Huber(0.5)),
        dict(loss=keras.losses.Huber(1.5)),
        "what configs do not show",
    ),
    "function": (
        dict(loss=power_loss(2)),
        dict(loss=power_loss(3)),
        "the code of a function$",
    ),
    "object without a config": (
        dict(loss=PowerLoss(2)),
        dict(loss=PowerLoss(3)),
        "what configs do not show",
    ),
    "loss_weights": (
        dict(loss_weights=[1.0]),
        dict(loss_weights=[2.0]),
        r"loss_weights\[0\]=1.0 and 2.0$",
    ),
    "metric": (
        dict(metrics=[keras.metrics.BinaryAccuracy(threshold=0.5)]),
        dict(metrics=[keras.metrics.BinaryAccuracy(threshold=0.2)]),
        r"metrics\[0\].threshold=0.5 and 0.2$",
    ),
    "what a metric makes of its sums": (
        dict(metrics=[keras.metrics.F1Score("macro", 0.5)]),
        dict(metrics=[keras.metrics.F1Score("weighted", 0.5)]),
        r"metrics\[0\].average='macro' and 'weighted'$",
    ),
    "attribute": (
        dict(factor=1.0),
        dict(factor=2.0),
        "what configs do not show",
    ),
}


@pytest.mark.skipif(not _IS_JAX, reason="Others train one by one.")
@pytest.mark.parametrize(
    ("first", "other", "message"),
    _IN_THE_PROGRAM.values(),
    ids=_IN_THE_PROGRAM.keys(),
)
def test_what_is_in_the_program_must_not_differ(first, other, message):
    with pytest.raises(
        ValueError, match=f"architecture and settings.* 0 and 1: .*{message}"
    ):
        train_together(first, other)


@pytest.mark.skipif(not _IS_JAX, reason="Others train one by one.")
def test_the_learner_that_differs_is_named():
    same = dict(wrapper=dict(transfer_mean=False))
    with pytest.raises(
        ValueError, match="learners 0 and 2: optimizer.transfer_mean=False an"
    ):
        train_together(same, same, dict(wrapper=dict(transfer_mean=True)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("replacement_rate", (0.1, 0.5, 0.0)),
        ("maturity_threshold", (2, 6, 0)),
        ("decay_rate", (0.99, 0.5, 0.0)),
    ],
)
def test_each_trains_by_its_own_hyperparameter(name, values):
    # They are state, like a learning rate.
    assert_each_trains_as_if_alone(
        *(dict(wrapper={name: value}) for value in values)
    )


@pytest.mark.skipif(_IS_JAX, reason="JAX refuses them.")
def test_each_trains_by_its_own_settings():
    assert_each_trains_as_if_alone(
        dict(wrapper=dict(replacement_rate=0.5)),
        dict(wrapper=dict(replacement_rate=0.0), loss="mae", rate=0.0),
    )


@pytest.mark.parametrize("kind", mostly_slow([SGD, Adam], SGD))
def test_each_trains_by_its_own_learning_rate(kind):
    assert_each_trains_as_if_alone(
        *(
            dict(optimizer=partial(kind, rate), wrapper={})
            for rate in (0.1, 0.01, 0.0)
        )
    )


class Subclassed(keras.Model):
    """A model without a config."""

    def __init__(self, learner):
        super().__init__()
        self.hidden = keras_plasticity.layers.Dense(4, activation="relu")
        self.dropout = keras.layers.Dropout(0.3, seed=learner)
        self.head = keras_plasticity.layers.Dense(3)
        for layer in (self.hidden, self.head):
            layer.build((None, 4))
        self.compile(
            keras_plasticity.optimizers.ContinualBackprop(Adam(), seed=learner),
            loss=PowerLoss(2),
        )

    def call(self, x):
        return self.head(self.dropout(self.hidden(x)))


def build_functional(learner):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation=lambda x: ops.sin(x))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(2.0 * x))
    model.compile(SGD(0.1), loss=power_loss(2))
    return model


_INITIALIZERS = (keras.initializers.HeNormal, keras.initializers.Orthogonal)

_THE_SAME_PROGRAM = {
    "seeds": lambda i: build(i, wrapper={}),
    "functions": lambda i: build(
        i, wrapper=dict(utility=scaled_magnitude(2.0)), loss=power_loss(2)
    ),
    "attributes": lambda i: build(i, factor=2.0),
    "names": build_functional,
    "no configs": Subclassed,
    "initializers": lambda i: build(i, initializer=_INITIALIZERS[i]),
    "initial scale of the loss": lambda i: build(
        i,
        optimizer=lambda: keras.optimizers.LossScaleOptimizer(
            SGD(0.05), initial_scale=2.0 ** (10 + i)
        ),
    ),
}


@pytest.mark.skipif(not _IS_JAX, reason="Others have no common program.")
@pytest.mark.parametrize(
    "build_one", _THE_SAME_PROGRAM.values(), ids=_THE_SAME_PROGRAM.keys()
)
def test_the_same_program_trains_all(build_one):
    results = OnlineTrainer(build_one, 2).fit(Stream, batch_size=3)
    assert np.isfinite(results["loss"]).all()


@pytest.mark.skipif(not _IS_JAX, reason="Others have no common program.")
def test_settings_of_keras_are_compared_without_their_programs(monkeypatch):
    from keras_plasticity.training import jax_loop

    def build_branches(learner):
        inputs = keras.Input((4,))
        branches = [keras.layers.Dense(3)(inputs) for _ in range(2)]
        model = keras.Model(inputs, keras.layers.Add()(branches))
        model.compile(Adam(), loss="mse")
        return model

    monkeypatch.setattr(jax_loop, "_program", None)
    # It would be called where settings do not tell enough, and fails.
    _, results = train_together(
        dict(wrapper={}, optimizer=partial(SGD, 0.1)),
        dict(wrapper={}, optimizer=partial(SGD, 0.2)),
    )
    assert results["loss"].shape == (2, 2)
    results = OnlineTrainer(build_branches, 2).fit(Stream, batch_size=3)
    assert results["loss"].shape == (2, 2)
