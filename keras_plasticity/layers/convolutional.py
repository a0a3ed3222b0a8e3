import keras

from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.weight_view import WeightView


class _ChannelLayer(PlasticLayer):
    """A plastic layer whose features and units are channels."""

    def feature_axis(self, inputs):
        return self._channel_axis(inputs)

    def unit_axis(self, outputs):
        return self._channel_axis(outputs)

    def _channel_axis(self, tensor):
        first = self.data_format == "channels_first"
        return 1 if first else len(tensor.shape) - 1


class _Conv(_ChannelLayer):
    def feature_view(self):
        shape = tuple(self.kernel.shape)
        rank = len(shape)
        # A group of units reads a group of features: the kernel has room for
        # the features of one group only, and the units in groups.
        shape = shape[:-1] + (self.groups, shape[-1] // self.groups)
        return WeightView(self.kernel, shape, (rank - 1, rank - 2))

    def fold_constant_into_bias(self, feature, constant):
        view = self.feature_view()
        outgoing = keras.ops.sum(
            view.take(feature), axis=tuple(range(self.rank))
        )
        bias = WeightView(
            self.bias, (self.groups, self.filters // self.groups), (0,)
        )
        group = feature // (view.size // self.groups)
        constant = keras.ops.cast(constant, outgoing.dtype)
        bias.assign(group, bias.take(group) + constant * outgoing)


class _ConvTranspose(_ChannelLayer):
    # Its kernel has the units before the features.

    def unit_view(self):
        return super().feature_view()

    def feature_view(self):
        return super().unit_view()

    def check_folds_constants(self, producer):
        raise ValueError(
            f"`transfer_mean=True` is not defined for layer '{self.name}': "
            "what a constant input contributes to a transposed convolution "
            "depends on the position. Set `transfer_mean=False`."
        )


class _DepthwiseConv(_ChannelLayer):
    def unit_view(self):
        shape = tuple(self.kernel.shape)
        rank = len(shape)
        return WeightView(self.kernel, shape, (rank - 2, rank - 1))

    def unit_initializer(self):
        return self.depthwise_initializer

    def fold_constant_into_bias(self, feature, constant):
        view = self.feature_view()
        outgoing = keras.ops.sum(
            view.take(feature), axis=tuple(range(self.rank))
        )
        bias = WeightView(self.bias, (view.size, self.depth_multiplier), (0,))
        constant = keras.ops.cast(constant, outgoing.dtype)
        bias.assign(feature, bias.take(feature) + constant * outgoing)


class _SeparableConv(_ChannelLayer):
    # Two kernels: the pointwise one makes the units, the depthwise one reads
    # the features.

    def unit_view(self):
        shape = tuple(self.pointwise_kernel.shape)
        return WeightView(self.pointwise_kernel, shape, (len(shape) - 1,))

    def feature_view(self):
        shape = tuple(self.depthwise_kernel.shape)
        return WeightView(self.depthwise_kernel, shape, (len(shape) - 2,))

    def unit_initializer(self):
        return self.pointwise_initializer

    def fold_variables(self):
        return [*super().fold_variables(), self.pointwise_kernel]

    def fold_constant_into_bias(self, feature, constant):
        depthwise = keras.ops.sum(
            self.feature_view().take(feature), axis=tuple(range(self.rank))
        )
        channels = self.feature_view().size
        pointwise = WeightView(
            self.pointwise_kernel,
            (channels, self.depth_multiplier, self.filters),
            (0,),
        ).take(feature)
        outgoing = keras.ops.matmul(depthwise, pointwise)
        constant = keras.ops.cast(constant, outgoing.dtype)
        self.bias.assign_add(constant * outgoing)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv1D(_Conv, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` whose output channels can be replaced.

    It computes what `keras.layers.Conv1D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv1D`:
            `filters`, `kernel_size`, `strides`, `padding`, `groups`, ....

    Call arguments:
        inputs: 3D tensor of the layer's `data_format`.

    Returns:
        3D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((128, 8)),
            keras_plasticity.layers.Conv1D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv2D(_Conv, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` whose output channels can be replaced.

    It computes what `keras.layers.Conv2D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv2D`:
            `filters`, `kernel_size`, `strides`, `padding`, `groups`, ....

    Call arguments:
        inputs: 4D tensor of the layer's `data_format`.

    Returns:
        4D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras_plasticity.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv3D(_Conv, keras.layers.Conv3D):
    """A `keras.layers.Conv3D` whose output channels can be replaced.

    It computes what `keras.layers.Conv3D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv3D`:
            `filters`, `kernel_size`, `strides`, `padding`, `groups`, ....

    Call arguments:
        inputs: 5D tensor of the layer's `data_format`.

    Returns:
        5D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16, 16, 16, 1)),
            keras_plasticity.layers.Conv3D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv1DTranspose(_ConvTranspose, keras.layers.Conv1DTranspose):
    """A `keras.layers.Conv1DTranspose` whose output channels can be replaced.

    It computes what `keras.layers.Conv1DTranspose` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv1DTranspose`:
            `filters`, `kernel_size`, `strides`, `padding`, ....

    Call arguments:
        inputs: 3D tensor of the layer's `data_format`.

    Returns:
        3D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((128, 8)),
            keras_plasticity.layers.Conv1DTranspose(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv2DTranspose(_ConvTranspose, keras.layers.Conv2DTranspose):
    """A `keras.layers.Conv2DTranspose` whose output channels can be replaced.

    It computes what `keras.layers.Conv2DTranspose` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv2DTranspose`:
            `filters`, `kernel_size`, `strides`, `padding`, ....

    Call arguments:
        inputs: 4D tensor of the layer's `data_format`.

    Returns:
        4D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras_plasticity.layers.Conv2DTranspose(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv3DTranspose(_ConvTranspose, keras.layers.Conv3DTranspose):
    """A `keras.layers.Conv3DTranspose` whose output channels can be replaced.

    It computes what `keras.layers.Conv3DTranspose` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, its activation what the consumer receives.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.Conv3DTranspose`:
            `filters`, `kernel_size`, `strides`, `padding`, ....

    Call arguments:
        inputs: 5D tensor of the layer's `data_format`.

    Returns:
        5D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16, 16, 16, 1)),
            keras_plasticity.layers.Conv3DTranspose(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class DepthwiseConv1D(_DepthwiseConv, keras.layers.DepthwiseConv1D):
    """A `keras.layers.DepthwiseConv1D` whose output channels can be replaced.

    It computes what `keras.layers.DepthwiseConv1D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel; it reads a single input channel.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.DepthwiseConv1D`:
            `kernel_size`, `strides`, `padding`, `depth_multiplier`, ....

    Call arguments:
        inputs: 3D tensor of the layer's `data_format`.

    Returns:
        3D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((128, 8)),
            keras_plasticity.layers.DepthwiseConv1D(3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class DepthwiseConv2D(_DepthwiseConv, keras.layers.DepthwiseConv2D):
    """A `keras.layers.DepthwiseConv2D` whose output channels can be replaced.

    It computes what `keras.layers.DepthwiseConv2D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel; it reads a single input channel.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.DepthwiseConv2D`:
            `kernel_size`, `strides`, `padding`, `depth_multiplier`, ....

    Call arguments:
        inputs: 4D tensor of the layer's `data_format`.

    Returns:
        4D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras_plasticity.layers.DepthwiseConv2D(3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SeparableConv1D(_SeparableConv, keras.layers.SeparableConv1D):
    """A `keras.layers.SeparableConv1D` whose output channels can be replaced.

    It computes what `keras.layers.SeparableConv1D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, made by the pointwise kernel.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.SeparableConv1D`:
            `filters`, `kernel_size`, `strides`, `depth_multiplier`, ....

    Call arguments:
        inputs: 3D tensor of the layer's `data_format`.

    Returns:
        3D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((128, 8)),
            keras_plasticity.layers.SeparableConv1D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SeparableConv2D(_SeparableConv, keras.layers.SeparableConv2D):
    """A `keras.layers.SeparableConv2D` whose output channels can be replaced.

    It computes what `keras.layers.SeparableConv2D` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights.
    A unit is an output channel, made by the pointwise kernel.
    See `keras_plasticity.layers.Dense` for the statistics it carries.

    Args:
        *args, **kwargs: The arguments of `keras.layers.SeparableConv2D`:
            `filters`, `kernel_size`, `strides`, `depth_multiplier`, ....

    Call arguments:
        inputs: 4D tensor of the layer's `data_format`.

    Returns:
        4D tensor of the layer's `data_format`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras_plasticity.layers.SeparableConv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """
