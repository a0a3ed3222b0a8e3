from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.functional.penalties import orthogonality_gradient
from keras_plasticity.optimizers.layer_weights import as_matrix
from keras_plasticity.optimizers.layer_weights import is_gain
from keras_plasticity.optimizers.layer_weights import is_kernel
from keras_plasticity.optimizers.penalty_optimizer import PenaltyOptimizer
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.validation import check_positive


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ParsevalRegularization(PenaltyOptimizer):
    """Optimizer wrapper with a penalty on weights of units that are not
    orthogonal.

    Each kernel, as a matrix `W` of one column of incoming weights a unit, adds

    `strength * sum((W^T W - scale * I)**2)`

    to the loss. The penalty is zero where the units' weights are orthogonal
    and of squared length `scale`, which takes as many inputs as units. The
    kernel of a convolution has the shape `(positions * channels, units)`. The
    gain `g` of a normalization layer adds `strength * sum((g**2 - scale)**2)`.
    Biases, offsets and embeddings are free.

    The gradient, `4 * strength * W (W^T W - scale * I)`, is added to that of
    the loss, and goes through the inner optimizer with it. For steps along it
    that do not, see `keras_plasticity.optimizers.DecoupledOrthogonality`.

    The output layer is a layer as any other; `exclude` leaves it out.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras. Defaults to
            `0.001`.
        scale: Float, positive, or a schedule of Keras. Defaults to `1.0`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ParsevalRegularization(
        keras.optimizers.Adam(1e-3), strength=1e-3
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Chung et al., 2024](https://arxiv.org/abs/2412.07224)
    """

    scale = Hyperparameter(check_positive, schedules=True)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule = 0.001,
        scale: float | Schedule = 1.0,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, strength, exclude, name, **kwargs)
        self.scale = scale

    def acts_on(self, variable):
        return is_kernel(variable) or is_gain(variable)

    def penalty_gradient(self, weight):
        value = at_least_float32(weight.value)
        if is_gain(weight):
            return 4.0 * value * (ops.square(value) - self.now("scale"))
        gradient = orthogonality_gradient(as_matrix(value), self.now("scale"))
        return ops.reshape(gradient, weight.shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings("scale")}
