from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_plasticity import validation
from keras_plasticity.callbacks import new_layers
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.reset_layers import check_build_model
from keras_plasticity.weights import weights_of


class ShrinkAndPerturbTasks(BoundaryCallback):
    """Moves all weights toward those of a new network when a task begins.

    `w <- shrink * w + perturb * fresh`, for all trainable weights and biases,
    from the second task on. This is "shrink and perturb" as it was proposed;
    the method of that name in the papers on loss of plasticity acts at every
    step: see `keras_plasticity.optimizers.ShrinkAndPerturb`.

    Lee et al. take the learner's own first network for `fresh`, the same for
    all tasks, and start the optimizer anew. For that let `build_model` ignore
    the task, and set `reset_optimizer="all"`.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        build_model: Function of a learner's index and a task's index that
            returns a model of the same architecture with fresh weights. For
            reproducible results, seed the model by both; if the seed ignores
            the task, all tasks use the same network.
        shrink: Float in [0, 1]. Defaults to `0.2`.
        perturb: Float, at least 0. Defaults to `0.8`.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"`, `"changed"` or `"none"` (default): what of
            the optimizer starts anew.

    References:

    - [Ash and Adams, 2020](https://arxiv.org/abs/1910.08475)
    - [Lee et al., 2024](https://arxiv.org/abs/2406.02596), the defaults
    """

    def __init__(
        self,
        build_model: Callable[[int, int], keras.Model],
        shrink: float = 0.2,
        perturb: float = 0.8,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "none",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.build_model = check_build_model(build_model)
        self.shrink = validation.check_in_interval("shrink", shrink, "[0, 1]")
        self.perturb = validation.check_in_interval(
            "perturb", perturb, "[0, inf)"
        )

    def on_boundary(self, model, learner, task, x, y):
        fresh = self.build_model(learner, task)
        weights = weights_of(model)
        # Of the new model other layers may be frozen: all are paired.
        news = new_layers.counterparts(model, fresh)
        for weight in weights:
            new = ops.convert_to_tensor(news[id(weight)])
            weight.assign(self.shrink * weight.value + self.perturb * new)
        return weights

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shrink": self.shrink,
            "perturb": self.perturb,
        }
