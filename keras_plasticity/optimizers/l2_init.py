from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity.functional.penalties import DISTANCES
from keras_plasticity.functional.penalties import distance_gradient
from keras_plasticity.optimizers.layer_weights import is_embedding
from keras_plasticity.optimizers.layer_weights import kernel_of
from keras_plasticity.optimizers.penalty_optimizer import PenaltyOptimizer
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_choice


def _check_distance(name, value):
    return check_choice(name, value, DISTANCES)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class L2Init(PenaltyOptimizer):
    """Optimizer wrapper that pulls weights towards their initial values.

    It is L2 Init, or regenerative regularization. The loss has the penalty

    `strength * 1/2 * sum((w - w0)**2)`,

    where `w0` are the values that the weights have when the optimizer is built
    on the model. Other distances are `strength * sum(|w - w0|)`, L1 Init, and
    `strength * sum(huber(w - w0))` with
    `huber(d) = 1/2 * d**2 if |d| <= 1 else |d| - 1/2`.

    The gradient of the penalty is added to that of the loss, and goes through
    the inner optimizer with it: Adam rescales both alike.

    It acts on kernels, biases and embeddings, those of the output layer
    included. As in the authors' code, normalization layers are left out, and
    so is any layer of weights without a kernel.

    Where a method that wraps this one replaces a unit, the initial values of
    the unit are its new weights from then on.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras. Defaults to
            `0.01`.
        distance: `"l2"`, `"l1"` or `"huber"`. Defaults to `"l2"`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.L2Init(
        keras.optimizers.Adam(1e-3), strength=1e-3
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Kumar et al., 2023](https://arxiv.org/abs/2308.11958)
    """

    distance = Setting(_check_distance)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule = 0.01,
        distance: str = "l2",
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, strength, exclude, name, **kwargs)
        self.distance = distance
        # By the id of a weight.
        self._initial = {}

    def choose(self, weights):
        return [
            weight
            for weight in weights
            if is_embedding(weight) or kernel_of(weight, weights) is not None
        ]

    def add_state(self, weights):
        for weight in weights:
            self._initial[id(weight)] = self.add_copy(weight, "initial")

    def penalty_gradient(self, weight):
        difference = weight.value - self._initial[id(weight)].value
        return distance_gradient(difference, self.distance)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings("distance")}
