"""Compiled steps of the engine on PyTorch and TensorFlow."""

import keras
import numpy as np
import pytest
from absl import logging

from keras_plasticity import layers
from keras_plasticity import optimizers
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import online_trainer
from tests.helpers import make_data
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.small_models import convolutional
from tests.small_models import dense
from tests.small_models import two_readers

_BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(
    _BACKEND == "jax", reason="JAX always compiles."
)


class Stream:
    """Two tasks whose examples are no multiple of the batch size."""

    def __init__(self, learner=0, classes=False):
        self.classes = classes
        self.learner = learner

    def __len__(self):
        return 2

    def task(self, index):
        x, y = make_data(31, seed=10 * self.learner + index)
        return x, y.argmax(1) if self.classes else y

    def test(self, index):
        return self.task(index)

    def order(self, index, epoch):
        return np.random.default_rng(epoch).permutation(31)


def continual_backprop(inner=None, **kwargs):
    kwargs = {"replacement_rate": 0.05, "maturity_threshold": 3, **kwargs}
    if inner is None:
        inner = keras.optimizers.SGD(0.05, momentum=0.9)
    return optimizers.ContinualBackprop(inner, seed=0, **kwargs)


def normalized():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            layers.Dense(5, activation="relu"),
            layers.Dense(3),
        ]
    )


CASES = {
    "plain": (dense, lambda: keras.optimizers.SGD(0.05)),
    "adam": (dense, lambda: keras.optimizers.Adam(0.01)),
    "continual": (dense, continual_backprop),
    "overall": (
        normalized,
        lambda: continual_backprop(utility="overall"),
    ),
    "convolutional": (
        convolutional,
        lambda: continual_backprop(transfer_mean=True),
    ),
    "two readers": (
        two_readers,
        lambda: continual_backprop(
            keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9),
                clipnorm=1.0,
            )
        ),
    ),
    "redo": (
        dense,
        lambda: optimizers.ReDo(
            keras.optimizers.SGD(0.05), threshold=0.6, period=3, seed=0
        ),
    ),
    "partial": (
        normalized,
        lambda: optimizers.CCBP(
            keras.optimizers.SGD(0.05), 0.3, period=3, seed=0
        ),
    ),
    "l2": (
        dense,
        lambda: optimizers.L2(continual_backprop(), 0.01),
    ),
}
# What PyTorch's programs leave to the eager loop, now and then.
AT_TIMES = {
    "hare": lambda: optimizers.HareAndTortoise(momentum(), 0.8, period=3),
    "weights": lambda: optimizers.SelectiveWeightReinitialization(
        momentum(), rule="proportional", factor=0.2, period=4, seed=0
    ),
    "gradients": lambda: optimizers.ReGraMa(
        momentum(), threshold=0.8, period=3, seed=0
    ),
    "silence": lambda: optimizers.SelfNormalizedResets(
        momentum(),
        min_threshold=3,
        max_threshold=50,
        initial_threshold=4,
        threshold_period=5,
        seed=0,
    ),
    "layer by layer": lambda: optimizers.CCBP(
        momentum(),
        0.3,
        period=3,
        utility="adaptable_contribution",
        seed=0,
        continuous=False,
    ),
    "noise": lambda: optimizers.ShrinkAndPerturb(
        momentum(), noise_stddev=0.1, noise_refresh_steps=5, seed=0
    ),
    "noise of units": lambda: optimizers.UnitUPGD(
        momentum(),
        scope="local",
        utility_decay=0.9,
        noise_stddev=0.5,
        noise_refresh_steps=6,
        seed=0,
    ),
    "noise outside": lambda: optimizers.ShrinkAndPerturbByInitializer(
        continual_backprop(), 0.99, 0.1, noise_refresh_steps=7, seed=0, period=2
    ),
    "projected": lambda: optimizers.NormalizeAndProject(
        momentum(), period=3, exclude=["layer_2"]
    ),
    "bounded": lambda: Bounded(continual_backprop()),
    "rank": lambda: optimizers.EffectiveRank(
        momentum(), rank_learning_rate=0.01, period=3
    ),
    "two methods": lambda: optimizers.HareAndTortoise(
        optimizers.SelectiveWeightReinitialization(
            keras.optimizers.Adam(0.01), factor=0.3, period=3, seed=0
        ),
        0.8,
        period=4,
    ),
}


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def build(case, learner=0, classes=False):
    make, optimizer = CASES[case]
    model = make()
    for variable in model.trainable_variables:
        if learner and len(variable.shape) > 1:
            variable.assign(variable.value * (1.0 + 0.1 * learner))
    model.compile(
        optimizer(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if classes
        else "mse",
        metrics=["accuracy"] if classes else [],
    )
    return model


def fit(trainer, classes=False):
    results = trainer.fit(
        lambda learner: Stream(learner, classes), batch_size=4, epochs=2
    )
    models = [trainer.model(i) for i in range(trainer.num_learners)]
    states = [
        [to_numpy(v) for v in model.variables + model.optimizer.variables]
        for model in models
    ]
    replaced = [
        sum(model.optimizer.num_replaced().values())
        for model in models
        if hasattr(model.optimizer, "num_replaced")
    ]
    return results, states, replaced


def assert_same(actual, expected):
    results, states, replaced = actual
    expected_results, expected_states, expected_replaced = expected
    assert list(results) == list(expected_results)
    for name, values in expected_results.items():
        np.testing.assert_allclose(results[name], values, rtol=1e-4, atol=1e-5)
    assert replaced == expected_replaced
    for state, expected_state in zip(states, expected_states, strict=True):
        for value, other in zip(state, expected_state, strict=True):
            np.testing.assert_allclose(value, other, rtol=2e-3, atol=1e-5)


@pytest.mark.skipif(
    _BACKEND != "torch", reason="With XLA other random numbers are drawn."
)
@pytest.mark.parametrize(
    ("case", "is_compiled"),
    [(case, False) for case in CASES]
    + [
        ("continual", True),
        pytest.param("convolutional", True, marks=pytest.mark.long),
    ],
)
def test_equals_the_eager_loop(case, is_compiled, monkeypatch):
    if not is_compiled:
        uncompiled(monkeypatch)

    def run(jit_compile):
        def build_learner(learner):
            return build(case, learner, classes=True)

        trainer = OnlineTrainer(build_learner, 2, jit_compile)
        return fit(trainer, classes=True), trainer

    expected, _ = run(False)
    actual, trainer = run(True)
    assert_same(actual, expected)
    # Partial resets replace no unit as a whole.
    assert case == "partial" or all(number > 1 for number in actual[2])
    # One program for each batch size: the learners share them.
    (group,) = trainer._learners.groups
    assert len(group.loop._programs) == 2


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="XLA's numbers.")
@pytest.mark.parametrize("case", mostly_slow(list(CASES), "continual"))
def test_equals_fit_with_xla(case):
    trainer = OnlineTrainer(lambda learner: build(case, learner), 1, True)
    results, states, _ = fit(trainer)
    model = build(case)
    model.compile(model.optimizer, "mse", jit_compile=True)
    stream = Stream()
    for index in range(2):
        for epoch in range(2):
            x, y = stream.task(index)
            order = stream.order(index, epoch)
            model.fit(
                x[order], y[order], batch_size=4, shuffle=False, verbose=0
            )
    expected = [
        to_numpy(v) for v in model.variables + model.optimizer.variables
    ]
    for value, other in zip(states[0], expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=2e-3, atol=1e-5)


def told(monkeypatch):
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    return messages


def fall_back(build_model, monkeypatch):
    """Whether results equal those of what is not compiled, and what is told."""
    expected = fit(OnlineTrainer(build_model, 2, jit_compile=False))
    messages = told(monkeypatch)
    monkeypatch.setattr(online_trainer, "_FEWEST_STEPS_TO_COMPILE", 0)
    actual = fit(OnlineTrainer(build_model, 2))
    assert_same(actual, expected)
    return messages


def with_dropout(learner):
    keras.utils.set_random_seed(learner)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu"),
            keras.layers.Dropout(0.5, seed=learner),
            layers.Dense(3),
        ]
    )
    model.compile(continual_backprop(), "mse")
    return model


def accumulating(learner):
    model = dense()
    inner = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    model.compile(continual_backprop(inner), "mse")
    return model


@keras.saving.register_keras_serializable(package="tests")
class OwnStep(keras.Sequential):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


def with_own_step(learner):
    model = OwnStep(dense().layers)
    model.compile(continual_backprop(), "mse")
    return model


@pytest.mark.skipif(_BACKEND != "torch", reason="XLA can compile these.")
@pytest.mark.parametrize(
    ("build_model", "reason"),
    [
        (with_dropout, "tracing tensor"),
        (accumulating, "when calling Cond.call"),
        (with_own_step, "it has a `train_step` of its own"),
    ],
)
def test_what_cannot_be_compiled_is_said_once(build_model, reason, monkeypatch):
    (message,) = fall_back(build_model, monkeypatch)
    assert "PyTorch trains this model by an eager loop" in message
    assert reason in message
    with pytest.raises(Exception, match=reason):
        fit(OnlineTrainer(build_model, 2, jit_compile=True))


@pytest.mark.skipif(_BACKEND != "torch", reason="Of PyTorch's compiler.")
def test_without_a_compiler(monkeypatch):
    from keras_plasticity.training import torch_program

    def fail(*args, **kwargs):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch_program, "compile_graph", fail)
    (message,) = fall_back(lambda i: build("continual", i), monkeypatch)
    assert "No working C++ compiler" in message


def uncompiled(monkeypatch):
    """What was traced is run as it is: the compiler takes seconds each time."""
    from keras_plasticity.training import torch_program

    monkeypatch.setattr(
        torch_program, "compile_graph", lambda graph, *args, **kwargs: graph
    )


def with_momentum(learner):
    model = dense()
    momentum = [0.9, 0.5][learner]
    model.compile(keras.optimizers.SGD(0.05, momentum=momentum), "mse")
    return model


class Bounded(optimizers.OptimizerWrapper):
    """Keeps all weights small, those of new units too."""

    def make_step(self, grads, variables):
        self.apply_inner(grads, variables)
        for variable in variables:
            if not self.is_statistic(variable):
                bound = keras.ops.clip(variable.value, -0.1, 0.1)
                variable.assign(bound)


class Previous(optimizers.OptimizerWrapper):
    """Keeps the weights of the step before."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.previous = self.add_copy(variables[0], "previous")

    def make_step(self, grads, variables):
        self.previous.assign(variables[0].value)
        self.apply_inner(grads, variables)


def with_previous(learner):
    model = dense()
    model.compile(Previous(keras.optimizers.SGD(0.05)), "mse")
    return model


@pytest.mark.skipif(_BACKEND != "torch", reason="Of PyTorch's programs.")
@pytest.mark.parametrize("build_model", [with_momentum, with_previous])
def test_what_programs_depend_on(build_model, monkeypatch):
    uncompiled(monkeypatch)
    assert not fall_back(build_model, monkeypatch)


@pytest.mark.skipif(_BACKEND != "torch", reason="Of PyTorch's programs.")
@pytest.mark.parametrize(
    ("case", "is_compiled"),
    [
        pytest.param(
            case, is_compiled, marks=() if is_quick else pytest.mark.slow
        )
        for case, is_compiled, is_quick in [
            *(
                (case, False, case in ("hare", "gradients"))
                for case in AT_TIMES
            ),
            ("two methods", True, False),
        ]
    ],
)
def test_what_happens_at_times_is_left_to_the_eager_loop(
    case, is_compiled, monkeypatch
):
    from keras_plasticity.training import torch_loop

    if not is_compiled:
        uncompiled(monkeypatch)

    def run(jit_compile):
        def build_learner(learner):
            # The effective rank is that of the last examples.
            inputs = [layers.RecentInputs(8)] if case == "rank" else []
            model = keras.Sequential(
                [keras.Input((4,)), *inputs, *dense().layers]
            )
            model.compile(
                AT_TIMES[case](),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            return model

        return fit(OnlineTrainer(build_learner, 2, jit_compile), classes=True)

    expected = run(False)
    steps = []
    train = torch_loop._train

    def count(*args):
        steps.append(args)
        train(*args)

    monkeypatch.setattr(torch_loop, "_train", count)
    assert_same(run(True), expected)
    # Two learners, two tasks, two epochs, eight steps each.
    assert 4 <= len(steps) <= 2 * 2 * 2 * 8 * 0.8


class AnyLayout(Stream):
    """Data of another layout in memory in the second task."""

    def task(self, index):
        x, y = super().task(index)
        return (np.asfortranarray(x) if index else x), y


@pytest.mark.parametrize("in_order", mostly_slow([True, False], False))
def test_the_layout_of_data_does_not_matter(in_order):
    def run(kind):
        class Source(kind):
            order = kind.order if in_order else None

        if not in_order:
            del Source.order
        trainer = OnlineTrainer(lambda i: build("plain"), 1, True)
        return trainer.fit(Source, batch_size=4)

    class Plain(Stream):
        pass

    expected, results = run(Plain), run(AnyLayout)
    for name, values in expected.items():
        np.testing.assert_allclose(results[name], values, rtol=1e-4)


@pytest.mark.skipif(_BACKEND != "torch", reason="Others trace as slowly.")
def test_interrupted_while_it_compiles(monkeypatch):
    from keras_plasticity.training import torch_loop

    uncompiled(monkeypatch)
    compiled = torch_loop.TorchLoop._compiled

    def interrupt(*args):
        monkeypatch.setattr(torch_loop.TorchLoop, "_compiled", compiled)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_loop.TorchLoop, "_compiled", interrupt)
    trainer = OnlineTrainer(lambda i: build("plain"), 1, True)
    assert trainer.fit(Stream) == {} and trainer.interrupted
    assert trainer.fit(Stream)["loss"].shape == (2, 1)


def test_a_resumed_run_is_compiled_as_before(tmp_path, monkeypatch):
    path = str(tmp_path / "checkpoint.npz")
    if _BACKEND == "torch":
        uncompiled(monkeypatch)

    def run(num_tasks, resume):
        trainer = OnlineTrainer(lambda i: build("continual"), 1)
        trainer.fit(
            Stream,
            batch_size=4,
            num_tasks=num_tasks,
            checkpoint=path,
            resume=resume,
        )
        (group,) = trainer._learners.groups
        return group.loop.jit_compile

    assert run(1, resume=False) is False
    monkeypatch.setattr(online_trainer, "_FEWEST_STEPS_TO_COMPILE", 0)
    assert run(2, resume=True) is False


@pytest.mark.skipif(_BACKEND != "torch", reason="Of PyTorch's programs.")
def test_frozen_later(monkeypatch):
    uncompiled(monkeypatch)

    def run(jit_compile):
        trainer = OnlineTrainer(lambda i: build("continual"), 1, jit_compile)
        trainer.fit(Stream, batch_size=4, num_tasks=1)
        model = trainer.model()
        for layer in model.layers[:-1]:
            layer.trainable = False
        before = to_numpy(model.layers[0].kernel)
        trainer.fit(Stream, batch_size=4, first_task=1, num_tasks=1)
        np.testing.assert_array_equal(before, to_numpy(model.layers[0].kernel))
        return [to_numpy(v) for v in model.variables]

    for value, other in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(value, other, rtol=2e-3, atol=1e-5)


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="Of XLA.")
def test_convolutions_on_a_cpu_are_not_for_xla(monkeypatch):
    (message,) = fall_back(lambda i: build("convolutional", i), monkeypatch)
    assert "without XLA, which has no fast convolutions on a CPU" in message


class Unsupported(keras.layers.Layer):
    """A layer with an operation that XLA does not know."""

    def call(self, x):
        import tensorflow as tf

        text = tf.strings.as_string(tf.stop_gradient(x))
        return x + 0.0 * tf.strings.to_number(text)


def with_unsupported(learner):
    keras.utils.set_random_seed(learner)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu"),
            layers.Dense(3),
            Unsupported(),
        ]
    )
    model.compile(continual_backprop(), "mse", jit_compile=False)
    return model


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="Of XLA.")
def test_an_operation_that_xla_refuses(monkeypatch):
    (message,) = fall_back(with_unsupported, monkeypatch)
    assert "without XLA, which could not compile it: Detected" in message
    with pytest.raises(Exception, match="unsupported operations"):
        fit(OnlineTrainer(with_unsupported, 2, jit_compile=True))


def test_a_short_run_is_not_compiled(monkeypatch):
    messages = told(monkeypatch)
    trainer = OnlineTrainer(lambda i: build("continual", i), 1)
    fit(trainer)
    (group,) = trainer._learners.groups
    assert group.loop.jit_compile is False and not messages


# Of the compiler itself.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(_BACKEND != "torch", reason="Elsewhere it always does.")
@pytest.mark.parametrize(
    "kind", mostly_slow(["continual", "redo"], "continual")
)
def test_fit_with_jit_compile(kind):
    x, y = make_data(40)
    trained = []
    for jit_compile in (False, True):
        model = build(kind)
        model.compile(model.optimizer, "mse", jit_compile=jit_compile)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        trained.append(model)
    eager, compiled = trained
    replaced = [m.optimizer.num_replaced() for m in trained]
    assert replaced[0] == replaced[1] and sum(replaced[0].values()) > 1
    for value, other in zip(compiled.variables, eager.variables):
        np.testing.assert_allclose(
            to_numpy(value), to_numpy(other), rtol=2e-3, atol=1e-5
        )


@pytest.mark.parametrize("value", [None, 1, "yes", np.nan, "True"])
def test_a_wrong_jit_compile(value):
    with pytest.raises(ValueError, match="`jit_compile` must be a boolean"):
        OnlineTrainer(build("plain"), jit_compile=value)
