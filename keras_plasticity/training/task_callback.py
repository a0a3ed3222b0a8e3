from collections.abc import Callable
from typing import Any

import numpy as np


class TaskCallback:
    """Base class for `OnlineTrainer` callbacks.

    Attributes:
        trainer: The `OnlineTrainer`; `trainer.model(learner)` is a learner's
            model in its present state, and `trainer.edit(learner)` a context
            in which it may be changed.
    """

    trainer = None

    def on_task_begin(self, task: int, x: Any, y: Any):
        """Called before the first step of a task.

        Args:
            task: Integer, the task's index.
            x: NumPy array of shape `(num_learners, examples, ...)`, its
                inputs; a list, tuple or dict of arrays if the stream's are.
            y: The same for its targets.
        """

    def on_progress(self, task: int, done: float):
        """Called now and then during a task.

        Args:
            task: Integer, the task's index.
            done: Float in (0, 1], the fraction of the task that is done, or
                will be within about a second.
        """

    def on_task_epoch_end(
        self,
        task: int,
        epoch: int,
        learners: range,
        results: Callable[[], dict[str, np.ndarray]],
    ):
        """Called after each pass over a task's examples.

        Learners that do not train side by side come one group after another:
        the second begins with its first epoch when the first has made all.

        Args:
            task: Integer, the task's index.
            epoch: Integer, the pass, from 0.
            learners: Range of the learners that have made it.
            results: Function without arguments that returns a dict from the
                name of each metric, over this epoch, to a float array of shape
                `(len(learners),)`. With test data it also evaluates the
                learners on them, which takes its time. It changes nothing in
                the training; what it returns should not be changed.
        """

    def on_task_end(self, task: int, results: dict[str, np.ndarray]):
        """Called after the last step of a task.

        Args:
            task: Integer, the task's index.
            results: Dict from the name of each metric to a float array of
                shape `(num_learners,)`.
        """

    def get_config(self) -> dict[str, Any]:
        """What training depends on: a run that resumes must have the same.

        Returns:
            Dict that JSON can hold. Defaults to an empty one.
        """
        return {}

    def on_train_end(self, logs: dict | None = None):
        """Called at the end of `fit`, also after an error or Ctrl-C.

        Args:
            logs: Unused; Keras' callbacks take it.
        """

    def get_state(self) -> Any:
        """State of the callback that is saved in checkpoints.

        These are written between tasks, and within a task at any time between
        `on_task_begin`, which is then not called again, and `on_task_end`.

        Returns:
            Anything that JSON can hold, and within it NumPy arrays, and
            `AppendOnly` lists. Defaults to `None`, no state.
        """
        return None

    def set_state(self, state: Any):
        """Restores the callback's state when a run resumes.

        It is called before the first task, and only if there is a state.

        Args:
            state: What `get_state` returned at the checkpoint.
        """
