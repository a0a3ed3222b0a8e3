"""What callbacks are told of the passes over a task."""

import keras
import numpy as np
import pytest

from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from tests.helpers import assert_same_weights
from tests.helpers import mostly_slow
from tests.training.online_trainer_test import DIMS
from tests.training.online_trainer_test import TestedStream


class Epochs(TaskCallback):
    """Keeps the results of all epochs of some tasks."""

    def __init__(self, tasks=range(9)):
        self.calls = []
        self.results = []
        self._tasks = tasks

    def on_task_epoch_end(self, task, epoch, learners, results):
        self.calls.append((task, epoch, list(learners)))
        if task in self._tasks:
            self.results.append(results())
            assert results() is self.results[-1]

    def get_state(self):
        return len(self.calls)

    def set_state(self, state):
        self.calls = [None] * state


def build(learner=0):
    model = keras.Sequential(
        [
            keras.Input(DIMS[:1]),
            keras.layers.Dense(
                6,
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(learner),
                name="hidden",
            ),
            # Its random numbers are those without an evaluation, too.
            keras.layers.Dropout(0.2, seed=learner),
            keras.layers.Dense(
                DIMS[-1],
                kernel_initializer=keras.initializers.HeNormal(learner),
                name="output",
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def fit(callbacks, epochs, **arguments):
    trainer = OnlineTrainer(build)
    results = trainer.fit(
        TestedStream(num_tasks=2),
        batch_size=4,
        epochs=epochs,
        callbacks=callbacks,
        **arguments,
    )
    return trainer, results


@pytest.mark.slow
def test_results_are_those_of_training_for_so_many_epochs():
    epochs = Epochs()
    trainer, results = fit([epochs], 3)
    assert epochs.calls == [(t, e, [0]) for t in (0, 1) for e in (0, 1, 2)]
    for number in (1, 2):
        _, expected = fit([], number, num_tasks=1)
        assert expected.keys() == {"loss", "mae", "test_loss", "test_mae"}
        for name, values in expected.items():
            np.testing.assert_allclose(
                epochs.results[number - 1][name], values[0], rtol=1e-5
            )
    for task in (0, 1):
        for name in results:
            np.testing.assert_array_equal(
                epochs.results[3 * task + 2][name], results[name][task]
            )
    # Asking for them changes nothing.
    unasked = Epochs([])
    expected, expected_results = fit([unasked], 3)
    assert unasked.calls == epochs.calls
    assert_same_weights(trainer.model(), expected.model(), rtol=0, atol=0)
    for name in results:
        np.testing.assert_array_equal(results[name], expected_results[name])


@pytest.mark.slow
def test_groups_of_learners_come_one_after_another(monkeypatch):
    monkeypatch.setattr(OnlineTrainer, "_group_sizes", lambda *_: [2, 1])
    epochs = Epochs()
    results = OnlineTrainer(build, num_learners=3).fit(
        lambda learner: TestedStream(num_tasks=1, seed=learner),
        batch_size=5,
        epochs=2,
        callbacks=[epochs],
    )
    assert epochs.calls == [
        (0, 0, [0, 1]),
        (0, 1, [0, 1]),
        (0, 0, [2]),
        (0, 1, [2]),
    ]
    last = np.concatenate([epochs.results[i]["test_mae"] for i in (1, 3)])
    np.testing.assert_array_equal(last, results["test_mae"][0])


class Stop(TaskCallback):
    """Stops in a certain epoch."""

    def __init__(self, task, epoch):
        self._when = task, epoch

    def on_task_epoch_end(self, task, epoch, learners, results):
        if (task, epoch) == self._when:
            self.trainer.stop()


@pytest.mark.parametrize("epoch", mostly_slow([1, 0], 1))
def test_a_resumed_run_is_told_of_each_epoch_once(epoch, tmp_path):
    checkpoint = str(tmp_path / "checkpoint.npz")
    stopped, resumed = Epochs(), Epochs()
    arguments = dict(epochs=3, checkpoint=checkpoint)
    trainer, _ = fit([stopped, Stop(1, epoch)], **arguments)
    assert trainer.interrupted
    fit([resumed, Stop(9, 9)], **arguments, resume=True)
    assert len(stopped.calls) == 3 + epoch + 1
    assert len(resumed.calls) == 6
    whole = Epochs()
    fit([whole], 3)
    both = stopped.results + resumed.results
    for results, expected in zip(both, whole.results, strict=True):
        for name in expected:
            np.testing.assert_array_equal(results[name], expected[name])
