"""What is kept of each task and each epoch, and what TensorBoard gets."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from keras_plasticity.experiments.epoch_recorder import EpochRecorder
from keras_plasticity.experiments.recorder import Recorder

_PROBLEM = SimpleNamespace(
    metric="accuracy_of_test", result="test_accuracy", scale=100.0
)


class Writer:
    """Keeps the scalars, as a `LastingWriter` gets them."""

    def __init__(self):
        self.scalars = {}

    def scalar(self, tag, value, step):
        self.scalars.setdefault(tag, []).append((step, value))

    def flush(self):
        pass


def as_results(**values):
    return {name: np.array(value) for name, value in values.items()}


def test_charts_are_in_percent_like_figures():
    writer = Writer()
    recorder = Recorder(_PROBLEM, 50, writer)
    results = as_results(
        loss=[0.5, 1.5],
        accuracy=[0.25, 0.5],
        test_loss=[2.0, math.nan],
        test_accuracy=[0.5, 0.75],
    )
    recorder.on_task_end(0, results)
    assert writer.scalars == {
        "against_tasks/accuracy_of_test": [(0, 62.5)],
        "against_updates/accuracy_of_test": [(50, 62.5)],
        "band/accuracy_of_test_lower": [(0, pytest.approx(50.0))],
        "band/accuracy_of_test_upper": [(0, pytest.approx(75.0))],
        "metrics/accuracy": [(0, 37.5)],
        "metrics/loss": [(0, 1.0)],
        "metrics/test_loss": [(0, 2.0)],
    }
    # `summary.json` has what was measured.
    [record] = recorder.records
    assert record["accuracy_of_test"] == 0.625
    assert record["accuracy_of_test_per_learner"] == [0.5, 0.75]
    assert "epochs" not in record


def make_epochs(training, test):
    return lambda: as_results(
        loss=[9.0] * len(test), accuracy=training, test_accuracy=test
    )


def test_epochs_are_kept_of_some_tasks():
    epochs = EpochRecorder(_PROBLEM, (0, 2))
    recorder = Recorder(_PROBLEM, 1, Writer(), epochs=epochs)
    for task in range(3):
        epochs.on_task_begin(task, None, None)
        for learners, shift in ((range(2), 0.0), (range(2, 3), 0.5)):
            for epoch in range(2):
                value = task + 0.1 * epoch + shift
                epochs.on_task_epoch_end(
                    task,
                    epoch,
                    learners,
                    make_epochs(
                        [value] * len(learners),
                        [value + 0.01] * (len(learners) - 1) + [math.inf],
                    ),
                )
        recorder.on_task_end(task, as_results(test_accuracy=[0.0] * 3))
    assert ["epochs" in each for each in recorder.records] == [
        True,
        False,
        True,
    ]
    assert recorder.records[2]["epochs"] == {
        "training": [[2.0, 2.0, 2.5], [2.1, 2.1, 2.6]],
        "accuracy_of_test": [[2.01, None, None], [2.11, None, None]],
    }


def test_epochs_of_a_task_that_was_interrupted():
    first, second = (EpochRecorder(_PROBLEM, (0,)) for _ in range(2))
    first.on_task_begin(0, None, None)
    first.on_task_epoch_end(0, 0, range(1), make_epochs([0.5], [0.25]))
    second.set_state(first.get_state())
    second.on_task_epoch_end(0, 1, range(1), make_epochs([0.75], [0.5]))
    assert second.epochs == {
        "training": [[0.5], [0.75]],
        "accuracy_of_test": [[0.25], [0.5]],
    }
    assert first.epochs == {"training": [[0.5]], "accuracy_of_test": [[0.25]]}


def test_epochs_of_training_data_only():
    problem = SimpleNamespace(metric="online", result="accuracy", scale=1.0)
    epochs = EpochRecorder(problem, (0,))
    epochs.on_task_epoch_end(0, 0, range(1), make_epochs([0.5], [0.25]))
    assert epochs.epochs == {"online": [[0.5]]}
