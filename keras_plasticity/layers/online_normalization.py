from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import validation
from keras_plasticity.layers import axes
from keras_plasticity.units import backward_pass
from keras_plasticity.units.backward_pass import UNIT
from keras_plasticity.units.unit_statistics import sum_of_features


@keras.saving.register_keras_serializable(package="keras_plasticity")
class OnlineNormalization(keras.layers.Layer):
    """Normalizes by running statistics in both passes, at any batch size.

    Each feature is normalized by its running mean and variance before the
    batch, so that a batch may have a single example. That these depend on the
    weights is accounted for in the backward pass by two running error
    accumulators, `scale_error` and `shift_error`, which keep the gradient
    orthogonal, over time, to the normalized feature and to a constant.

    In training, with the decays `f` and `b` of the two passes, for one example
    `x` of a feature and the gradient `g` of its output `y`:

    ```
    y = (x - mean) / sqrt(variance + epsilon)
    variance <- f * variance + f * (1 - f) * (x - mean)**2
    mean     <- f * mean + (1 - f) * x

    h = g - (1 - b) * scale_error * y
    scale_error <- scale_error + h * y
    gradient of x = h / sqrt(variance + epsilon) - (1 - b) * shift_error
    shift_error <- shift_error + gradient of x
    ```

    Then `gamma` and `beta` are applied, and if `layer_scaling`, each example
    is divided by the root mean square of all its features, which keeps errors
    of the estimates from growing from layer to layer. When a unit is replaced,
    its new `gamma` and `beta` change that mean square, and so slightly the
    other features too.

    An example with several positions (images, sequences) contributes the means
    over its positions of `x`, of `h * y` and of the gradient, and their
    variance. A batch of `n` examples counts as one example with `n` times the
    positions, with `f` and `b` raised to the power `n`; all of its examples are
    normalized by the same statistics. On several replicas of a `tf.distribute`
    strategy the batch is that of all replicas together. A layer that is called
    several times in a step has the mean of the new errors.

    A mask is passed on but not used: masked positions count like all others.

    In inference, and with `trainable=False`, features are normalized by the
    running mean and variance, and nothing changes.

    The variables that hold the errors are marked `overwrite_with_gradient`,
    which makes them trainable variables that no optimizer descends on; they
    hold tiny multiples, with a count, as the statistics of plastic layers do:
    see `keras_plasticity.weights_of`. With gradient accumulation Keras'
    optimizers combine them by the maximum, which is wrong here: use larger
    batches instead. A loss scale multiplies the errors like gradients; for
    about `1 / (1 - b)` steps after it has changed, they are those of the old
    scale.

    Args:
        axis: Integer, the axis that counts the features. Defaults to `-1`.
        forward_decay: Float in [0, 1), of the running mean and variance.
            Defaults to `0.999`.
        backward_decay: Float in [0, 1), of the control of the gradient.
            Defaults to `0.99`.
        epsilon: Positive float, added to variances, and to the mean square
            of an example. Defaults to `1e-5`.
        center: Boolean, whether to add an offset `beta`. Defaults to `True`.
        scale: Boolean, whether to multiply by `gamma`. Defaults to `True`.
        layer_scaling: Boolean, whether to divide each example by the root
            mean square of its features. Defaults to `True`, as in the paper.
        beta_initializer: Initializer of `beta`. Defaults to `"zeros"`.
        gamma_initializer: Initializer of `gamma`. Defaults to `"ones"`.
        beta_regularizer: Optional regularizer of `beta`.
        gamma_regularizer: Optional regularizer of `gamma`.
        beta_constraint: Optional constraint of `beta`.
        gamma_constraint: Optional constraint of `gamma`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: If `axis` is that of the batch or not one of the inputs',
            the number of features is not known, or a decay or `epsilon` is
            out of range.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean, whether to train.

    Returns:
        Tensor of the shape of `inputs`.

    Attributes:
        moving_mean: Variable of shape `(features,)`, starts at 0.
        moving_variance: Variable of shape `(features,)`, starts at 1.
        scale_error: Tensor of shape `(features,)`, starts at 0.
        shift_error: Tensor of shape `(features,)`, starts at 0.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(100),
            keras_plasticity.layers.OnlineNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Chiley et al., 2019](https://arxiv.org/abs/1905.05894)
    """

    def __init__(
        self,
        axis: int = -1,
        forward_decay: float = 0.999,
        backward_decay: float = 0.99,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        layer_scaling: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis = axes.check_axis("axis", axis)
        self.forward_decay = validation.check_in_interval(
            "forward_decay", forward_decay, "[0, 1)"
        )
        self.backward_decay = validation.check_in_interval(
            "backward_decay", backward_decay, "[0, 1)"
        )
        self.epsilon = validation.check_positive("epsilon", epsilon)
        self.center = validation.check_boolean("center", center)
        self.scale = validation.check_boolean("scale", scale)
        self.layer_scaling = validation.check_boolean(
            "layer_scaling", layer_scaling
        )
        self.beta_initializer = _get("beta_initializer", beta_initializer)
        self.gamma_initializer = _get("gamma_initializer", gamma_initializer)
        self.beta_regularizer = _get("beta_regularizer", beta_regularizer)
        self.gamma_regularizer = _get("gamma_regularizer", gamma_regularizer)
        self.beta_constraint = _get("beta_constraint", beta_constraint)
        self.gamma_constraint = _get("gamma_constraint", gamma_constraint)
        self.gamma = None
        self.beta = None
        self.supports_masking = True

    def build(self, input_shape):
        rank = len(input_shape)
        size = axes.known_size(self.axis, input_shape)
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=(size,),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=(size,),
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        # In float32 like the errors, for any dtype policy.
        self.moving_mean, self.moving_variance = (
            self.add_weight(
                name=name,
                shape=(size,),
                initializer=initializer,
                dtype="float32",
                trainable=False,
                autocast=False,
            )
            for name, initializer in (
                ("moving_mean", "zeros"),
                ("moving_variance", "ones"),
            )
        )
        self._error_sums = [
            backward_pass.add_overwritten_weight(self, name, (size,))
            for name in ("scale_error_sum", "shift_error_sum")
        ]
        self._num_calls = backward_pass.add_overwritten_weight(
            self, "num_calls", (1,)
        )
        self.input_spec = keras.InputSpec(
            ndim=rank, axes={self.axis % rank: size}
        )

    @property
    def scale_error(self):
        return self._error(self._error_sums[0].value, self._num_calls.value)

    @property
    def shift_error(self):
        return self._error(self._error_sums[1].value, self._num_calls.value)

    def _error(self, total, num_calls):
        return total / ops.where(num_calls == 0.0, 1.0, num_calls)

    def call(self, inputs, training=None):
        rank = len(inputs.shape)
        shape = [1] * rank
        shape[self.axis] = -1

        def along_features(vector):
            if shape[-1] == -1:
                return vector
            return ops.reshape(vector, shape)

        x = ops.cast(inputs, "float32")
        deviation = x - along_features(self.moving_mean.value)
        stddev = ops.sqrt(self.moving_variance.value + self.epsilon)
        y = deviation / along_features(stddev)
        if training and self.trainable:
            size = x.shape[0] or ops.cast(ops.shape(x)[0], "float32")
            (size,) = backend.sum_over_replicas([size])
            y = self._control_gradient(y, stddev, size, along_features)
            self._update_moments(ops.stop_gradient(deviation), size)
        if self.gamma is not None:
            y = y * along_features(ops.cast(self.gamma, "float32"))
        if self.beta is not None:
            y = y + along_features(ops.cast(self.beta, "float32"))
        if self.layer_scaling:
            mean_square = ops.mean(
                ops.square(y), axis=list(range(1, rank)), keepdims=True
            )
            y = y * ops.rsqrt(mean_square + self.epsilon)
        return ops.cast(y, self.compute_dtype)

    def _means(self, values, size):
        """Means over the batches of all replicas, `size` examples."""
        axes = (self.axis % len(values[0].shape),)
        sums = [sum_of_features(value, axes) for value in values]
        return [
            total / ops.maximum(size, 1.0)
            for total in backend.sum_over_replicas(sums)
        ]

    def _update_moments(self, deviation, size):
        """Updates the running mean and variance from the deviations."""
        mean, square = self._means([deviation, ops.square(deviation)], size)
        step_size = 1.0 - self.forward_decay**size
        # The variance about the new mean: the batch's second moment about the
        # old mean is corrected for the distance that the mean moves.
        self.moving_variance.assign_add(
            step_size
            * (square - step_size * mean**2 - self.moving_variance.value)
        )
        self.moving_mean.assign_add(step_size * mean)

    def _control_gradient(self, y, stddev, size, along_features):
        """Returns `y`; its backward pass corrects the gradient."""
        rate = 1.0 - self.backward_decay**size

        def backward(upstream, y, values):
            stddev, *sums, num_calls = values
            scale_error, shift_error = (
                self._error(total, num_calls) for total in sums
            )
            upstream = upstream - along_features(rate * scale_error) * y
            # The division by the standard deviation is yet to come.
            result = upstream - along_features(rate * shift_error * stddev)
            scale_change, shift_change = self._means(
                [upstream * y, result], size
            )
            return (
                result,
                ops.zeros_like(stddev),
                UNIT * (scale_error + scale_change),
                UNIT * (shift_error + shift_change / stddev),
                UNIT * ops.ones_like(num_calls),
            )

        sums = [variable.value for variable in self._error_sums]
        values = [stddev, *sums, self._num_calls.value]
        return backend.identity(y, values, backward)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "forward_decay": self.forward_decay,
            "backward_decay": self.backward_decay,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "layer_scaling": self.layer_scaling,
            "beta_initializer": keras.initializers.serialize(
                self.beta_initializer
            ),
            "gamma_initializer": keras.initializers.serialize(
                self.gamma_initializer
            ),
            "beta_regularizer": keras.regularizers.serialize(
                self.beta_regularizer
            ),
            "gamma_regularizer": keras.regularizers.serialize(
                self.gamma_regularizer
            ),
            "beta_constraint": keras.constraints.serialize(
                self.beta_constraint
            ),
            "gamma_constraint": keras.constraints.serialize(
                self.gamma_constraint
            ),
        }


def _get(name, value):
    """The Keras object that an argument names."""
    kind = name.partition("_")[2]
    return validation.check_deserialized(
        name,
        value,
        getattr(keras, f"{kind}s").get,
        f"a Keras {kind} or the name of one",
        optional=kind != "initializer",
    )
