from typing import Any

import numpy as np


class TaskCallback:
    """Base class of what looks on while an `OnlineTrainer` trains.

    Attributes:
        trainer: The `OnlineTrainer`; `trainer.model(learner)` is a learner's
            model as it is at the time, and `trainer.edit(learner)` changes it.
    """

    trainer = None

    def on_task_begin(self, task: int, x: np.ndarray, y: np.ndarray):
        """Called before the first step of a task.

        Args:
            task: Integer, the task's index.
            x: Array of shape `(num_learners, examples, ...)`, its inputs.
            y: Array of shape `(num_learners, examples, ...)`, its targets.
        """

    def on_progress(self, task: int, done: float):
        """Called now and then within a task.

        Args:
            task: Integer, the task's index.
            done: Float in (0, 1], the part of the task that is done.
        """

    def on_task_end(self, task: int, results: dict[str, np.ndarray]):
        """Called after the last step of a task.

        Args:
            task: Integer, the task's index.
            results: Dict from the name of each metric to a float array of
                shape `(num_learners,)`.
        """

    def on_train_end(self, logs: dict | None = None):
        """Called at the end of `fit`, also after an error or Ctrl-C.

        Args:
            logs: Nothing; the argument is that of Keras' callbacks.
        """

    def get_state(self) -> Any:
        """What a run that goes on from a checkpoint has to know.

        Returns:
            Anything that JSON can hold. Defaults to `None`: nothing.
        """
        return None

    def set_state(self, state: Any):
        """Called before the first task of a run that goes on.

        Args:
            state: What `get_state` returned at the checkpoint.
        """
