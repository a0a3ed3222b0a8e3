"""A learner that diverges: what is said of it, and what it does to others."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import finite
from keras_plasticity.training import online_trainer
from keras_plasticity.training.learner_groups import group_sizes
from keras_plasticity.training.tasks import TaskData
from tests.helpers import make_model
from tests.helpers import mostly_slow

_NAN, _INF = float("nan"), float("inf")
_DIMS = (4, 6, 5, 3)
_TASKS = 4
_IS_JAX = keras.backend.backend() == "jax"
# What happens to each learner, and in which task.
_DAMAGES = [None, ("x", 1), ("y", 2), ("gradient", 1), ("weights", 3), None]
if keras.backend.backend() == "tensorflow":
    # Which compiles for each learner.
    _DAMAGES = [None, ("x", 2), ("weights", 1), None]
_HEALTHY = [i for i, damage in enumerate(_DAMAGES) if damage is None]


class _Stream:
    """Labels are positive, for `_loss`."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(0, 1, (_TASKS, 10, _DIMS[0])).astype("float32")
        y = np.abs(rng.normal(0, 1, (_TASKS, 10, _DIMS[-1])))
        self.y = 0.1 + y.astype("float32")

    def __len__(self):
        return _TASKS

    def task(self, index):
        return self.x[index], self.y[index]


def _loss(y, p):
    """A loss that is finite at a label of 0, where its gradient is not."""
    return ops.mean(ops.square(y - p)) + ops.mean(
        ops.sqrt(y * (ops.square(p) + 1.0))
    )


def _optimizer(method, seed):
    inner = keras.optimizers.Adam(0.01)
    if method == "redo":
        return keras_plasticity.optimizers.ReDo(
            inner, threshold=0.8, period=3, seed=seed
        )
    if method == "snr":
        return keras_plasticity.optimizers.SelfNormalizedResets(
            inner,
            min_threshold=1,
            max_threshold=50,
            initial_threshold=4,
            threshold_period=5,
            seed=seed,
        )
    return keras_plasticity.optimizers.ContinualBackprop(
        inner,
        replacement_rate=0.1,
        maturity_threshold=2,
        utility="overall",
        seed=seed,
    )


def _build(learner, method="cbp"):
    model = make_model(
        _DIMS,
        activation="tanh",
        seed=learner,
        kernel_initializer=keras.initializers.HeNormal(learner),
    )
    model.compile(_optimizer(method, learner), _loss)
    return model


class _DamageWeights(TaskCallback):
    def on_task_begin(self, task, x, y):
        for learner, damage in enumerate(_DAMAGES):
            if damage == ("weights", task):
                with self.trainer.edit(learner) as model:
                    kernel = model.layers[1].kernel
                    kernel.assign(np.full(kernel.shape, _INF))


def _streams(damaged):
    streams = [_Stream(seed) for seed in range(len(_DAMAGES))]
    for stream, damage in zip(streams, _DAMAGES):
        what, task = damage or (None, 0)
        if damaged and what == "x":
            stream.x[task, 5] = _NAN
        if damaged and what == "y":
            stream.y[task, 3, 1] = _INF
        if damaged and what == "gradient":
            stream.y[task, -1, 2] = 0.0
    return streams


def _run(trainer, streams, callbacks=()):
    """The results, all variables, and the units replaced of the healthy."""
    results = trainer.fit(
        streams.__getitem__,
        batch_size=2,
        on_nan="continue",
        callbacks=list(callbacks),
    )
    state = trainer._learners.get_state()
    replaced = [
        trainer.model(learner).optimizer.num_replaced() for learner in _HEALTHY
    ]
    return results, state, replaced


# How learners train, and whether by groups.
_WAYS = ["plain", "compiled"]
if _IS_JAX:
    _WAYS = ["side by side", "in turn", "in groups"]


@pytest.fixture
def jit_compile(request, monkeypatch):
    if _IS_JAX:
        from keras_plasticity.training import jax_loop
        from keras_plasticity.training import program_settings

        # To compare the programs of all learners takes long.
        monkeypatch.setattr(
            program_settings, "surely_same_program", lambda *args: True
        )
        if request.param == "in turn":
            monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", 0)
        if request.param == "in groups":
            monkeypatch.setattr(
                online_trainer,
                "group_sizes",
                lambda number, each, active, free: group_sizes(
                    number, each, active, number * each + 3 * active
                ),
            )
    return request.param == "compiled" or _IS_JAX


_CASES = [("cbp", way) for way in _WAYS]
_CASES += [(method, _WAYS[0]) for method in ("redo", "snr")]


@pytest.mark.parametrize(
    ("method", "jit_compile"),
    mostly_slow(_CASES, ("cbp", _WAYS[0]), ("cbp", "in turn")),
    indirect=["jit_compile"],
)
def test_other_learners_are_untouched_bit_for_bit(method, jit_compile):
    trainer = OnlineTrainer(
        lambda learner: _build(learner, method), len(_DAMAGES), jit_compile
    )
    clean = _streams(damaged=False)
    trainer.fit(clean.__getitem__, batch_size=2, num_tasks=1)
    start = trainer._learners.get_state()
    expected, state, replaced = _run(trainer, clean)
    trainer._learners.set_state(start)
    results, new_state, now_replaced = _run(
        trainer, _streams(damaged=True), [_DamageWeights()]
    )
    for learner, damage in enumerate(_DAMAGES):
        what, task = damage or (None, _TASKS)
        # The gradient is that of the task's last update.
        first = task + (what == "gradient")
        loss = results["loss"][:, learner]
        is_finite = np.isfinite(loss)
        assert is_finite[:first].all() and not is_finite[first:].any()
        same = loss == expected["loss"][:, learner]
        assert same[:task].all() and not same[task:].any()
    assert len(state) == len(new_state) > 20
    for learner in _HEALTHY:
        for before, after in zip(state, new_state):
            assert before[learner].tobytes() == after[learner].tobytes()
    assert replaced == now_replaced
    assert all(number for each in replaced for number in each.values())


@pytest.mark.parametrize(
    ("layer", "name", "value", "place"),
    [
        (0, "kernel", _NAN, "kernel of layer 'layer_0'"),
        (1, "bias", _INF, "bias of layer 'layer_1'"),
        (2, "kernel", -_INF, "kernel of layer 'layer_2'"),
        (0, "utility", _NAN, "utility of layer 'layer_0'"),
        (1, "age", _INF, "age of layer 'layer_1'"),
    ],
)
def test_the_first_that_is_not_finite_is_named(layer, name, value, place):
    models = [make_model() for _ in range(4)]
    for model in models[1:3]:
        variable = getattr(model.layers[layer], name)
        variable.assign(np.full(variable.shape, value))
        # Those after it are, too.
        model.layers[2].bias.assign(np.full((3,), _NAN))
    with pytest.raises(FloatingPointError) as error:
        _check([1.0, _NAN, _INF, _NAN], models)
    message = str(error.value)
    assert "in task 7 for learners [1, 2, 3]. " in message
    assert f"in the {place} for learners [1, 2]; none for " in message
    assert "none for learners [3]. Use" in message
    assert error.value.results["loss"].shape == (2, 4)


def _check(losses, models):
    data = (np.ones((4, 5, 4), "float32"), np.ones((4, 5, 3), "float32"))
    results = [{"loss": np.ones(4)}, {"loss": np.asarray(losses)}]
    finite.check_finite(7, results, TaskData(data, 1), models.__getitem__)


def test_where_all_losses_are_finite_no_model_is_asked_for():
    _check([1.0, 2.0, 3.0, 4.0], [])


class _Untraceable(keras.Model):
    """The layer that is called first was made last."""

    def __init__(self):
        super().__init__()
        self.last = keras.layers.Dense(2, name="last")
        self.first = keras.layers.Dense(2, name="first")

    def call(self, x):
        x = self.first(x)
        return self.last(x if ops.convert_to_numpy(x)[0, 0] < 9 else -x)


def _branches():
    inputs = keras.Input((2,))
    early = keras.layers.Dense(2, name="early")
    late = keras.layers.Dense(2, name="late")
    return keras.Model(inputs, late(keras.layers.ReLU()(early(inputs))))


def _nested():
    inner = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="early")]
    )
    return keras.Sequential(
        [keras.Input((2,)), inner, keras.layers.Dense(2, name="late")]
    )


@pytest.mark.parametrize("build", [_branches, _nested])
def test_layers_are_in_the_order_of_their_calls(build):
    model = build()
    for weight in model.weights:
        weight.assign(np.full(weight.shape, _NAN))
    with pytest.raises(FloatingPointError, match="kernel of layer 'early' for"):
        _check([_NAN, 1.0, 1.0, 1.0], [model])


def test_a_model_that_cannot_be_traced():
    model = _Untraceable()
    model(ops.ones((1, 2)))
    model.first.bias.assign([0.0, _NAN])
    with pytest.raises(FloatingPointError, match="bias of layer 'first' for"):
        _check([_NAN, 1.0, 1.0, 1.0], [model])
