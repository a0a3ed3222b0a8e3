from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import validation
from keras_plasticity.callbacks import new_layers
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.seeds import derived_seed

_RULE = (
    "a positive integer, how many of the last layers, or a list of the names "
    "of layers"
)


class ResetLayers(BoundaryCallback):
    """Draws the weights of some layers anew when a task begins.

    New weights come from the layers' own initializers, whose seeds are
    replaced: each task and each learner has its own. What the layers keep of
    the data, such as the statistics of a `BatchNormalization`, is as in a new
    layer; the slots of the optimizer (momentum, ...) for these weights are,
    too.

    With the default it resets the output layer, which is known as head reset,
    or periodic resets in reinforcement learning.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`. What an optimizer of the
    library knows of units (their ages, ...) is not changed.

    Args:
        layers: Integer, how many of the last layers with a kernel, together
            with the normalizations after the first of them; or a list of names
            of layers, as in the first learner's model. Defaults to `1`.
        build_model: Function of a learner's index and a task's index that
            returns a model of the same architecture, whose weights the layers
            get. It is for layers that are not described by their config, or
            whose first weights come from elsewhere than their initializers.
            Defaults to `None`.
        seed: Integer, of what is drawn without `build_model`. Drawn at random
            by default; a run that resumes has the same results with a seed
            only.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"`, `"changed"` (default, as in the paper) or
            `"none"`: what of the optimizer starts anew.

    Example:

    ```python
    callback = keras_plasticity.callbacks.ResetLayers(layers=1, seed=0)
    model.fit(x, y, epochs=6, callbacks=[callback])  # It is the first `fit`.
    model.fit(x, y, epochs=6, callbacks=[callback])  # Here it acts.
    ```

    References:

    - [Nikishin et al., 2022](https://arxiv.org/abs/2205.07802)
    """

    def __init__(
        self,
        layers: int | Sequence[str] = 1,
        build_model: Callable[[int, int], keras.Model] | None = None,
        seed: int | None = None,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "changed",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.layers = _check_layers(layers)
        self.build_model = check_build_model(build_model, optional=True)
        self.seed = validation.check_seed("seed", seed)

    def on_boundary(self, model, learner, task, x, y):
        old = self._layers_of(model, learner)
        changed = []
        if self.build_model is None:
            seed = derived_seed(self.seed, type(self).__name__, learner, task)
            new = [
                new_layers.new_layer(layer, derived_seed(seed, number))
                for number, layer in enumerate(old)
            ]
            for layer, other in zip(old, new):
                changed += new_layers.copy_weights(layer, other)
        else:
            fresh = self.build_model(learner, task)
            others = new_layers.counterparts(model, fresh)
            for layer in old:
                changed += new_layers.take_weights(layer, others)
        return changed

    def _layers_of(self, model, learner):
        if isinstance(self.layers, int):
            return new_layers.last_layers(model, self.layers)
        named = self.layers_named(model, learner, self.layers)
        found = []
        for layer in named:
            inside = [layer]
            if isinstance(layer, keras.Model):
                inside = new_layers.layers_with_weights(layer)
            found += [each for each in inside if each.weights]
        if not found:
            raise ValueError(
                "`layers` must name a layer with weights. Received: "
                f"layers={self.layers}"
            )
        return found

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layers": self.layers,
            "seed": self.seed,
        }


def _check_layers(layers):
    if validation.is_integer(layers):
        return validation.check_positive_integer("layers", layers)
    layers = validation.check_list("layers", layers, str, _RULE)
    if not layers:
        raise validation.error("layers", _RULE, layers)
    return layers


def check_build_model(build_model, optional=False):
    """Checks an argument: a function `(learner, task)`, or `None`."""
    if build_model is None and optional:
        return None
    return validation.check_function(
        "build_model",
        build_model,
        "a function of a learner's index and a task's index that returns a "
        "model",
    )
