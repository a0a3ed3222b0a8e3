import keras

from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.weight_view import WeightView


class _ChannelLayer(PlasticLayer):
    """A plastic layer whose features and units are channels."""

    def feature_axes(self, inputs):
        return self._channel_axes(inputs)

    def unit_axes(self, outputs):
        return self._channel_axes(outputs)

    def _channel_axes(self, tensor):
        first = self.data_format == "channels_first"
        return (1 if first else len(tensor.shape) - 1,)


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

    def feature_initializer(self):
        return self.depthwise_initializer

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


_DOCSTRING = """A `keras.layers.{name}` whose output channels can be replaced.

It computes what `keras.layers.{name}` computes and takes the same
arguments; with a plain Keras optimizer it trains to the same weights.
A unit is an output channel{unit}.
Its activation is what the consumer receives. See
`keras_plasticity.layers.Dense` for the statistics it carries.

Args:
    *args: The positional arguments of `keras.layers.{name}`.
    replaceable: Boolean, whether the units may be replaced. Defaults to `True`.
    **kwargs: All other arguments of `keras.layers.{name}`:
        {arguments},
        `data_format`, `activation`, ....

Call arguments:
    inputs: {dimensions}D tensor of shape
        `(batch_size, {sizes}, channels)`, or
        `(batch_size, channels, {sizes})` with
        `data_format="channels_first"`.

Returns:
    {dimensions}D tensor of shape
    `(batch_size, {new_sizes}, {units})`, or
    `(batch_size, {units}, {new_sizes})`.

Example:

```python
model = keras.Sequential(
    [
        keras.Input({input_shape}),
        keras_plasticity.layers.{name}({example}, activation="relu"),
        keras.layers.Flatten(),
        keras_plasticity.layers.Dense(10),
    ]
)
```

References:

- [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
"""
_SIZES = {
    1: ["steps"],
    2: ["height", "width"],
    3: ["depth", "height", "width"],
}
_INPUT_SHAPES = {1: (128, 8), 2: (32, 32, 3), 3: (16, 16, 16, 1)}


def _documented(rank, unit="", units="filters", arguments=(), example="16, 3"):
    """Class decorator that fills in the docstring of a public layer.

    Args:
        rank: Integer, the number of spatial axes.
        unit: String, what there is to say of a unit besides.
        units: String, the number of units.
        arguments: Names of the most common arguments.
        example: String, the arguments in the example.
    """

    def document(layer_class):
        layer_class.__doc__ = _DOCSTRING.format(
            name=layer_class.__name__,
            unit=unit,
            units=units,
            arguments=", ".join(f"`{name}`" for name in arguments),
            example=example,
            dimensions=rank + 2,
            sizes=", ".join(_SIZES[rank]),
            new_sizes=", ".join(f"new_{size}" for size in _SIZES[rank]),
            input_shape=_INPUT_SHAPES[rank],
        )
        return layer_class

    return document


_CONV = {"arguments": ("filters", "kernel_size", "strides", "groups")}
_CONV_TRANSPOSE = {"arguments": ("filters", "kernel_size", "strides")}
_DEPTHWISE_CONV = {
    "unit": ", which reads a single input channel",
    "units": "channels * depth_multiplier",
    "arguments": ("kernel_size", "strides", "depth_multiplier"),
    "example": "3",
}
_SEPARABLE_CONV = {
    "unit": ", made by the pointwise kernel",
    "arguments": ("filters", "kernel_size", "strides", "depth_multiplier"),
}


@_documented(rank=1, **_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv1D(_Conv, keras.layers.Conv1D):
    pass


@_documented(rank=2, **_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv2D(_Conv, keras.layers.Conv2D):
    pass


@_documented(rank=3, **_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv3D(_Conv, keras.layers.Conv3D):
    pass


@_documented(rank=1, **_CONV_TRANSPOSE)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv1DTranspose(_ConvTranspose, keras.layers.Conv1DTranspose):
    pass


@_documented(rank=2, **_CONV_TRANSPOSE)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv2DTranspose(_ConvTranspose, keras.layers.Conv2DTranspose):
    pass


@_documented(rank=3, **_CONV_TRANSPOSE)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class Conv3DTranspose(_ConvTranspose, keras.layers.Conv3DTranspose):
    pass


@_documented(rank=1, **_DEPTHWISE_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class DepthwiseConv1D(_DepthwiseConv, keras.layers.DepthwiseConv1D):
    pass


@_documented(rank=2, **_DEPTHWISE_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class DepthwiseConv2D(_DepthwiseConv, keras.layers.DepthwiseConv2D):
    pass


@_documented(rank=1, **_SEPARABLE_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class SeparableConv1D(_SeparableConv, keras.layers.SeparableConv1D):
    pass


@_documented(rank=2, **_SEPARABLE_CONV)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class SeparableConv2D(_SeparableConv, keras.layers.SeparableConv2D):
    pass
