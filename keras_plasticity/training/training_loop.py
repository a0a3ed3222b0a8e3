"""The contract of the engine's inner loops, one for each backend."""

from collections.abc import Iterable
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import keras
import numpy as np


@runtime_checkable
class TrainingLoop(Protocol):
    """Trains the learners of an `OnlineTrainer`, a chunk of steps at a time.

    Args:
        models: Iterable of compiled and built models of one architecture, one
            for each learner.
        num_learners: Integer.
        batch: The data of one step of one learner, a tuple `(x, y)` or
            `(x, y, sample_weight)` of nests of arrays.
    """

    def __init__(
        self, models: Iterable[keras.Model], num_learners: int, batch: tuple
    ): ...

    def put(self, data: tuple) -> Any:
        """Moves a chunk of data to the device.

        Args:
            data: Tuple like `batch`, of arrays of shape
                `(num_learners, steps, batch_size, ...)`.

        Returns:
            The data in the form that `run` and `compile` take.
        """

    def compile(self, data: Any):
        """Compiles `run` for data of these shapes. No learner changes."""

    def run(self, data: Any):
        """Makes one training step for each batch of a chunk."""

    def wait(self):
        """Returns when all steps have been computed."""

    def evaluate(self, data: tuple):
        """Updates the metrics with a batch of test data, without training.

        Args:
            data: Tuple like `batch`, of arrays of shape
                `(num_learners, batch_size, ...)`.
        """

    def reset_metrics(self):
        """Resets the metrics of all learners."""

    def results(self) -> dict[str, np.ndarray]:
        """Metrics since `reset_metrics`: arrays of shape `(num_learners,)`."""

    def model(self, learner: int) -> keras.Model:
        """A model in the present state of one learner."""

    def load_from_model(self, learner: int):
        """Makes the state of `model(learner)` that of the learner."""

    def get_state(self) -> list[np.ndarray]:
        """All that the learners' next steps depend on.

        Returns:
            List of arrays, the first axis of each counting learners.
        """

    def set_state(self, arrays: list[np.ndarray]):
        """Restores what `get_state` returned."""
