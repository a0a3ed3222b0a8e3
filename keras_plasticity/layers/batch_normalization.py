from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.units import backward_pass
from keras_plasticity.units.backward_pass import UNIT

# In the place of what travelling statistics are multiplied by: the layer is to
# go on with these. No sum of gradients makes this number.
_PUT_BACK = -12345.0 * UNIT


@keras.saving.register_keras_serializable(package="keras_plasticity")
class BatchNormalization(keras.layers.BatchNormalization):
    """A `keras.layers.BatchNormalization` with statistics an optimizer can see.

    It computes what `keras.layers.BatchNormalization` computes and takes the
    same arguments, but for `renorm`. With
    `keras_plasticity.optimizers.HareAndTortoise` the moving mean and the moving
    variance are averaged and put back like weights, as the method's authors do.
    With other optimizers it is Keras' layer.

    An optimizer is given what is trainable, and on JAX nothing else. So the
    statistics travel with the backward pass, by a variable `moving_statistics`
    of shape `(3, features)`, and return by it. It is no weight: see
    `keras_plasticity.weights_of`. `moving_mean` and `moving_variance` are what
    the last batch of training has left. Where the optimizer has put back
    others since then, these count: `moving_moments()` tells.

    Args:
        *args: Arguments of `keras.layers.BatchNormalization`.
        **kwargs: Arguments of `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean, whether to normalize by the moments of the batch.
        mask: Boolean tensor, the positions that count.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If `renorm` is true, or if an argument is one that Keras
            refuses.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(10),
            keras_plasticity.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(
        keras_plasticity.optimizers.HareAndTortoise(keras.optimizers.Adam()),
        loss="mse",
    )
    ```

    References:

    - [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167)
    - [Lee et al., 2024](https://arxiv.org/abs/2406.02596), Hare and Tortoise
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if getattr(self, "renorm", False):
            raise ValueError(
                "`renorm` must be `False` in a layer whose statistics an "
                "optimizer averages: they are a mean and a variance. Use "
                "`keras.layers.BatchNormalization`. Received: renorm=True"
            )

    def build(self, input_shape):
        super().build(input_shape)

        def initial_rows(shape, dtype=None):
            return ops.cast(self._rows(), dtype or "float32")

        self.moving_statistics = backward_pass.add_overwritten_weight(
            self,
            "moving_statistics",
            (3, input_shape[self.axis]),
            initial_rows,
        )
        self.moving_statistics.is_moving_statistic = True

    def _rows(self):
        """What travels: mean, variance, and what both are multiplied by."""
        mean = ops.cast(self.moving_mean, "float32")
        variance = ops.cast(self.moving_variance, "float32")
        return UNIT * ops.stack([mean, variance, ops.ones_like(mean)])

    def moving_moments(self):
        """The moving mean and the moving variance, as the layer uses them.

        Returns:
            Tuple of two tensors of shape `(features,)`.
        """
        mean, variance, scale = ops.unstack(
            ops.convert_to_tensor(self.moving_statistics), 3
        )
        is_put_back = scale == _PUT_BACK
        return (
            ops.where(is_put_back, mean / UNIT, self.moving_mean.value),
            ops.where(is_put_back, variance / UNIT, self.moving_variance.value),
        )

    def call(self, inputs, training=None, mask=None):
        mean, variance = self.moving_moments()
        if not training or not self.trainable:
            return self._normalize(inputs, mean, variance)
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        outputs = super().call(inputs, training=training, mask=mask)
        new = ops.stop_gradient(self._rows())
        values = [self.moving_statistics.value, new]
        return backend.identity(outputs, values, _carry)

    def _normalize(self, inputs, mean, variance):
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        offset, scale = (
            None if weight is None else ops.cast(weight, dtype)
            for weight in (self.beta, self.gamma)
        )
        outputs = ops.batch_normalization(
            ops.cast(inputs, dtype),
            ops.cast(mean, dtype),
            ops.cast(variance, dtype),
            axis=self.axis,
            offset=offset,
            scale=scale,
            epsilon=self.epsilon,
        )
        return ops.cast(outputs, self.compute_dtype)


def _carry(upstream, inputs, values):
    """A backward pass that hands the second value to the first variable."""
    _, new = values
    return upstream, new, ops.zeros_like(new)


def received(rows, before):
    """Statistics as they have travelled, multiplied by `UNIT` and nothing else.

    Args:
        rows: Tensor of shape `(3, features)`, multiplied by whatever all
            gradients were multiplied by. On JAX zeros where the loss does not
            depend on the layer.
        before: Tensor of the same shape, what is returned then.

    Returns:
        Tensor of the same shape.
    """
    has_come = rows[2] > 0
    scale = ops.where(has_come, rows[2], 1.0)
    return ops.where(has_come, rows * (UNIT / scale), before)


def put_back(rows):
    """What a layer has to find that is to go on with other statistics.

    Args:
        rows: Tensor of shape `(3, features)`, as `received` returns.

    Returns:
        Tensor of the same shape.
    """
    return ops.stack([rows[0], rows[1], ops.full_like(rows[2], _PUT_BACK)])
