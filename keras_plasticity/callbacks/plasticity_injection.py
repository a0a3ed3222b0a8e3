from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.callbacks import new_layers
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.reset_layers import check_build_model
from keras_plasticity.layers.injectable import Injectable
from keras_plasticity.seeds import derived_seed


class PlasticityInjection(BoundaryCallback):
    """Injects new plasticity into a network, once.

    The trained head `h` is frozen, and two like it with the same fresh
    weights, `h1` and `h2`, are added to it and taken off:
    `h(x) + h1(x) - h2(x)`. The outputs are what they were. From there on, of
    the three, only `h1` learns. The head has to be a
    `keras_plasticity.layers.Injectable`, which has room for all three from the
    start; if there are several, all are injected into.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        build_model: Function of a learner's index and a task's index that
            returns a model of the same architecture, whose head has the fresh
            weights. By default they come from the layer's own
            initializers, whose seeds are replaced.
        seed: Integer, of what is drawn without `build_model`. Drawn at random
            by default; a run that resumes has the same results with a seed
            only.
        skip: Integer, the number of tasks that begin before the one at whose
            beginning it acts. Defaults to `1`: it acts before the second.
        epochs: Integer, for `fit` only: it acts after `skip` times so many
            epochs. Defaults to `None`: at the beginning of a `fit`.
        reset_optimizer: `"all"`, `"changed"` (default: that of `h1` is new) or
            `"none"`: what of the optimizer starts anew. To set back all of it
            did harm in the paper.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras_plasticity.layers.Injectable(
                keras.Sequential(
                    [
                        keras.layers.Dense(5, activation="relu"),
                        keras.layers.Dense(3),
                    ]
                )
            ),
        ]
    )
    model.compile("adam", "mse")
    injection = keras_plasticity.callbacks.PlasticityInjection(epochs=2, seed=0)
    model.fit(x, y, epochs=4, callbacks=[injection])  # After two of the four.
    ```

    References:

    - [Nikishin et al., 2023](https://arxiv.org/abs/2305.15555)
    """

    def __init__(
        self,
        build_model: Callable[[int, int], keras.Model] | None = None,
        seed: int | None = None,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "changed",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.build_model = check_build_model(build_model, optional=True)
        self.seed = validation.check_seed("seed", seed)

    def acts_on(self, occasion):
        return occasion == self.skip

    def on_boundary(self, model, learner, task, x, y):
        wrapped = _injectables(model)
        if not wrapped:
            raise ValueError(
                "`PlasticityInjection` needs a model whose head is a "
                "`keras_plasticity.layers.Injectable`. Received: the model "
                f"'{model.name}' with the layers "
                f"{[layer.name for layer in model.layers]}"
            )
        for each in wrapped:
            if any(np.any(ops.convert_to_numpy(v)) for v in each.old.weights):
                raise ValueError(
                    "Plasticity can be injected once into an `Injectable`: "
                    "there is no room for a second frozen layer. Received: the "
                    f"layer '{each.name}', into which it has been injected."
                )
        changed = []
        for each, fresh in zip(wrapped, self._fresh(model, learner, task)):
            new_layers.copy_weights(each.old, each.layer)
            new_layers.copy_weights(each.new, fresh)
            changed += new_layers.copy_weights(each.layer, fresh)
        return changed

    def _fresh(self, model, learner, task):
        """A layer with fresh weights for each of those to inject into."""
        wrapped = _injectables(model)
        if self.build_model is not None:
            new = self.build_model(learner, task)
            new_layers.check_alike(model, new)
            return [each.layer for each in _injectables(new)]
        seed = derived_seed(self.seed, type(self).__name__, learner, task)
        return [
            new_layers.new_layer(each.layer, derived_seed(seed, number))
            for number, each in enumerate(wrapped)
        ]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}


def _injectables(model):
    return [
        layer
        for layer in keras_compat.in_order(model)
        if isinstance(layer, Injectable)
    ]
