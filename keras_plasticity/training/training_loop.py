"""The contract of the engine's inner loops, one for each backend."""

from collections.abc import Iterable
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import keras
import numpy as np

from keras_plasticity.training.tasks import Batches


@runtime_checkable
class TrainingLoop(Protocol):
    """Trains a group of learners, some steps at a time.

    Args:
        models: Iterable of compiled and built models of one architecture, one
            for each learner.
        num_learners: Integer, how many they are.
        batch: The data of one step of one learner, a tuple `(x, y)` or
            `(x, y, sample_weight)` of nests of arrays.
        jit_compile: Boolean or `"auto"`, see `OnlineTrainer`.
        first: The loop of the first group of learners, with which this one
            shares what it can; `None` if this is the first.
    """

    def __init__(
        self,
        models: Iterable[keras.Model],
        num_learners: int,
        batch: tuple,
        jit_compile: bool | str = "auto",
        first: "TrainingLoop | None" = None,
    ): ...

    def put(self, data: tuple) -> Any:
        """Moves the data of a task to the device.

        Args:
            data: Tuple like `batch`, of arrays of shape
                `(num_learners, examples, ...)`.

        Returns:
            The data in the form that the other methods take.
        """

    def compile(self, data: Any, batches: Batches):
        """Compiles `run` for batches of this kind. No learner changes."""

    def run(self, data: Any, batches: Batches):
        """Makes one training step for each batch.

        It may return before they are computed: see `wait`.
        """

    def wait(self):
        """Returns when all steps have been computed."""

    def evaluate(self, data: Any, examples: slice):
        """Updates the metrics with some of the examples, without training."""

    def reset_metrics(self):
        """Resets the metrics of all learners."""

    def results(self) -> dict[str, np.ndarray]:
        """Metrics since `reset_metrics`: arrays of shape `(num_learners,)`."""

    def get_metrics(self) -> list[np.ndarray]:
        """What `results` will be computed from.

        Returns:
            List of arrays, the first axis of each counting learners.
        """

    def set_metrics(self, arrays: list[np.ndarray]):
        """Restores what `get_metrics` returned."""

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
