from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.functional.penalties import orthogonality_gradient
from keras_plasticity.optimizers.layer_weights import as_matrix
from keras_plasticity.optimizers.layer_weights import is_kernel
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_not_negative


def _check_step_size(name, value):
    return None if value is None else check_not_negative(name, value)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class DecoupledOrthogonality(WeightOptimizer):
    """Optimizer wrapper that makes kernels orthogonal after each update.

    With Adam inside it is AdamO. After the inner optimizer's update, on the
    gradients of the loss alone, each kernel, as a matrix `W` of one column of
    incoming weights a unit, makes a step of its own:

    `W <- W - step_size * strength * 4 * (W W^T W - W)`,

    which is gradient descent on `strength * sum((W^T W - I)**2)`. Neither the
    inner optimizer's moments nor its scaling by them have a part in it, as
    decoupled weight decay has none. The kernel of a convolution has the shape
    `(positions * channels, units)`; the paper's text on convolutions, and on
    reviving units, is not followed. Biases, normalization layers and
    embeddings are free.

    The paper starts from orthogonal kernels
    (`keras.initializers.Orthogonal`). Steps diverge where
    `step_size * strength` is not well below `0.25 / s**2`, with the largest
    singular value `s`.

    The output layer is a layer as any other; `exclude` leaves it out.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras. Defaults to
            `0.001`.
        step_size: Float, not negative. By default the learning rate that the
            inner optimizer has in the same update.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.DecoupledOrthogonality(
        keras.optimizers.Adam(1e-4), strength=1e-3
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [AdamO, 2026](https://arxiv.org/abs/2606.09762)
    """

    strength = Hyperparameter(check_not_negative, schedules=True)
    step_size = Setting(_check_step_size)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule = 0.001,
        step_size: float | None = None,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.strength = strength
        self.step_size = step_size

    def acts_on(self, variable):
        return is_kernel(variable)

    def before_update(self, weights):
        # Schedules are further on after the update.
        step_size = self.step_size
        if step_size is None:
            step_size = ops.convert_to_tensor(self.learning_rate)
        return step_size * self.now("strength")

    def after_update(self, weights, gradients, before):
        for weight in weights:
            value = at_least_float32(weight.value)
            gradient = orthogonality_gradient(as_matrix(value))
            gradient = ops.reshape(gradient, weight.shape)
            value = value - ops.cast(before, value.dtype) * gradient
            weight.assign(ops.cast(value, weight.dtype))

    def get_config(self) -> dict[str, Any]:
        names = ("strength", "step_size")
        return {**super().get_config(), **self.settings(*names)}
