from collections.abc import Callable

import keras
from keras import ops

from keras_plasticity import validation
from keras_plasticity.callbacks import new_layers
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.reset_layers import check_build_model
from keras_plasticity.optimizers.restart import set_optimizer_state
from keras_plasticity.weights import is_statistic


class ResetModel(BoundaryCallback):
    """Puts a new network in the place of the old one when a task begins.

    All weights, and all else that the model keeps, become those of a new
    model, and the optimizer starts anew. It is the line that methods against
    loss of plasticity are compared with: a network that has nothing to lose,
    and nothing to go on from.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        build_model: Function of a learner's index and a task's index that
            returns a compiled model of the same architecture. For reproducible
            results, seed the model by both.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"` (default): the optimizer's state becomes that
            of the new model's, with all that wrappers of this library keep;
            `"changed"`: only the slots (momentum, ...) start anew; or
            `"none"`.

    Example:

    ```python
    def build_model(learner, task):
        keras.utils.set_random_seed(task)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("adam", "mse")
        return model

    model = build_model(learner=0, task=0)
    callback = keras_plasticity.callbacks.ResetModel(build_model)
    for task in range(3):
        model.fit(x, y, callbacks=[callback])
    ```
    """

    def __init__(
        self,
        build_model: Callable[[int, int], keras.Model],
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "all",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.build_model = check_build_model(build_model)

    def on_boundary(self, model, learner, task, x, y):
        new = validation.check_model(
            "build_model(learner, task)", self.build_model(learner, task)
        )
        changed = new_layers.copy_weights(model, new)
        for old, other in zip(_others(model), _others(new), strict=True):
            old.assign(ops.copy(ops.convert_to_tensor(other)))
        if self.reset_optimizer == "all":
            if not new.compiled:
                raise ValueError(
                    "`build_model` must return a compiled model, from whose "
                    "optimizer the model's starts anew. Received: a model that "
                    "is not compiled. Call its `compile`, or set "
                    "`reset_optimizer` to 'changed' or 'none'."
                )
            new.optimizer.build(new.trainable_variables)
            set_optimizer_state(model.optimizer, new.optimizer)
        return changed

    def _restart_optimizer(self, model, changed):
        if self.reset_optimizer != "all":  # Else it has been done.
            super()._restart_optimizer(model, changed)


def _others(model):
    """The states of a model's generators, and what its layers observe."""
    weights = {id(v) for v in model.weights if not is_statistic(v)}
    # Not the metrics.
    states = {
        id(variable)
        for variable in (
            *model.trainable_variables,
            *model.non_trainable_variables,
        )
        if id(variable) not in weights
    }
    # In an order that is the same where other layers are frozen.
    return [variable for variable in model.variables if id(variable) in states]
