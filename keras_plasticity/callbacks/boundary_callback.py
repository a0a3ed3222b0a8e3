"""The base class of callbacks that change a model between tasks."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.optimizers.restart import restart
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import nests

RESETS = ("all", "changed", "none")


class BoundaryCallback(keras.callbacks.Callback, TaskCallback):
    """Base class of callbacks that change a model between tasks.

    A subclass overrides `on_boundary`, which changes one model. The callback
    then works in `keras_plasticity.training.OnlineTrainer`, for all of its
    learners, and in `fit` of any Keras model:

    - In `OnlineTrainer`, it acts when a task begins.
    - In `fit`, it acts when `fit` begins, for those who call `fit` once for
        each task; or, with `epochs`, whenever so many epochs have passed since
        the callback was first used, over all calls of `fit`.

    The first `skip` of these occasions pass without any change: there is
    nothing to change in a network that has not learned anything.

    A checkpoint of `OnlineTrainer` holds the callback's state. In `fit`, where
    another process is to go on, hand what `get_state` returned to `set_state`.

    Args:
        skip: Integer, the number of occasions that pass without a change.
            Defaults to `1`: it acts from the second task on.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: What of the optimizer starts anew after a change:
            `"all"` of its state, the count of its steps included; the slots
            (momentum, ...) of the weights that have `"changed"`; or `"none"`
            (default). What wrappers of this library know of units and weights
            stays.

    Example:

    ```python
    class Halve(keras_plasticity.callbacks.BoundaryCallback):
        # Halves all weights when a task begins.

        def on_boundary(self, model, learner, task, x, y):
            weights = keras_plasticity.weights_of(model)
            for weight in weights:
                weight.assign(0.5 * weight.value)
            return weights

    callback = Halve()
    for task in range(3):
        model.fit(x, y, callbacks=[callback])  # Halved in the last two.
    ```
    """

    def __init__(
        self,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "none",
    ):
        super().__init__()
        self.skip = validation.check_integer("skip", skip, 0)
        if epochs is not None:
            epochs = validation.check_positive_integer("epochs", epochs)
        self.epochs = epochs
        self.reset_optimizer = validation.check_choice(
            "reset_optimizer", reset_optimizer, RESETS
        )
        # Tasks or calls of `fit` that have begun, and epochs.
        self._begun = 0
        self._epochs_begun = 0
        # Where the layers that a user named are in a model.
        self._positions = []

    def on_boundary(
        self, model: keras.Model, learner: int, task: int, x: Any, y: Any
    ) -> Sequence[keras.Variable]:
        """Changes a model. To be overridden.

        Args:
            model: Compiled `keras.Model`.
            learner: Integer; 0 in `fit`.
            task: Integer, the index of the task that begins. In `fit`, the
                number of occasions before this one.
            x: NumPy array, the inputs of the task that begins, or a nest of
                them. `None` in `fit`, which does not tell.
            y: The same for its targets.

        Returns:
            List of the weights that it has changed.
        """
        raise NotImplementedError

    def acts_on(self, occasion: int) -> bool:
        """Whether it acts on an occasion.

        Args:
            occasion: Integer, the number of occasions before this one.

        Returns:
            Boolean. Defaults to all but the first `skip`.
        """
        return occasion >= self.skip

    def on_train_begin(self, logs=None):
        if self.epochs is None:
            occasion = self._begun
            self._begun += 1
            self._act_in_fit(occasion)

    def on_epoch_begin(self, epoch, logs=None):
        if self.epochs is None:
            return
        if self._epochs_begun == 0:
            # Not 0 where Keras goes on with a `fit` of another process.
            self._epochs_begun = epoch
        occasion, rest = divmod(self._epochs_begun, self.epochs)
        self._epochs_begun += 1
        if rest == 0:
            self._act_in_fit(occasion)

    def on_task_begin(self, task, x, y):
        if self.epochs is not None:
            raise ValueError(
                "`epochs` is for `fit`: `OnlineTrainer` calls when a task "
                "begins. Leave it out. Received: "
                f"epochs={self.epochs}"
            )
        occasion = self._begun
        self._begun += 1
        if not self.acts_on(occasion):
            return
        for learner in range(self.trainer.num_learners):
            own_x, own_y = nests.take((x, y), learner)
            with self.trainer.edit(learner) as model:
                self._change(model, learner, task, own_x, own_y)

    def _act_in_fit(self, occasion):
        if self.acts_on(occasion):
            self._change(self.model, 0, occasion, None, None)

    def _change(self, model, learner, task, x, y):
        changed = self.on_boundary(model, learner, task, x, y)
        self._restart_optimizer(model, changed)

    def _restart_optimizer(self, model, changed):
        if self.reset_optimizer == "all":
            restart(model.optimizer)
        elif self.reset_optimizer == "changed":
            restart(model.optimizer, list(changed))

    def layers_named(
        self, model: keras.Model, learner: int, names: Sequence[str]
    ) -> list[keras.Layer]:
        """The layers that have some names in the first learner's model.

        Args:
            model: A learner's `keras.Model`.
            learner: Integer, its index. The first learner comes first.
            names: List of strings.

        Returns:
            List of layers of `model`, or of a model or layer in it, whose own
            names may be others; all layers of a name, in the model's order.

        Raises:
            ValueError: If there is no layer of a name.
        """
        layers = list(keras_compat.in_order(model))[1:]
        if learner == 0:
            known = [layer.name for layer in layers]
            for name in names:
                if name not in known:
                    raise ValueError(
                        "`layers` must be names of layers of the model "
                        f"'{model.name}'. No such layer: {name}. Its layers "
                        f"are: {known}. Received: layers={list(names)}"
                    )
            self._positions = [
                position for position, name in enumerate(known) if name in names
            ]
        return [layers[position] for position in self._positions]

    def get_config(self) -> dict[str, Any]:
        return {
            "skip": self.skip,
            "epochs": self.epochs,
            "reset_optimizer": self.reset_optimizer,
        }

    def get_state(self) -> dict[str, int]:
        """The state to resume from.

        Returns:
            Dict that JSON can hold.
        """
        return {"begun": self._begun, "epochs_begun": self._epochs_begun}

    def set_state(self, state: dict[str, int]):
        """Goes on from another callback's state.

        Args:
            state: What its `get_state` returned.
        """
        validation.check_mapping(
            "state",
            state,
            ("begun", "epochs_begun"),
            "what `get_state` returned",
        )
        begun = validation.check_integer("state", state["begun"], 0)
        self._epochs_begun = validation.check_integer(
            "state", state["epochs_begun"], 0
        )
        self._begun = begun
