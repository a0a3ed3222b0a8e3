import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import validation
from keras_plasticity.layers import axes


@keras.saving.register_keras_serializable(package="keras_plasticity")
class InputNormalization(keras.layers.Layer):
    """Normalizes inputs by the moments of all examples seen in training.

    For each feature, with the mean and the variance of all examples of the
    training so far, those of the present batch included:

    ```
    y = (x - mean) / sqrt(variance + epsilon)
    ```

    A batch may have a single example. Of the very first example alone the
    variance is 0, and so is the output. The moments are updated by each call
    in training, batch by batch (`n` is the number of examples seen before the
    batch, `b` that of the batch, of which `batch_mean` and `batch_variance`
    are the moments):

    ```
    step_size = b / (n + b)
    change = batch_mean - mean
    variance <- variance + step_size * (
        batch_variance + (1 - step_size) * change**2 - variance
    )
    mean <- mean + step_size * change
    ```

    So they are those of all examples at once, however they were batched, but
    for rounding. With a `momentum` below 1 they forget: of examples that come
    one at a time, each counts `momentum` times as much as the next. A batch
    counts as much as its examples would one at a time, and all of them alike:
    `step_size = (1 - momentum**b) / (1 - momentum**(n + b))`. That may be
    wanted in streams whose inputs change.

    A feature that is the same in `n` examples, one at a time, and then another
    one becomes as large as `sqrt(n)`, with a `momentum` below 1 at most
    `sqrt(momentum / (1 - momentum))`: with features that hardly ever change, a
    network may diverge.

    No gradient goes through the moments. In inference, and with
    `trainable=False`, they are used and do not change; before any training the
    layer returns its inputs. Positions, such as the pixels of an image of
    which `axis` counts the channels, count like examples. A mask is passed on
    but not used. On several replicas of a `tf.distribute` strategy the batch
    is that of all replicas together.

    It is meant for what enters a network. A unit that is replaced would take
    over the moments of the old one, so it is refused between replaceable units
    and the layer that reads them; there
    `keras_plasticity.layers.OnlineNormalization` is at home.

    What Keras has for this is different: `keras.layers.Normalization` takes its
    moments from data that are there before the training (`adapt`), and
    `keras.layers.BatchNormalization` normalizes by the moments of the present
    batch while it trains, which of one example are of no use, and keeps
    running ones, which forget, for inference.

    Args:
        axis: Integer or list of integers, the axes that count the features:
            each index has its own moments. All other axes are averaged over.
            For images `-1`, with the channels last, normalizes each channel,
            and `[1, 2, 3]` each pixel. Defaults to `-1`.
        momentum: Float in (0, 1], by how much an example counts less than the
            next one. Defaults to `1.0`: all count the same.
        epsilon: Positive float, added to the variance. Defaults to `1e-5`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean, whether to train.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If `axis` names that of the batch, one that the inputs do
            not have, or one twice; if the number of features is not known; or
            if another argument is out of range.

    Attributes:
        mean: Variable of the lengths of the axes in `axis`, starts at 0.
        variance: Variable of the same shape, starts at 1 until there are
            examples.
        num_examples: Variable, a scalar: how many have been seen. It is
            float32, which counts exactly up to 2**24 = 16.8 million. From
            there on single examples leave it as it is, and the moments forget
            what was longer ago than that.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.InputNormalization(),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Chan et al., 1983](https://doi.org/10.1080/00031305.1983.10483115),
        moments of several parts
    - [Elsayed et al., 2024](https://arxiv.org/abs/2410.14606), running
        normalization of a stream of observations
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float = 1.0,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis = axes.check_axes("axis", axis)
        self.momentum = validation.check_in_interval(
            "momentum", momentum, "(0, 1]"
        )
        self.epsilon = validation.check_positive("epsilon", epsilon)
        self.supports_masking = True

    def build(self, input_shape):
        rank = len(input_shape)
        named = self.axis if isinstance(self.axis, list) else [self.axis]
        sizes = {
            axes.resolve(axis, input_shape): axes.known_size(axis, input_shape)
            for axis in named
        }
        if len(sizes) < len(named):
            raise ValueError(
                "`axis` must name each axis once. Received: "
                f"axis={self.axis}, input_shape={input_shape}"
            )
        sizes = dict(sorted(sizes.items()))
        # In float32 for any dtype policy: half precision would lose counts.
        self.mean, self.variance, self.num_examples = (
            self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                trainable=False,
                autocast=False,
            )
            for name, shape, initializer in (
                ("mean", tuple(sizes.values()), "zeros"),
                ("variance", tuple(sizes.values()), "ones"),
                ("num_examples", (), "zeros"),
            )
        )
        self._others = [i for i in range(rank) if i not in sizes]
        self._along = [sizes.get(i, 1) for i in range(rank)]
        self.input_spec = keras.InputSpec(ndim=rank, axes=sizes)

    def call(self, inputs, training=None):
        x = ops.cast(inputs, "float32")
        mean, variance = self.mean.value, self.variance.value
        if training and self.trainable:
            mean, variance = self._update_moments(ops.stop_gradient(x))
        scale = ops.rsqrt(variance + self.epsilon)
        y = (x - self._broadcast(mean)) * self._broadcast(scale)
        return ops.cast(y, self.compute_dtype)

    def _update_moments(self, x):
        """Takes in a batch; returns the new mean and variance."""
        size = x.shape[0] or ops.shape(x)[0]
        size, total = backend.sum_over_replicas(
            [ops.cast(size, "float32"), ops.sum(x, axis=self._others)]
        )
        divisor = ops.maximum(size, 1.0) * _num_positions(x, self._others)
        batch_mean = total / divisor
        # About that mean, so that large inputs do not lose what they differ in.
        square = ops.square(x - self._broadcast(batch_mean))
        (total,) = backend.sum_over_replicas(
            [ops.sum(square, axis=self._others)]
        )
        batch_variance = total / divisor
        step_size, num_examples = self._step_size(size)
        change = batch_mean - self.mean.value
        between = (1.0 - step_size) * ops.square(change)
        variance = self.variance.value + step_size * (
            batch_variance + between - self.variance.value
        )
        mean = self.mean.value + step_size * change
        self.num_examples.assign(num_examples)
        self.variance.assign(variance)
        self.mean.assign(mean)
        return mean, variance

    def _step_size(self, size):
        """The weight of a batch, and the number of examples with it."""
        num_examples = self.num_examples.value + size
        if self.momentum == 1.0:
            # The batch may be empty, and the first one.
            return size / ops.maximum(num_examples, 1.0), num_examples
        log = math.log(self.momentum)
        total = ops.expm1(log * ops.maximum(num_examples, 1.0))
        return ops.expm1(log * size) / total, num_examples

    def _broadcast(self, values):
        """Values of each feature, to be combined with the inputs."""
        return ops.reshape(values, self._along)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


def _num_positions(x, others):
    """How many elements of an example are averaged over."""
    sizes = [x.shape[axis] for axis in others[1:]]
    if None in sizes:
        shape = ops.shape(x)
        sizes = [ops.cast(shape[axis], "float32") for axis in others[1:]]
    return math.prod(sizes)
