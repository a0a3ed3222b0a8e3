from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import validation
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.weights import weights_of


class ZeroWeights(BoundaryCallback):
    """Sets the weights of some layers to zero when a task begins.

    The last layer of a network has to be reset where each task has new classes,
    as in Continual ImageNet. The slots of the optimizer (momentum, ...) are not
    reset by default, as in the authors' code.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        layers: List of names of layers, as in the first learner's model.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `0`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"`, `"changed"` or `"none"` (default): what of
            the optimizer starts anew.

    Example:

    ```python
    trainer.fit(
        stream, callbacks=[keras_plasticity.callbacks.ZeroWeights(["head"])]
    )
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        layers: Sequence[str],
        skip: int = 0,
        epochs: int | None = None,
        reset_optimizer: str = "none",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.layers = validation.check_list(
            "layers", layers, str, "a list of the names of layers"
        )

    def on_boundary(self, model, learner, task, x, y):
        changed = []
        for layer in self.layers_named(model, learner, self.layers):
            changed += weights_of(layer)
        for variable in changed:
            variable.assign(keras.ops.zeros(variable.shape))
        return changed

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layers": list(self.layers)}
