from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.training import TaskCallback
from keras_plasticity.weights import weights_of


class ShrinkAndPerturbTasks(TaskCallback):
    """Moves all weights toward those of a new network when a task begins.

    `w <- shrink * w + perturb * fresh`, for all trainable weights and biases,
    from the second task on. This is "shrink and perturb" as it was proposed;
    the method of that name in the papers on loss of plasticity acts at every
    step: see `keras_plasticity.optimizers.ShrinkAndPerturb`. The slots of the
    optimizer (momentum, ...) are not changed.

    It is a callback for `keras_plasticity.training.OnlineTrainer`.

    Args:
        build_model: Function of a learner's index and a task's index that
            returns a model of the same architecture with fresh weights. For
            reproducible results, seed the model by both; if the seed ignores
            the task, all tasks use the same network.
        shrink: Float in [0, 1]. Defaults to `0.2`.
        perturb: Float, at least 0. Defaults to `0.8`.

    References:

    - [Ash and Adams, 2020](https://arxiv.org/abs/1910.08475)
    - [Lee et al., 2024](https://arxiv.org/abs/2406.02596), the defaults
    """

    def __init__(
        self,
        build_model: Callable[[int, int], keras.Model],
        shrink: float = 0.2,
        perturb: float = 0.8,
    ):
        self.build_model = validation.check_function(
            "build_model",
            build_model,
            "a function of a learner's index and a task's index that returns a "
            "model",
        )
        self.shrink = validation.check_in_interval("shrink", shrink, "[0, 1]")
        self.perturb = validation.check_in_interval(
            "perturb", perturb, "[0, inf)"
        )
        self._is_first = True

    def on_task_begin(self, task: int, x: np.ndarray, y: np.ndarray):
        if self._is_first:
            self._is_first = False
            return
        for learner in range(self.trainer.num_learners):
            fresh = weights_of(self.build_model(learner, task))
            with self.trainer.edit(learner) as model:
                weights = weights_of(model)
                expected, received = _shapes(weights), _shapes(fresh)
                if received != expected:
                    raise ValueError(
                        "`build_model` must return a model of the same "
                        "architecture. Received: one with weights of the "
                        f"shapes {received}, expected {expected}"
                    )
                for weight, new in zip(weights, fresh):
                    weight.assign(
                        self.shrink * weight.value + self.perturb * new.value
                    )

    def get_config(self) -> dict[str, Any]:
        return {"shrink": self.shrink, "perturb": self.perturb}

    def get_state(self) -> bool:
        return self._is_first

    def set_state(self, state: bool):
        self._is_first = validation.check_boolean("state", state)


def _shapes(variables):
    # Tuples: a backend's own shapes print differently on each.
    return [tuple(variable.shape) for variable in variables]
