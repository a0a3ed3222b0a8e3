"""Learners with settings of their own train by them, or are refused."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD
from keras.optimizers import Adam
from keras.optimizers import Lion
from keras.regularizers import L2

import keras_plasticity
from keras_plasticity import backend
from keras_plasticity import optimizers
from keras_plasticity.training import CheckpointError
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import online_trainer
from keras_plasticity.training import program_settings
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


def shifted_magnitude(outgoing_magnitude):
    return outgoing_magnitude + 1.0


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
    method=None,
    more=list,
    **compile_arguments,
):
    """A small model.

    Its optimizer is in a `ContinualBackprop` if `wrapper` is a dict of settings
    and in another wrapper if `method` makes one. `more` makes further layers.
    """
    keras.utils.set_random_seed(seed)
    optimizer = optimizer()
    if method is not None:
        optimizer = method(optimizer)
    layer = keras.layers.Dense
    if wrapper is not None or method is not None:
        layer = keras_plasticity.layers.Dense
    if wrapper is not None:
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
        *more(),
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


_MOMENTUM = partial(SGD, 0.05, momentum=0.9)

# What differs between two learners, and what the error says of it.
_IN_THE_PROGRAM = {
    "transfer_mean": (
        dict(wrapper=dict(transfer_mean=False)),
        dict(wrapper=dict(transfer_mean=True)),
        "optimizer.transfer_mean=False and True$",
    ),
    "reset_optimizer_state": (
        dict(wrapper=dict(reset_optimizer_state=True), optimizer=_MOMENTUM),
        dict(wrapper=dict(reset_optimizer_state=False), optimizer=_MOMENTUM),
        "optimizer.reset_optimizer_state=True and False$",
    ),
    "utility": (
        dict(wrapper=dict(utility="contribution")),
        dict(wrapper=dict(utility="adaptation")),
        "optimizer.utility='contribution' and 'adaptation'$",
    ),
    "function of a wrapper": (
        dict(wrapper=dict(utility=scaled_magnitude(1.0))),
        dict(wrapper=dict(utility=shifted_magnitude)),
        "optimizer.utility='utility' and 'shifted_magnitude'$",
    ),
    "initializer of new units": (
        dict(wrapper={}),
        dict(wrapper={}, initializer=keras.initializers.HeUniform),
        "kernel_initializer=HeNormal and HeUniform",
    ),
    "digits of a rate": (
        dict(wrapper=dict(replacement_rate=0.5)),
        dict(wrapper=dict(replacement_rate=1.2345678901234567e-11)),
        r"the shape or type of `.*count`, \(\(3, 2\), 'int32'\) and \(\(4, 2\)",
    ),
    "a momentum or none": (
        dict(wrapper={}, optimizer=partial(SGD, 0.1, momentum=0.0)),
        dict(wrapper={}, optimizer=partial(SGD, 0.1, momentum=0.9)),
        "optimizer.inner_optimizer.momentum=0.0 and 0.9$",
    ),
    "noise or none": (
        dict(method=partial(optimizers.ShrinkAndPerturb, noise_stddev=0.0)),
        dict(method=partial(optimizers.ShrinkAndPerturb, noise_stddev=0.1)),
        "optimizer.noise_stddev=0.0 and .*number",
    ),
    "clipping": (
        dict(),
        dict(optimizer=partial(SGD, 0.05, clipnorm=0.5)),
        "optimizer.clipnorm=None and 0.5$",
    ),
    "class of an optimizer": (
        dict(optimizer=_MOMENTUM),
        dict(optimizer=partial(Lion, 0.05)),
        "optimizer=SGD and Lion$",
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
    "dropout or none": (
        dict(rate=0.2),
        dict(rate=0.0),
        r"model.layers\[3\].rate=0.2 and 0.0$",
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
    "what a metric makes of its sums": (
        dict(metrics=[keras.metrics.F1Score("macro", 0.5)]),
        dict(metrics=[keras.metrics.F1Score("weighted", 0.5)]),
        r"metrics\[0\].average='macro' and 'weighted'$",
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


@pytest.mark.skipif(not _IS_JAX, reason="Others train one by one.")
def test_what_may_differ_is_not_named():
    activation = r"model.layers\[{}\].activation='relu' and 'tanh'"
    activations = "; ".join(activation.format(number) for number in (1, 2))
    with pytest.raises(ValueError, match=f"learners 0 and 1: {activations}$"):
        train_together(
            dict(activation="relu", rate=0.2, regularizer=L2(0.25)),
            dict(activation="tanh", rate=0.3, regularizer=L2(0.5)),
        )


def _clipped(**arguments):
    return dict(optimizer=partial(SGD, 0.05, **arguments))


# What learners of one program may differ in: their arguments of `build`.
_THEIR_OWN = {
    "many": [
        dict(
            optimizer=partial(SGD, 0.1, momentum=0.5, clipnorm=0.1),
            wrapper=dict(replacement_rate=0.5),
            rate=0.2,
            regularizer=L2(0.01),
            loss=keras.losses.Huber(0.5),
        ),
        dict(
            optimizer=partial(SGD, 0.01, momentum=0.9, clipnorm=0.5),
            wrapper=dict(replacement_rate=0.0, decay_rate=0.5),
            rate=0.4,
            regularizer=L2(0.0),
            loss=keras.losses.Huber(1.5),
        ),
    ],
    # Of continual backpropagation. The last rate has 17 digits.
    "replacement_rate": [
        dict(wrapper=dict(replacement_rate=rate))
        for rate in (0.1, 0.5, 0.0, 10**-0.9)
    ],
    "maturity_threshold": [
        dict(wrapper=dict(maturity_threshold=age)) for age in (2, 6, 0)
    ],
    "decay_rate": [
        dict(wrapper=dict(decay_rate=rate)) for rate in (0.99, 0.5, 0.0)
    ],
    "utility of a user": [
        dict(wrapper=dict(utility=scaled_magnitude(scale)))
        for scale in (1.0, -1.0)
    ],
    "ReDo": [
        dict(method=partial(optimizers.ReDo, period=3, threshold=threshold))
        for threshold in (0.1, 0.9, 0.0)
    ],
    "L2": [dict(method=partial(optimizers.L2, l2=l2)) for l2 in (0.5, 0.0)],
    "L2Init": [
        dict(method=partial(optimizers.L2Init, strength=strength))
        for strength in (0.5, 0.1, 0.0)
    ],
    "ShrinkAndPerturb": [
        dict(
            method=partial(
                optimizers.ShrinkAndPerturb, l2=l2, noise_stddev=noise, seed=0
            )
        )
        for l2, noise in ((0.1, 0.01), (0.0, 0.1))
    ],
    # Of Keras.
    "SGD": [
        dict(optimizer=partial(SGD, rate, momentum=momentum))
        for rate, momentum in ((0.1, 0.5), (0.01, 0.9), (0.0, 0.5))
    ],
    "SGD inside": [
        dict(wrapper={}, optimizer=partial(SGD, 0.1, momentum=momentum))
        for momentum in (0.5, 0.9)
    ],
    "Adam": [
        dict(optimizer=partial(Adam, 0.01, beta_1=b1, beta_2=b2, epsilon=e))
        for b1, b2, e in (
            (0.9, 0.999, 1e-7),
            (0.8, 0.999, 0.1),
            (0.0, 0.9, 1e-3),
        )
    ],
    "AdamW": [
        dict(
            optimizer=partial(keras.optimizers.AdamW, 0.01, weight_decay=decay)
        )
        for decay in (0.1, 0.5, 0.0)
    ],
    "RMSprop": [
        dict(
            optimizer=partial(
                keras.optimizers.RMSprop, 0.01, rho=rho, momentum=momentum
            )
        )
        for rho, momentum in ((0.9, 0.5), (0.5, 0.9))
    ],
    "Muon": [
        dict(
            optimizer=partial(
                keras.optimizers.Muon,
                0.01,
                adam_lr_ratio=ratio,
                momentum=momentum,
                adam_weight_decay=decay,
            )
        )
        for ratio, momentum, decay in ((0.1, 0.95, 0.1), (1.0, 0.5, 0.01))
    ],
    "clipnorm": [_clipped(clipnorm=bound) for bound in (0.5, 0.1)],
    "clipvalue": [_clipped(clipvalue=bound) for bound in (0.5, 0.01)],
    "global_clipnorm": [
        _clipped(global_clipnorm=bound) for bound in (0.5, 0.1)
    ],
    "moving average": [
        _clipped(use_ema=True, ema_momentum=momentum) for momentum in (0.9, 0.5)
    ],
    "gradient accumulation": [
        _clipped(gradient_accumulation_steps=steps) for steps in (2, 3)
    ],
    "schedule": [
        dict(optimizer=lambda rate=rate: SGD(_schedule(rate)))
        for rate in (0.9, 0.5)
    ],
    "dropout": [dict(rate=rate) for rate in (0.2, 0.7)],
    "regularizer": [dict(regularizer=L2(l2)) for l2 in (0.25, 0.5, 0.0)],
    "other layers": [
        dict(
            more=lambda noise=noise, slope=slope, momentum=momentum: [
                keras.layers.GaussianNoise(noise, seed=0),
                keras.layers.LeakyReLU(slope),
                keras.layers.BatchNormalization(momentum=momentum),
            ]
        )
        for noise, slope, momentum in ((0.1, 0.2, 0.9), (0.5, 0.0, 0.5))
    ],
    "loss": [dict(loss=keras.losses.Huber(delta)) for delta in (0.5, 1.5)],
    "loss_weights": [dict(loss_weights=[weight]) for weight in (1.0, 2.0)],
    "metric": [
        dict(metrics=[keras.metrics.BinaryAccuracy(threshold=threshold)])
        for threshold in (0.5, 0.2)
    ],
    "attribute": [dict(factor=factor) for factor in (1.0, 2.0)],
    "function": [dict(loss=power_loss(power)) for power in (1.5, 2.5)],
}


@pytest.mark.parametrize(
    "name", mostly_slow(_THEIR_OWN, "many", "replacement_rate")
)
def test_each_trains_by_its_own_settings(name):
    assert_each_trains_as_if_alone(*_THEIR_OWN[name])


@pytest.mark.slow
@pytest.mark.skipif(not _IS_JAX, reason="Others train one by one.")
def test_rates_that_need_more_and_more_room(monkeypatch):
    """Without branches the program depends on how many units may be due."""
    arguments = [
        dict(
            optimizer=partial(SGD, 0.05, momentum=momentum),
            wrapper=dict(replacement_rate=rate),
        )
        for rate, momentum in ((0.1, 0.5), (0.3, 0.9), (0.6, 0.5))
    ]
    _, expected = train_together(*arguments)
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    _, results = train_together(*arguments)
    np.testing.assert_allclose(results["loss"], expected["loss"], rtol=1e-5)


def _with_momentum(learner):
    momentum = (0.5, 0.9, 0.5)[learner]
    return build(
        rate=(0.2, 0.4, 0.2)[learner],
        optimizer=partial(SGD, 0.1 + 0.1 * learner, momentum=momentum),
        method=partial(optimizers.L2, l2=0.1 * learner),
    )


@pytest.fixture
def compilations(monkeypatch):
    """List of the programs that JAX compiles for many steps."""
    import jax

    compiled = []
    compile_lowered = jax.stages.Lowered.compile

    def compile_and_note(lowered, *args, **kwargs):
        compiled.append(compile_lowered(lowered, *args, **kwargs))
        return compiled[-1]

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    return compiled


@pytest.mark.skipif(not _IS_JAX, reason="Others have no common program.")
@pytest.mark.parametrize(
    "way", mostly_slow(["side by side", "in turn"], "side by side")
)
def test_it_is_compiled_once(way, compilations, monkeypatch):
    from keras_plasticity.training import jax_loop

    if way == "in turn":
        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", 0)
    results = OnlineTrainer(_with_momentum, 3).fit(Stream, batch_size=3)
    assert len(compilations) == 1
    if way == "side by side":
        return  # The numbers are tested elsewhere.
    for learner in range(3):
        alone = OnlineTrainer(_with_momentum(learner))
        expected = alone.fit(Stream(learner), batch_size=3)
        # The shapes are those of a single learner's program. Not all is equal:
        # the compiler computes with constants ahead.
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=5e-7
        )


@pytest.mark.parametrize("has_groups", [False, True])
def test_a_model_has_the_settings_of_its_learner(has_groups, monkeypatch):
    if has_groups:
        monkeypatch.setattr(online_trainer, "group_sizes", lambda *_: [2, 1])
    trainer = OnlineTrainer(_with_momentum, 3)
    trainer.fit(Stream, batch_size=3)
    for learner in (1, 0, 2, 1):
        settings = [
            program_settings.settings_of(model, with_values=True)
            for model in (trainer.model(learner), _with_momentum(learner))
        ]
        assert settings[0] == settings[1]


def test_models_that_are_edited():
    """Weights go to their learner, whichever model was lent in between."""
    trainer = OnlineTrainer(_with_momentum, 3)
    trainer.fit(Stream, batch_size=3, num_tasks=1)
    before = [trainer.model(learner).get_weights() for learner in range(3)]
    with trainer.edit(1) as model:
        model.set_weights([weight + 1 for weight in before[1]])
    for learner in (2, 1, 0):
        for weight, old in zip(
            trainer.model(learner).get_weights(), before[learner]
        ):
            np.testing.assert_array_equal(weight, old + (learner == 1))


def test_resumed_with_another_setting_of_a_learner(tmp_path):
    arguments = dict(batch_size=3, checkpoint=str(tmp_path / "run.npz"))
    OnlineTrainer(_with_momentum, 3).fit(Stream, num_tasks=1, **arguments)

    def build_another(learner):
        model = _with_momentum(learner)
        if learner == 1:
            model.optimizer.inner_optimizer.momentum = 0.8
        return model

    with pytest.raises(
        CheckpointError,
        match="learner 1 .*momentum=0.9 there and 0.8 here",
    ):
        OnlineTrainer(build_another, 3).fit(Stream, resume=True, **arguments)
    resumed = OnlineTrainer(_with_momentum, 3)
    results = resumed.fit(Stream, resume=True, **arguments)
    expected = OnlineTrainer(_with_momentum, 3).fit(Stream, batch_size=3)
    np.testing.assert_array_equal(results["loss"], expected["loss"])


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
    from keras_plasticity.training import jax_programs

    def build_branches(learner):
        inputs = keras.Input((4,))
        branches = [keras.layers.Dense(3)(inputs) for _ in range(2)]
        model = keras.Model(inputs, keras.layers.Add()(branches))
        model.compile(Adam(), loss="mse")
        return model

    monkeypatch.setattr(jax_programs, "differing_constants", None)
    # It would be called where settings do not tell enough, and fails.
    _, results = train_together(
        dict(wrapper={}, optimizer=partial(SGD, 0.1)),
        dict(wrapper={}, optimizer=partial(SGD, 0.2)),
    )
    assert results["loss"].shape == (2, 2)
    results = OnlineTrainer(build_branches, 2).fit(Stream, batch_size=3)
    assert results["loss"].shape == (2, 2)
