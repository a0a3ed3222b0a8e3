"""Records what becomes better from epoch to epoch within a task."""

import copy

from keras_plasticity import training
from keras_plasticity.experiments import runs


class EpochRecorder(training.TaskCallback):
    """Keeps the metric after each epoch of some tasks.

    Where the metric is one of test data, the same of the training data is kept,
    too.

    Args:
        problem: `Problem`.
        tasks: Collection of integers, the tasks.

    Attributes:
        epochs: Dict from the name of a metric to a list with an entry for each
            epoch of this task so far: the list of the learners' values, `None`
            where it is not finite. It is empty for all other tasks.
    """

    def __init__(self, problem, tasks):
        self.epochs = {}
        # From what the engine calls it to what the figure does.
        self._names = {
            problem.result.removeprefix("test_"): "training",
            problem.result: problem.metric,
        }
        self._tasks = tasks

    def on_task_begin(self, task, x, y):
        self.epochs = {}

    def on_task_epoch_end(self, task, epoch, learners, results):
        if task not in self._tasks:
            return
        measured = results()
        for name, shown in self._names.items():
            values = self.epochs.setdefault(shown, [])
            if epoch == len(values):
                values.append([])
            # Groups of learners come one after another.
            values[epoch] += runs.finite_list(measured[name])

    def get_state(self):
        return copy.deepcopy(self.epochs)

    def set_state(self, state):
        self.epochs = copy.deepcopy(state)
