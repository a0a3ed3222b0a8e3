"""What all callbacks that act between tasks have in common."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import callbacks
from keras_plasticity.training import CheckpointError
from keras_plasticity.training import OnlineTrainer
from tests.callbacks.task_callbacks_test import Weights
from tests.helpers import assert_same_weights
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.helpers import weights_of
from tests.training.online_trainer_test import ArrayStream
from tests.training.online_trainer_test import build


class Set(callbacks.BoundaryCallback):
    """Sets all kernels to the number of the task plus a half."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []

    def on_boundary(self, model, learner, task, x, y):
        self.calls.append((learner, task, x is None, y is None))
        kernels = [layer.kernel for layer in model.layers]
        for kernel in kernels:
            kernel.assign(ops.full(kernel.shape, task + 0.5))
        return kernels


class Look(keras.callbacks.Callback):
    """Notes one weight whenever an epoch's first step begins, and at its end.

    It comes after the callback under test.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def _note(self):
        kernel = to_numpy(self.model.layers[0].kernel)
        self.seen.append(float(kernel[0, 0]))

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self._note()

    def on_epoch_end(self, epoch, logs=None):
        self._note()


def still_model():
    """A model whose optimizer changes nothing."""
    model = make_model(layer=keras.layers.Dense)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def fit(model, callback, epochs=1, **kwargs):
    look = Look()
    x, y = ArrayStream().task(0)
    model.fit(
        x,
        y,
        batch_size=5,
        epochs=epochs,
        verbose=0,
        callbacks=[callback, look],
        **kwargs,
    )
    return look.seen


def test_in_fit_a_change_holds_from_the_second_call_on():
    model, callback = still_model(), Set()
    first = float(to_numpy(model.layers[0].kernel)[0, 0])
    assert fit(model, callback, 2) == [first] * 4
    assert fit(model, callback, 2) == [1.5] * 4
    assert fit(model, callback) == [2.5] * 2
    assert callback.calls == [(0, 1, True, True), (0, 2, True, True)]
    # The values are in the model, too.
    assert to_numpy(model.layers[2].kernel)[0, 0] == 2.5


def test_in_fit_a_change_holds_every_so_many_epochs():
    model, callback = still_model(), Set(epochs=2)
    first = float(to_numpy(model.layers[0].kernel)[0, 0])
    assert fit(model, callback, 5)[::2] == [first, first, 1.5, 1.5, 2.5]
    # The epochs of all calls are counted.
    assert fit(model, callback, 3)[::2] == [2.5, 3.5, 3.5]
    assert [call[1] for call in callback.calls] == [1, 2, 3]


def test_in_fit_it_goes_on_from_an_initial_epoch():
    model, callback = still_model(), Set(epochs=3)
    assert fit(model, callback, 7, initial_epoch=5)[-1] == 2.5
    assert [call[1] for call in callback.calls] == [2]


def test_in_fit_it_goes_on_from_a_state():
    model, callback = still_model(), Set(epochs=3)
    fit(model, callback, 4)
    other = Set(epochs=3)
    other.set_state(callback.get_state())
    fit(model, other, 3)
    assert [call[1] for call in other.calls] == [2]


@pytest.mark.parametrize(("skip", "tasks"), [(0, [0, 1]), (1, [1]), (2, [])])
def test_the_first_occasions_are_skipped(skip, tasks):
    callback = Set(skip=skip)
    for _ in range(2):
        fit(still_model(), callback)
    assert [call[1] for call in callback.calls] == tasks


def test_in_the_engine_it_changes_all_learners_and_sees_their_data():
    seen = []

    class Note(Set):
        def on_boundary(self, model, learner, task, x, y):
            seen.append((learner, task, x, y))
            return super().on_boundary(model, learner, task, x, y)

    weights = Weights()
    OnlineTrainer(
        lambda learner: build(seed=learner, method="bp"), num_learners=2
    ).fit(
        lambda learner: ArrayStream(seed=learner), callbacks=[Note(), weights]
    )
    assert [each[:2] for each in seen] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    for learner, task, x, y in seen:
        for actual, expected in zip(
            (x, y), ArrayStream(seed=learner).task(task)
        ):
            np.testing.assert_array_equal(actual, expected)
        kernel = weights.begin[task][learner][0]["layer_0/kernel"]
        assert (kernel == task + 0.5).all()


def test_epochs_are_not_for_the_engine():
    trainer = OnlineTrainer(build(method="bp"))
    with pytest.raises(ValueError, match="`epochs` is for `fit`.*epochs=3"):
        trainer.fit(ArrayStream(), callbacks=[Set(epochs=3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(skip=-1), "`skip` must be an integer of at least 0"),
        (dict(skip=True), "`skip` must be an integer"),
        (dict(epochs=0), "`epochs` must be a positive integer"),
        (dict(reset_optimizer=True), "`reset_optimizer` must be one of"),
        (dict(reset_optimizer="slots"), "must be one of.*'changed'.*=slots"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Set(**arguments)


@pytest.mark.parametrize("state", [None, 3, {}, {"begun": 1}])
def test_bad_states(state):
    with pytest.raises(ValueError, match="`state` must be what `get_state`"):
        Set().set_state(state)


def test_bad_counts():
    with pytest.raises(ValueError, match="`state` must be an integer"):
        Set().set_state({"begun": -1, "epochs_begun": 0})


def test_the_base_class_is_to_be_overridden():
    with pytest.raises(NotImplementedError):
        fit(still_model(), callbacks.BoundaryCallback(skip=0))


# --- the optimizer


def _optimizers():
    return {
        "sgd": keras.optimizers.SGD(0.1, momentum=0.9),
        "adam": keras.optimizers.Adam(0.01),
        "adagrad": keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.5),
        "adafactor": keras.optimizers.Adafactor(0.1),
        "ema": keras.optimizers.SGD(0.1, use_ema=True),
        "accumulation": keras.optimizers.Adam(
            0.1, gradient_accumulation_steps=2
        ),
        "schedule": keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
        ),
        "wrapped": keras_plasticity.optimizers.L2(
            keras.optimizers.Adam(0.01), 0.1
        ),
        "scaled": keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.01)
        ),
    }


class Nudge(callbacks.BoundaryCallback):
    """Changes one layer, and notes the optimizer's state before."""

    def on_boundary(self, model, learner, task, x, y):
        self.before = _state(model)
        kernel = model.layers[1].kernel
        kernel.assign(2.0 * kernel.value)
        return [kernel]


def _state(model):
    return {v.path: to_numpy(v).copy() for v in model.optimizer.variables}


class State(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.state = _state(self.model)
            self.kernel = to_numpy(self.model.layers[1].kernel).copy()


def _run_optimizer(kind, reset):
    """The state before an event, right after it, and of a new optimizer.

    And the weight that the event has changed.
    """
    x, y = ArrayStream().task(0)
    model = make_model(layer=keras.layers.Dense)
    model.compile(_optimizers()[kind], "mse")
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    nudge, state = Nudge(skip=0, reset_optimizer=reset), State()
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[nudge, state])
    assert state.state.keys() == nudge.before.keys()
    # One that has been built, but not used.
    new = make_model(layer=keras.layers.Dense)
    new.compile(_optimizers()[kind], "mse")
    new.optimizer.build(new.trainable_variables)
    return nudge.before, state.state, list(_state(new).values()), state.kernel


# Those that need no other treatment than the rest.
_SLOW = mostly_slow(
    [k for k in _optimizers() if k != "ema"], "adagrad", "adam", "wrapped"
)


@pytest.mark.parametrize("kind", _SLOW)
def test_the_optimizer_stays(kind):
    before, after, new, _ = _run_optimizer(kind, "none")
    assert any((a != b).any() for a, b in zip(before.values(), new))
    for key in before:
        np.testing.assert_array_equal(after[key], before[key], key)


@pytest.mark.parametrize("kind", _SLOW)
def test_all_of_the_optimizer_starts_anew(kind):
    before, after, new, _ = _run_optimizer(kind, "all")
    scaler = ("dynamic_scale", "step_counter")
    for (key, value), expected in zip(after.items(), new):
        if key.rpartition("/")[2] in scaler:
            expected = before[key]  # Of the wrapper.
        np.testing.assert_array_equal(value, expected, key)


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="`fit` cannot be called twice with averages (Keras 3.15.1)",
)
def test_an_average_starts_anew_as_the_weight():
    before, after, _, kernel = _run_optimizer("ema", "changed")
    changed = [k for k in after if (after[k] != before[k]).any()]
    [key] = changed
    assert "layer_1_kernel" in key
    np.testing.assert_array_equal(after[key], kernel)


@pytest.mark.parametrize("kind", _SLOW)
def test_the_slots_of_changed_weights_start_anew(kind):
    before, after, new, _ = _run_optimizer(kind, "changed")
    slots = [key for key in before if "layer_1_kernel" in key]
    assert slots
    for (key, value), fresh in zip(after.items(), new):
        expected = fresh if key in slots else before[key]
        np.testing.assert_array_equal(value, expected, key)


def test_a_learning_rate_that_was_set_stays():
    x, y = ArrayStream().task(0)
    model = make_model(layer=keras.layers.Dense)
    model.compile(keras.optimizers.Adam(0.5), "mse")
    model.fit(x, y, verbose=0)
    model.optimizer.learning_rate = 0.25
    model.fit(x, y, verbose=0, callbacks=[Nudge(skip=0, reset_optimizer="all")])
    assert float(to_numpy(model.optimizer.learning_rate)) == 0.25
    assert int(to_numpy(model.optimizer.iterations)) == 1


def test_an_optimizer_without_a_config():
    class Odd(keras.optimizers.SGD):
        def __init__(self, needed):
            super().__init__(needed)

    x, y = ArrayStream().task(0)
    model = make_model(layer=keras.layers.Dense)
    model.compile(Odd(0.1), "mse")
    model.fit(x, y, verbose=0)  # TensorFlow builds it in the first step.
    with pytest.raises(ValueError, match="config.*`Odd` does not work"):
        model.fit(
            x, y, verbose=0, callbacks=[Nudge(skip=0, reset_optimizer="all")]
        )


# --- all of them


def build_fresh(learner, task):
    return build(seed=100 * task + learner, method="bp")


def compiled_fresh(learner, task):
    return build(seed=100 * task + learner, method="cbp")


def injectable(seed=0, method="bp"):
    layers = keras.layers if method == "bp" else keras_plasticity.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(
                6,
                activation="relu",
                name="first",
                kernel_initializer=keras.initializers.HeUniform(seed),
            ),
            keras_plasticity.layers.Injectable(
                keras.layers.Dense(
                    3,
                    name="head",
                    kernel_initializer=keras.initializers.HeUniform(seed + 9),
                )
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


STREAM = ArrayStream(examples=12)


def _data(task):
    return STREAM.task(task)


# Name, the callback, and the models that it is for.
ALL = {
    "dash": (lambda: callbacks.DASH(_data, batch_size=5), "both"),
    "fire": (lambda: callbacks.FIRE(), "both"),
    "head": (lambda: callbacks.ResetLayers(seed=1), "both"),
    "injection": (lambda: callbacks.PlasticityInjection(seed=3), "injectable"),
    "layers": (
        lambda: callbacks.ResetLayers(["layer_1", "layer_2"], build_fresh),
        "both",
    ),
    "model": (lambda: callbacks.ResetModel(build_fresh), "bp"),
    "model of units": (lambda: callbacks.ResetModel(compiled_fresh), "cbp"),
    "sdp": (lambda: callbacks.SpectralDiversityPreservation(), "both"),
    "snp": (lambda: callbacks.ShrinkAndPerturbTasks(build_fresh), "both"),
    "zero": (lambda: callbacks.ZeroWeights(["layer_2"]), "both"),
}
CASES = [
    (name, method)
    for name, (_, kinds) in ALL.items()
    for method in ("bp", "cbp", "injectable")
    if method == kinds or (kinds == "both" and method != "injectable")
]


def make(method, seed=0):
    if method == "injectable":
        return injectable(seed)
    return build(seed=seed, method=method)


def states(model):
    return [
        to_numpy(v)
        for v in (
            *keras_plasticity.weights_of(model),
            *model.non_trainable_variables,
            *model.optimizer.variables,
        )
    ]


@pytest.mark.parametrize("name", ALL)
def test_it_returns_what_it_has_changed(name):
    make_callback, kinds = ALL[name]
    model = make("bp" if kinds == "both" else kinds)
    model.fit(*STREAM.task(0), batch_size=3, verbose=0)
    weights = keras_plasticity.weights_of(model)
    before = [to_numpy(v) for v in weights]
    changed = make_callback().on_boundary(model, 0, 1, *STREAM.task(1))
    expected = {
        v.path
        for v, value in zip(weights, before, strict=True)
        if (to_numpy(v) != value).any()
    }
    assert expected and expected <= {v.path for v in changed}


@pytest.mark.parametrize(
    ("name", "method"),
    mostly_slow(
        CASES, ("dash", "bp"), ("injection", "injectable"), ("fire", "cbp")
    ),
)
def test_fit_does_what_the_engine_does(name, method):
    make_callback, _ = ALL[name]
    in_fit, callback = make(method), make_callback()
    for task in range(len(STREAM)):
        in_fit.fit(
            *STREAM.task(task),
            batch_size=3,
            shuffle=False,
            verbose=0,
            callbacks=[callback],
        )
    in_engine = make(method)
    OnlineTrainer(in_engine).fit(
        STREAM, batch_size=3, callbacks=[make_callback()]
    )
    without = make(method)
    OnlineTrainer(without).fit(STREAM, batch_size=3)
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(states(in_engine), states(without))
        if a.size
    )
    for actual, expected in zip(states(in_fit), states(in_engine)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_run_that_resumes_has_the_same_results(name, method, tmp_path):
    path = str(tmp_path / "checkpoint.npz")
    make_callback, _ = ALL[name]

    def run(**kwargs):
        trainer = OnlineTrainer(
            lambda learner: make(method, learner), num_learners=2
        )
        trainer.fit(
            lambda learner: ArrayStream(examples=6, seed=learner),
            callbacks=[make_callback()],
            **kwargs,
        )
        return [states(trainer.model(learner)) for learner in range(2)]

    expected = run()
    for tasks in (1, 2):
        run(num_tasks=tasks, checkpoint=path, resume=tasks > 1)
    for actual, one in zip(run(checkpoint=path, resume=True), expected):
        for a, b in zip(actual, one):
            np.testing.assert_array_equal(a, b)


def test_another_setting_is_another_run(tmp_path):
    path = str(tmp_path / "checkpoint.npz")

    def run(callback, **kwargs):
        OnlineTrainer(build(method="bp")).fit(
            ArrayStream(), callbacks=[callback], checkpoint=path, **kwargs
        )

    run(callbacks.FIRE(5), num_tasks=1)
    with pytest.raises(CheckpointError, match="callbacks"):
        run(callbacks.FIRE(6), resume=True)
    run(callbacks.FIRE(5), resume=True)


def test_plain_and_plastic_models_change_alike():
    plain, plastic = make_model(layer=keras.layers.Dense), make_model()
    for model in (plain, plastic):
        model.compile(keras.optimizers.SGD(0.0), "mse")
    before = weights_of(plain)
    assert_same_weights(plain, plastic)
    for name in ("dash", "fire", "sdp", "zero"):
        for model in (plain, plastic):
            ALL[name][0]().on_boundary(model, 0, 1, None, None)
        assert_same_weights(plain, plastic, rtol=1e-5, atol=1e-7)
        assert any(
            (weights_of(plain)[key] != before[key]).any() for key in before
        )


def test_all_layers_of_a_name():
    """Such as the query projections of several blocks."""
    inputs = keras.Input((3,))
    queries = [keras.layers.Dense(3, name="query") for _ in range(2)]
    blocks = [keras.Sequential([keras.Input((3,)), q]) for q in queries]
    model = keras.Model(inputs, blocks[1](blocks[0](inputs)))
    callback = callbacks.ZeroWeights(["query"])
    layers = callback.layers_named(model, 0, ["query"])
    assert layers == queries
