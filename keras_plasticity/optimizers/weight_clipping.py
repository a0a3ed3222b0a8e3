import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity.optimizers.layer_weights import is_bias
from keras_plasticity.optimizers.layer_weights import is_gain
from keras_plasticity.optimizers.layer_weights import is_kernel
from keras_plasticity.optimizers.layer_weights import is_offset
from keras_plasticity.optimizers.layer_weights import kernel_of
from keras_plasticity.optimizers.layer_weights import num_inputs
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_positive


@keras.saving.register_keras_serializable(package="keras_plasticity")
class WeightClipping(WeightOptimizer):
    """Optimizer wrapper that clips weights after each update.

    Each kernel and each bias becomes

    `clip(w, -bound, bound)` with `bound = kappa / sqrt(fan_in)`,

    where `fan_in` is the number of inputs of a unit of the layer: all axes of
    the kernel but the last, multiplied. With `kappa=1` that is the range of
    PyTorch's initial weights. Keras' default initializers draw larger ones,
    which the first update clips, not before. The inner optimizer's momentum
    stays as it is.

    Layers without a kernel, such as normalization and embeddings, are left
    alone. The authors' code clips a normalization layer by the bound of the
    kernel before it, and with it a gain of 1 to a small number. With
    `clip_normalization=True` it is done here, too: the kernel before is the
    last one in the order of the model's weights, and normalization layers
    before the first kernel are left alone. Their option to leave out the last
    layer is `exclude`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        kappa: Float, positive, or a schedule of Keras. The authors search from
            1 to 5. Defaults to `1.0`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.
        clip_normalization: Boolean, whether the scales and offsets of
            normalization layers are clipped. Defaults to `False`.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.WeightClipping(
        keras.optimizers.Adam(1e-3), kappa=2.0
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Elsayed et al., 2024](https://arxiv.org/abs/2407.01704)
    """

    kappa = Hyperparameter(check_positive, schedules=True)
    clip_normalization = Setting(check_boolean)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        kappa: float | Schedule = 1.0,
        exclude: Sequence[str] = (),
        name: str | None = None,
        clip_normalization: bool = False,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.kappa = kappa
        self.clip_normalization = clip_normalization
        # By the id of a weight.
        self._fan_in = {}

    def choose(self, weights):
        self._fan_in = {}
        chosen = []
        kernel_before = None
        for weight in weights:
            kernel = kernel_of(weight, weights)
            if is_kernel(weight):
                kernel_before = weight
            elif is_gain(weight) or is_offset(weight):
                kernel = kernel_before if self.clip_normalization else None
            elif not is_bias(weight):
                kernel = None
            if kernel is not None:
                self._fan_in[id(weight)] = num_inputs(kernel)
                chosen.append(weight)
        return chosen

    def before_update(self, weights):
        # As of this update, if it is a schedule.
        return self.now("kappa")

    def after_update(self, weights, gradients, before):
        for weight in weights:
            bound = before / math.sqrt(self._fan_in[id(weight)])
            bound = ops.cast(bound, weight.dtype)
            weight.assign(ops.clip(weight.value, -bound, bound))

    def get_config(self) -> dict[str, Any]:
        names = ("kappa", "clip_normalization")
        return {**super().get_config(), **self.settings(*names)}
