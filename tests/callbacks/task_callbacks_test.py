"""Callbacks of the engine that change weights between tasks."""

import keras
import numpy as np
import pytest

from keras_plasticity.callbacks import ShrinkAndPerturbTasks
from keras_plasticity.callbacks import ZeroWeights
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from tests.helpers import to_numpy
from tests.helpers import weights_of
from tests.training.online_trainer_test import ArrayStream
from tests.training.online_trainer_test import build


class Weights(TaskCallback):
    """Remembers all weights and slots at both ends of each task."""

    def __init__(self):
        self.begin, self.end = [], []

    def _state(self):
        result = []
        for learner in range(self.trainer.num_learners):
            model = self.trainer.model(learner)
            slots = {
                v.path: keras.ops.convert_to_numpy(v)
                for v in model.optimizer.variables
            }
            result.append((weights_of(model), slots))
        return result

    def on_task_begin(self, task, x, y):
        self.begin.append(self._state())

    def on_task_end(self, task, results):
        self.end.append(self._state())


def fit(callback, method="cbp", **kwargs):
    weights = Weights()
    trainer = OnlineTrainer(
        lambda learner: build(seed=learner, method=method), num_learners=2
    )
    trainer.fit(
        lambda learner: ArrayStream(seed=learner),
        callbacks=[callback, weights],
        **kwargs,
    )
    return weights


@pytest.mark.parametrize("method", ["bp", "cbp"])
def test_zero_weights_zeroes_them_and_nothing_else(method):
    seen = fit(ZeroWeights(["layer_2"]), method)
    for task in range(3):
        for learner in range(2):
            weights, slots = seen.begin[task][learner]
            zeroed = [key for key in weights if "layer_2" in key]
            assert len(zeroed) == 2
            for key in zeroed:
                assert not weights[key].any()
            if task == 0:
                continue
            before, slots_before = seen.end[task - 1][learner]
            for key in weights.keys() - set(zeroed):
                np.testing.assert_array_equal(weights[key], before[key])
            for key in slots:
                np.testing.assert_array_equal(slots[key], slots_before[key])
            assert all(before[key].any() for key in zeroed)


def test_zero_weights_of_learners_whose_layers_have_other_names():
    names = []

    def build_unnamed(learner):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
        names.append(model.layers[0].name)
        return model

    class Zero(ZeroWeights):
        def on_task_begin(self, task, x, y):
            self.layers = names[:1]
            super().on_task_begin(task, x, y)

    weights = Weights()
    OnlineTrainer(build_unnamed, num_learners=3).fit(
        lambda learner: ArrayStream(seed=learner), callbacks=[Zero([]), weights]
    )
    for each in weights.begin[1]:
        assert not any(value.any() for value in each[0].values())


def test_zero_weights_leaves_statistics():
    class Note(TaskCallback):
        begin, end = [], []

        def _norm(self):
            layer = self.trainer.model().get_layer("norm")
            return {v.name: to_numpy(v) for v in layer.variables}

        def on_task_begin(self, task, x, y):
            self.begin.append(self._norm())

        def on_task_end(self, task, results):
            self.end.append(self._norm())

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    note = Note()
    OnlineTrainer(model).fit(
        ArrayStream(2), batch_size=5, callbacks=[ZeroWeights(["norm"]), note]
    )
    before, after = note.end[0], note.begin[1]
    assert before["gamma"].any() and not after["gamma"].any()
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_array_equal(after[name], before[name])
        assert after[name].any()


def test_zero_weights_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="No such layer: head"):
        fit(ZeroWeights(["head"]))


@pytest.mark.parametrize("layers", ["head", [1]])
def test_zero_weights_wants_names(layers):
    with pytest.raises(ValueError, match="list of the names.*layers="):
        ZeroWeights(layers)


def build_fresh(learner, task):
    return build(seed=100 * task + learner, method="bp")


@pytest.mark.parametrize("method", ["bp", "cbp"])
def test_shrink_and_perturb_moves_weights_towards_fresh_ones(method):
    seen = fit(ShrinkAndPerturbTasks(build_fresh, 0.7, 0.1), method)
    for learner in range(2):
        initial = weights_of(build(seed=learner, method=method))
        for key, value in seen.begin[0][learner][0].items():
            np.testing.assert_array_equal(value, initial[key])
        for task in (1, 2):
            before, slots_before = seen.end[task - 1][learner]
            weights, slots = seen.begin[task][learner]
            fresh = weights_of(build_fresh(learner, task))
            for key in weights:
                np.testing.assert_allclose(
                    weights[key], 0.7 * before[key] + 0.1 * fresh[key], 1e-6
                )
            for key in slots:
                np.testing.assert_array_equal(slots[key], slots_before[key])


def test_shrink_and_perturb_of_a_model_that_is_partly_frozen():
    def build_square(learner=0, task=0):
        layers = [keras.layers.Dense(4, use_bias=False) for _ in range(3)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile("sgd", "mse")
        return model

    model, fresh = build_square(), build_square()
    model.layers[0].trainable = False
    before = model.get_weights()
    callback = ShrinkAndPerturbTasks(lambda *_: fresh, 0.0, 1.0)
    callback.on_boundary(model, 0, 1, None, None)
    expected = [before[0], *fresh.get_weights()[1:]]
    for actual, value in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(actual, value)


@pytest.mark.slow
def test_shrink_and_perturb_goes_on_from_a_checkpoint(tmp_path):
    path = str(tmp_path / "checkpoint.npz")
    expected = fit(ShrinkAndPerturbTasks(build_fresh))
    fit(ShrinkAndPerturbTasks(build_fresh), num_tasks=1, checkpoint=path)
    resumed = fit(
        ShrinkAndPerturbTasks(build_fresh), checkpoint=path, resume=True
    )
    for learner in range(2):
        weights = resumed.end[-1][learner][0]
        for key, value in expected.end[-1][learner][0].items():
            np.testing.assert_array_equal(weights[key], value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(build_model=3), TypeError, "`build_model` must be a function"),
        (dict(shrink=1.5), ValueError, r"in \[0, 1\]. Received: shrink=1.5"),
        (dict(perturb=-1), ValueError, r"\[0, inf\). Received: perturb=-1"),
    ],
)
def test_shrink_and_perturb_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ShrinkAndPerturbTasks(**(dict(build_model=build_fresh) | arguments))


def test_shrink_and_perturb_with_another_architecture():
    def build_other(learner, task):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        return model

    with pytest.raises(ValueError, match="same architecture.*\\(4, 2\\)"):
        fit(ShrinkAndPerturbTasks(build_other))


@pytest.mark.parametrize("layers", [None, 5, "head", ["head", 1], {"head": 1}])
def test_zero_weights_bad_arguments(layers):
    with pytest.raises(
        ValueError, match="`layers` must be a list of the names"
    ):
        ZeroWeights(layers)
