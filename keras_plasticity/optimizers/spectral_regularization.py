from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.functional.penalties import spectral_norm_and_gradient
from keras_plasticity.optimizers.layer_weights import as_matrix
from keras_plasticity.optimizers.layer_weights import is_bias
from keras_plasticity.optimizers.layer_weights import is_gain
from keras_plasticity.optimizers.layer_weights import is_kernel
from keras_plasticity.optimizers.layer_weights import is_offset
from keras_plasticity.optimizers.layer_weights import num_outputs
from keras_plasticity.optimizers.penalty_optimizer import PenaltyOptimizer
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer


def _check_exponent(name, value):
    return check_in_interval(name, value, "[1, inf)")


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SpectralRegularization(PenaltyOptimizer):
    """Optimizer wrapper with a penalty on the largest singular values.

    It adds to the loss `strength` times the sum of

    - `(s**exponent - target)**2` for each kernel, where `s` is the largest
        singular value of the kernel as a matrix of one column a unit (that of
        a convolution has the shape `(positions * channels, units)`);
    - `sum(b**2)` for each bias, and each offset of a normalization layer;
    - `sum((g - 1)**2)` for each gain of a normalization layer.

    Embeddings are free. The output layer is a layer as any other; `exclude`
    leaves it out.

    The singular value is computed by `num_iterations` power iterations, see
    `keras_plasticity.functional.spectral_norm_and_gradient`. Each kernel has a
    random start vector of its own, which is the same in all updates and runs.
    The gradient goes through the iterations. It is added to that of the loss,
    and goes through the inner optimizer with it.

    The paper pulls the values to 1, as is the default here. The public code of
    Prakash et al., whose kind of power iteration this is, has `target=2.0`
    with `exponent=2`, so that values go to the square root of 2.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras. Defaults to
            `0.001`.
        exponent: Float of at least 1, or a schedule of Keras. Defaults to
            `2.0`.
        target: Float, not negative, or a schedule of Keras. Defaults to `1.0`.
        num_iterations: Positive integer. Defaults to `10`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.SpectralRegularization(
        keras.optimizers.SGD(1e-2), strength=1e-3
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Lewandowski et al., 2024](https://arxiv.org/abs/2406.06811)
    - [Prakash et al., 2025](https://arxiv.org/abs/2509.22335)
    """

    exponent = Hyperparameter(_check_exponent, schedules=True)
    target = Hyperparameter(check_not_negative, schedules=True)
    num_iterations = Setting(check_positive_integer)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule = 0.001,
        exponent: float | Schedule = 2.0,
        target: float | Schedule = 1.0,
        num_iterations: int = 10,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, strength, exclude, name, **kwargs)
        self.exponent = exponent
        self.target = target
        self.num_iterations = num_iterations
        # By the id of a kernel.
        self._starts = {}

    def acts_on(self, variable):
        kinds = (is_kernel, is_bias, is_gain, is_offset)
        return any(is_kind(variable) for is_kind in kinds)

    def add_state(self, weights):
        for number, kernel in enumerate(filter(is_kernel, weights)):
            self._starts[id(kernel)] = self.add_variable(
                (num_outputs(kernel),),
                initializer=_random_start(number),
                name=f"start_{number}",
            )

    def penalty_gradient(self, weight):
        value = at_least_float32(weight.value)
        if not is_kernel(weight):
            return 2.0 * (value - 1.0 if is_gain(weight) else value)
        norm, gradient = spectral_norm_and_gradient(
            as_matrix(value),
            self._starts[id(weight)].value,
            self.num_iterations,
        )
        exponent = ops.cast(self.now("exponent"), value.dtype)
        target = ops.cast(self.now("target"), value.dtype)
        slope = (
            2.0
            * (ops.power(norm, exponent) - target)
            * exponent
            * ops.power(norm, exponent - 1.0)
        )
        return ops.reshape(slope * gradient, weight.shape)

    def get_config(self) -> dict[str, Any]:
        names = ("exponent", "target", "num_iterations")
        return {**super().get_config(), **self.settings(*names)}


def _random_start(number):
    def initializer(shape, dtype=None):
        values = np.random.default_rng(number).standard_normal(shape)
        return ops.convert_to_tensor(values.astype("float32"), dtype)

    return initializer
