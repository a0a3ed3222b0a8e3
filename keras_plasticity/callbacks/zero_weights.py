from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.training import TaskCallback
from keras_plasticity.weights import weights_of


class ZeroWeights(TaskCallback):
    """Sets the weights of some layers to zero when a task begins.

    The last layer of a network has to be reset where each task has new classes,
    as in Continual ImageNet. The slots of the optimizer (momentum, ...) are not
    reset, as in the authors' code.

    It is a callback for `keras_plasticity.training.OnlineTrainer`.

    Args:
        layers: List of names of layers, as in the first learner's model.

    Example:

    ```python
    trainer.fit(
        stream, callbacks=[keras_plasticity.callbacks.ZeroWeights(["head"])]
    )
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = validation.check_list(
            "layers", layers, str, "a list of the names of layers"
        )

    def get_config(self) -> dict[str, Any]:
        return {"layers": list(self.layers)}

    def on_task_begin(self, task: int, x: np.ndarray, y: np.ndarray):
        positions = []
        for learner in range(self.trainer.num_learners):
            with self.trainer.edit(learner) as model:
                if learner == 0:
                    positions = [
                        model.layers.index(model.get_layer(name))
                        for name in self.layers
                    ]
                for position in positions:
                    for variable in weights_of(model.layers[position]):
                        variable.assign(keras.ops.zeros(variable.shape))
