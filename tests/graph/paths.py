"""Small models, one for each kind of way from a plastic layer to its consumers.

Each has a plastic layer named "producer". `insert` is called on its output,
so that a test can put something between it and all that follows.
"""

import dataclasses
import functools
from collections.abc import Callable

import keras
from keras import ops

from keras_plasticity import layers


@dataclasses.dataclass(frozen=True)
class Path:
    """One way from the units of a layer to those who read them.

    Attributes:
        name: String.
        build: Function from `insert` to a built model.
        consumers: Names of the plastic layers that read the producer.
        parameters: Names of the layers on the way that have parameters for
            each unit.
        skipped: Names of the plastic layers whose units are not replaced
            because nobody reads them.
        merged: Names of those whose units are not replaced because they
            cannot be told from others.
        first: Boolean, whether features are counted by the axis after the
            batch, not by the last one.
        axes: Dict of such axes, for layers that are different.
        features: Dict from the name of a layer to the unit of each of its
            input features, -1 for none. Only for those that a change of any
            unit reaches, so that no experiment can tell.
        mixes: Boolean, whether the value of a unit changes what is read of
            the others, as in a layer normalization.
        own_means: Boolean, whether the features of a unit are computed from it
            in different ways, so that each has a mean of its own.
    """

    name: str
    build: Callable
    consumers: tuple = ("head",)
    parameters: tuple = ()
    skipped: tuple = ("head",)
    merged: tuple = ()
    first: bool = False
    axes: dict = dataclasses.field(default_factory=dict)
    features: dict = dataclasses.field(default_factory=dict)
    mixes: bool = False
    own_means: bool = False


# The layers. On JAX random initializers compile for each new shape, which is
# slow. All weights are set before a test starts; this is what new ones are.
NEW_WEIGHT = 0.3


def _plastic(kind, *initializers):
    new = keras.initializers.Constant(NEW_WEIGHT)
    initializers = initializers or ("kernel_initializer",)
    return functools.partial(
        getattr(layers, kind), **dict.fromkeys(initializers, new)
    )


_SEPARABLE = ("depthwise_initializer", "pointwise_initializer")

Conv1D = _plastic("Conv1D")
Conv1DTranspose = _plastic("Conv1DTranspose")
Conv2D = _plastic("Conv2D")
Conv2DTranspose = _plastic("Conv2DTranspose")
Conv3D = _plastic("Conv3D")
Conv3DTranspose = _plastic("Conv3DTranspose")
Dense = _plastic("Dense")
DepthwiseConv1D = _plastic("DepthwiseConv1D", "depthwise_initializer")
DepthwiseConv2D = _plastic("DepthwiseConv2D", "depthwise_initializer")
EinsumDense = _plastic("EinsumDense")
SeparableConv1D = _plastic("SeparableConv1D", *_SEPARABLE)
SeparableConv2D = _plastic("SeparableConv2D", *_SEPARABLE)

_relu = keras.layers.ReLU


# The ways to put a model together.


def _chain(name, shape, make_layers, **kwargs):
    """Layers or functions one after another, and a head at the end."""

    def build(insert):
        x = inputs = keras.Input(shape)
        for layer in make_layers():
            x = layer(x)
            if getattr(layer, "name", None) == "producer":
                x = insert(x)
        return keras.Model(inputs, Dense(3, name="head")(x))

    return Path(name, build, **kwargs)


_VECTOR = (5,)
_SEQUENCE = (3, 5)


def _after_dense(name, make_layers, shape=_VECTOR, activation=None, **kwargs):
    """Something between a dense layer and the head."""

    def make():
        producer = Dense(4, activation=activation, name="producer")
        return [producer, *make_layers()]

    return _chain(f"dense-{name}", shape, make, **kwargs)


def _operation(name, operation, **kwargs):
    return _after_dense(name, lambda: [operation], **kwargs)


# What comes out of a producer must not have as many columns as channels: Keras
# 3.15 takes the one for the other, with the channels first, when it adds a
# bias on TensorFlow or normalizes layers on PyTorch.
_ROOM = {1: (9,), 2: (8, 7), 3: (3, 5, 4)}
_DATA_FORMATS = ("channels_last", "channels_first")


def _images(name, dimensions, make_layers, **kwargs):
    """A `_chain` for each data format, flattened before the head."""
    paths = []
    for data_format in _DATA_FORMATS:
        first = data_format == "channels_first"
        room = _ROOM[dimensions]
        paths.append(
            _chain(
                f"{name}-{data_format}",
                (2, *room) if first else (*room, 2),
                functools.partial(_make_images, make_layers, data_format),
                first=first,
                **kwargs,
            )
        )
    return paths


def _make_images(make_layers, data_format):
    return [*make_layers(data_format), keras.layers.Flatten()]


def _after_conv(name, make_layers, **kwargs):
    """Something between a Conv2D and a Conv2D."""

    def make(data_format):
        return [
            Conv2D(4, 2, data_format=data_format, name="producer"),
            *make_layers(data_format),
            Conv2D(3, 2, data_format=data_format, name="consumer"),
        ]

    kwargs = {"consumers": ("consumer",), **kwargs}
    return _images(f"conv2d-{name}", 2, make, **kwargs)


def _kind(name, dimensions, producer, consumer=None):
    """A kind of layer as producer, and (the same) one as consumer."""

    def make(data_format):
        return [
            producer(data_format=data_format, name="producer"),
            _relu(),
            (consumer or producer)(data_format=data_format, name="consumer"),
        ]

    return _images(name, dimensions, make, consumers=("consumer",))


# Models that are no chain.


def _image(data_format):
    shape = _ROOM[2]
    first = data_format == "channels_first"
    return keras.Input((2, *shape) if first else (*shape, 2))


def _two_producers(insert):
    inputs = keras.Input(_VECTOR)
    other = Dense(3, name="other")(inputs)
    x = insert(Dense(4, name="producer")(inputs))
    x = keras.layers.Concatenate()([inputs, other, keras.layers.ReLU()(x)])
    return keras.Model(inputs, Dense(3, name="head")(x))


def _two_images(data_format, insert):
    """Two sets of channels beside each other, then flattened."""
    first = data_format == "channels_first"
    inputs = _image(data_format)
    arguments = {"kernel_size": 3, "data_format": data_format}
    x = insert(Conv2D(4, name="producer", **arguments)(inputs))
    other = Conv2D(3, name="other", **arguments)(inputs)
    x = keras.layers.Concatenate(axis=1 if first else -1)([x, other])
    x = keras.layers.Flatten(data_format=data_format)(x)
    return keras.Model(inputs, Dense(3, name="head")(x))


def _two_consumers(insert):
    inputs = keras.Input(_VECTOR)
    x = insert(Dense(4, name="producer")(inputs))
    narrow = Dense(1, name="narrow")(x)
    wide = Dense(5, name="wide")(keras.layers.ReLU()(x))
    return keras.Model(inputs, ops.concatenate([narrow, wide], axis=-1))


def _consumers_of_different_kinds(insert):
    """One reads a channel once, the other once at each position."""
    inputs = _image("channels_last")
    x = insert(Conv2D(4, 3, activation="relu", name="producer")(inputs))
    conv = Conv2D(3, 3, name="conv")(x)
    flat = Dense(2, name="flat")(keras.layers.Flatten()(x))
    pooled = Dense(2, name="pooled")(ops.mean(x, axis=(1, 2)))
    conv = keras.layers.GlobalMaxPooling2D()(conv)
    return keras.Model(inputs, ops.concatenate([conv, flat, pooled], axis=-1))


def _squeeze_and_excitation(data_format, insert):
    """Channels times a gate that is computed from all of them."""
    first = data_format == "channels_first"
    inputs = _image(data_format)
    arguments = {"kernel_size": 3, "data_format": data_format}
    x = insert(Conv2D(4, name="producer", **arguments)(inputs))
    gate = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    gate = Dense(2, activation="relu", name="squeeze")(gate)
    gate = Dense(4, activation="sigmoid", name="excitation")(gate)
    gate = keras.layers.Reshape((4, 1, 1) if first else (1, 1, 4))(gate)
    x = keras.layers.Multiply()([x, gate])
    x = Conv2D(3, name="consumer", **arguments)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, Dense(3, name="head")(x))


def _residual_block(data_format, insert):
    """A ResNet block: only the convolution inside has units of its own."""
    first = data_format == "channels_first"
    axis = 1 if first else -1
    inputs = _image(data_format)
    arguments = {
        "kernel_size": 3,
        "padding": "same",
        "use_bias": False,
        "data_format": data_format,
    }
    shortcut = Conv2D(4, name="shortcut", **arguments)(inputs)
    x = keras.layers.BatchNormalization(axis=axis)(shortcut)
    x = insert(Conv2D(4, name="producer", **arguments)(x))
    x = keras.layers.BatchNormalization(axis=axis, name="norm")(x)
    x = Conv2D(4, name="consumer", **arguments)(keras.layers.ReLU()(x))
    x = keras.layers.BatchNormalization(axis=axis)(x)
    x = keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))
    x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    return keras.Model(inputs, Dense(3, name="head")(x))


def _gated(insert):
    """Units times the units of another layer, which are a gate."""
    inputs = keras.Input(_VECTOR)
    gate = Dense(4, activation="sigmoid", name="gate")(inputs)
    x = insert(Dense(4, name="producer")(inputs))
    return keras.Model(inputs, Dense(3, name="head")(x * gate))


def _inside_out(insert):
    """The producer is part of a Sequential model, its consumer is not."""
    inner = keras.Input(_VECTOR)
    x = insert(Dense(4, activation="relu", name="producer")(inner))
    inner = keras.Model(inner, keras.layers.ELU()(x))
    outer = [keras.Input(_VECTOR), inner, Dense(3, name="head")]
    return keras.Sequential(outer)


def _outside_in(insert):
    """The consumer is part of a Sequential model inside a Functional one."""
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            Dense(3, name="consumer"),
            keras.layers.ReLU(),
        ]
    )
    inputs = keras.Input(_VECTOR)
    x = inner(insert(Dense(4, name="producer")(inputs)))
    return keras.Model(inputs, Dense(3, name="head")(x))


def _from_one_model_to_another(insert):
    inner = keras.Input(_VECTOR)
    producing = keras.Model(inner, insert(Dense(4, name="producer")(inner)))
    middle = keras.Input((4,))
    middle = keras.Model(middle, ops.flip(ops.relu(middle), axis=-1))
    reading = keras.Sequential([keras.Input((4,)), Dense(3, name="consumer")])
    reading = keras.Sequential([keras.Input((4,)), reading])
    inputs = keras.Input(_VECTOR)
    x = keras.layers.ReLU()(reading(middle(producing(inputs))))
    return keras.Model(inputs, Dense(3, name="head")(x))


class _Block(keras.layers.Layer):
    """A layer of one's own with plastic layers inside."""

    def __init__(self, insert, **kwargs):
        super().__init__(**kwargs)
        self.insert = insert
        self.producer = Dense(4, name="producer")
        self.consumer = Dense(3, name="consumer")

    def build(self, input_shape):
        self.producer.build(input_shape)
        self.consumer.build((*input_shape[:-1], 8))

    def call(self, x):
        x = self.insert(self.producer(x))
        x = ops.concatenate([ops.relu(-x), ops.relu(x)], axis=-1)
        return ops.relu(self.consumer(x))


def _layer_of_ones_own(insert):
    inputs = keras.Input(_VECTOR)
    x = _Block(insert)(inputs)
    return keras.Model(inputs, Dense(3, name="head")(x))


class _Shuffle(keras.layers.Layer):
    """A layer of one's own that can be looked into."""

    def call(self, x):
        even, odd = x[..., ::2], x[..., 1::2]
        return ops.concatenate([odd, ops.tanh(even)], axis=-1)


# Functions that go between.


def _many_operations(x):
    x = ops.sqrt(ops.square(x) + 1.0)
    x = ops.log(x) - ops.exp(-x)
    return ops.clip(ops.erf(2.0 - ops.tanh(x) / 3.0), -0.999, 5.0)


def _doubled(x):
    return ops.concatenate([ops.relu(x), ops.relu(-x)], axis=-1)


def _halves_swapped(x):
    left, right = ops.split(x, 2, axis=-1)
    return ops.concatenate([right, left], axis=-1)


def _sliced(x):
    return ops.concatenate([x[:, 3:], ops.relu(x[:, :3])], axis=1)


# The table.

_ELEMENTWISE = [
    _after_dense("nothing", lambda: []),
    _after_dense("gelu", lambda: [], activation="gelu"),
    _after_dense("own", lambda: [], activation=lambda x: x * ops.tanh(x) + 0.1),
    _after_dense("sequence", lambda: [], shape=_SEQUENCE),
    _chain(
        "dense-no_bias",
        _VECTOR,
        lambda: [
            Dense(4, use_bias=False, name="producer"),
            Dense(3, use_bias=False, name="consumer"),
        ],
        consumers=("consumer",),
    ),
    _after_dense(
        "ELU-LeakyReLU-Activation-ReLU",
        lambda: [
            keras.layers.ELU(),
            keras.layers.LeakyReLU(),
            keras.layers.Activation("silu"),
            keras.layers.ReLU(),
        ],
    ),
    _after_dense(
        "PReLU",
        lambda: [keras.layers.PReLU(name="slope")],
        parameters=("slope",),
    ),
    _after_dense(
        "PReLU_shared",
        lambda: [keras.layers.PReLU(shared_axes=[1], name="slope")],
        shape=_SEQUENCE,
        parameters=("slope",),
    ),
    *(
        _after_dense(
            kind.__name__,
            lambda kind=kind: [kind()],
            shape=_SEQUENCE,
            own_means=kind not in (layers.Rational, layers.SmoothLeaky),
        )
        for kind in (
            layers.ConcatenatedELU,
            layers.CReLU,
            layers.DeepFourier,
            layers.Rational,
            layers.SmoothLeaky,
        )
    ),
    _after_dense(
        "CReLU_of_another_axis",
        lambda: [layers.CReLU(axis=1), keras.layers.Flatten()],
        shape=_SEQUENCE,
    ),
    _after_dense(
        "CReLU-BatchNormalization",
        lambda: [
            layers.CReLU(),
            keras.layers.BatchNormalization(name="norm"),
        ],
        parameters=("norm",),
        own_means=True,
    ),
    _after_dense(
        "CReLU-DeepFourier",
        lambda: [layers.CReLU(), layers.DeepFourier()],
        own_means=True,
    ),
    _after_dense(
        "AdaLin",
        lambda: [layers.AdaLin(name="slope")],
        shape=_SEQUENCE,
        parameters=("slope",),
    ),
    _after_dense(
        "AdaLin_of_another_axis",
        lambda: [layers.AdaLin(axis=1)],
        shape=_SEQUENCE,
    ),
    _after_dense(
        "TimeDistributed_AdaLin",
        lambda: [
            keras.layers.TimeDistributed(layers.AdaLin(), name="slope"),
            keras.layers.TimeDistributed(layers.SmoothLeaky()),
        ],
        shape=_SEQUENCE,
        parameters=("slope",),
    ),
    _after_dense(
        "Identity_and_the_like",
        lambda: [
            keras.layers.Identity(),
            keras.layers.ActivityRegularization(0.01),
            keras.layers.Rescaling(0.5, 0.1),
        ],
    ),
    _after_dense(
        "Dropout",
        lambda: [
            keras.layers.Dropout(0.3),
            keras.layers.AlphaDropout(0.1),
            keras.layers.GaussianDropout(0.1),
            keras.layers.GaussianNoise(0.1),
        ],
    ),
    _after_dense(
        "SpatialDropout1D",
        lambda: [keras.layers.SpatialDropout1D(0.3)],
        shape=_SEQUENCE,
    ),
    _operation("ops.relu", ops.relu),
    _operation("x*sigmoid(x)", lambda x: x * ops.sigmoid(x)),
    _operation("ops.multiply(x,2)", lambda x: ops.multiply(x, 2.0)),
    _operation("maximum(x,0.1x)", lambda x: ops.maximum(0.1 * x, x)),
    _operation("many_operations", _many_operations),
    _after_dense("layer_of_ones_own", lambda: [_Shuffle()]),
    _after_dense(
        "TimeDistributed",
        lambda: [
            keras.layers.TimeDistributed(
                keras.layers.BatchNormalization(), name="norm"
            ),
            keras.layers.TimeDistributed(keras.layers.Activation("tanh")),
        ],
        shape=_SEQUENCE,
        parameters=("norm",),
    ),
]

_NORMALIZATIONS = [
    _after_dense(
        "BatchNormalization",
        lambda: [keras.layers.BatchNormalization(name="norm")],
        parameters=("norm",),
    ),
    _after_dense(
        "BatchNormalization_of_a_sequence",
        lambda: [
            keras.layers.BatchNormalization(scale=False, name="norm"),
            keras.layers.ReLU(),
        ],
        shape=_SEQUENCE,
        parameters=("norm",),
    ),
    _after_dense(
        "LayerNormalization",
        lambda: [keras.layers.LayerNormalization(name="norm")],
        parameters=("norm",),
        features={"head": range(4)},
        mixes=True,
    ),
    _after_dense(
        "RMSNormalization",
        lambda: [keras.layers.RMSNormalization(name="norm")],
        parameters=("norm",),
        features={"head": range(4)},
        mixes=True,
    ),
    _after_dense(
        "OnlineNormalization",
        lambda: [layers.OnlineNormalization(name="norm")],
        parameters=("norm",),
        features={"head": range(4)},
        mixes=True,
    ),
    *_after_conv(
        "OnlineNormalization_of_each_channel",
        lambda f: [
            layers.OnlineNormalization(
                axis=1 if f == "channels_first" else -1,
                layer_scaling=False,
                name="norm",
            ),
            keras.layers.ReLU(),
        ],
        parameters=("norm",),
    ),
    *_after_conv(
        "BatchNormalization",
        lambda f: [
            keras.layers.BatchNormalization(
                axis=1 if f == "channels_first" else -1, name="norm"
            ),
            keras.layers.ReLU(),
        ],
        parameters=("norm",),
    ),
    *_after_conv(
        "GroupNormalization",
        lambda f: [
            keras.layers.GroupNormalization(
                2, axis=1 if f == "channels_first" else -1, name="norm"
            ),
        ],
        parameters=("norm",),
        features={"consumer": range(4)},
        mixes=True,
    ),
    *_after_conv(
        "LayerNormalization",
        lambda f: [
            keras.layers.LayerNormalization(
                axis=1 if f == "channels_first" else -1, name="norm"
            ),
        ],
        parameters=("norm",),
        features={"consumer": range(4)},
        mixes=True,
    ),
    *_after_conv(
        "LayerNormalization_of_the_whole",
        lambda f: [
            keras.layers.LayerNormalization(axis=[1, 2, 3], name="norm"),
        ],
        parameters=("norm",),
        features={"consumer": range(4)},
        mixes=True,
    ),
    *_after_conv(
        "PReLU",
        lambda f: [keras.layers.PReLU(name="slope")],
        parameters=("slope",),
    ),
    *_after_conv(
        "PReLU_shared",
        lambda f: [
            keras.layers.PReLU(
                shared_axes=[2, 3] if f == "channels_first" else [1, 2],
                name="slope",
            )
        ],
        parameters=("slope",),
    ),
    *_after_conv(
        "AdaLin",
        lambda f: [
            layers.AdaLin(axis=1 if f == "channels_first" else -1, name="slope")
        ],
        parameters=("slope",),
    ),
    *_after_conv(
        "CReLU-SmoothLeaky-Rational",
        lambda f: [
            layers.CReLU(axis=1 if f == "channels_first" else -1),
            layers.SmoothLeaky(),
            layers.Rational(),
        ],
        own_means=True,
    ),
    *_images(
        "conv2d-CReLU-Flatten",
        2,
        lambda f: [
            Conv2D(4, 2, data_format=f, name="producer"),
            layers.CReLU(axis=1 if f == "channels_first" else -1),
        ],
        own_means=True,
    ),
]

_MOVEMENTS = [
    _after_dense("Flatten", lambda: [keras.layers.Flatten()], shape=_SEQUENCE),
    _after_dense(
        "Reshape", lambda: [keras.layers.Reshape((12,))], shape=_SEQUENCE
    ),
    _after_dense(
        "Permute",
        lambda: [keras.layers.Permute((2, 1)), keras.layers.Flatten()],
        shape=_SEQUENCE,
    ),
    _after_dense(
        "RepeatVector-Flatten",
        lambda: [keras.layers.RepeatVector(3), keras.layers.Flatten()],
    ),
    _operation("doubled", _doubled, own_means=True),
    _operation("halves_swapped", _halves_swapped),
    _operation("sliced", _sliced),
    _operation("ops.repeat", lambda x: ops.repeat(x, 2, axis=-1)),
    _operation("ops.tile", lambda x: ops.tile(x, (1, 2))),
    _operation("ops.stack", lambda x: ops.stack([x, -x], axis=1)),
    _operation(
        "stacked_units",
        lambda x: ops.reshape(ops.stack([x, -x], axis=-1), (-1, 8)),
        own_means=True,
    ),
    _operation("x[:,None]", lambda x: ops.squeeze(x[:, None], axis=1)),
    _operation(
        "ops.swapaxes",
        lambda x: ops.reshape(ops.swapaxes(x, 1, 2), (-1, 12)),
        shape=_SEQUENCE,
    ),
    _operation("Add", lambda x: keras.layers.Add()([x, ops.relu(x), x])),
    _operation("ops.mean", lambda x: ops.mean(x, axis=1), shape=_SEQUENCE),
    _operation(
        "ops.max",
        lambda x: ops.max(x, axis=-2, keepdims=True),
        shape=_SEQUENCE,
    ),
]

_GRAPHS = [
    Path("two_producers", _two_producers),
    *(
        Path(
            f"two_images-{f}",
            functools.partial(_two_images, f),
            first=f == "channels_first",
        )
        for f in _DATA_FORMATS
    ),
    Path(
        "two_consumers",
        _two_consumers,
        consumers=("narrow", "wide"),
        skipped=("narrow", "wide"),
    ),
    Path(
        "consumers_of_different_kinds",
        _consumers_of_different_kinds,
        consumers=("conv", "flat", "pooled"),
        skipped=("conv", "flat", "pooled"),
    ),
    *(
        Path(
            f"squeeze_and_excitation-{f}",
            functools.partial(_squeeze_and_excitation, f),
            consumers=("squeeze", "consumer"),
            merged=("excitation",),
            first=f == "channels_first",
            features={"consumer": range(4)},
        )
        for f in _DATA_FORMATS
    ),
    *(
        Path(
            f"residual_block-{f}",
            functools.partial(_residual_block, f),
            consumers=("consumer",),
            parameters=("norm",),
            merged=("shortcut", "consumer"),
            first=f == "channels_first",
        )
        for f in _DATA_FORMATS
    ),
    Path("gated", _gated, merged=("gate",)),
    Path("inside_out", _inside_out),
    Path(
        "outside_in", _outside_in, consumers=("consumer",), parameters=("norm",)
    ),
    Path(
        "from_one_model_to_another",
        _from_one_model_to_another,
        consumers=("consumer",),
    ),
    Path(
        "layer_of_ones_own",
        _layer_of_ones_own,
        consumers=("consumer",),
        own_means=True,
    ),
]


def _einsum(name, equation, output_shape, bias_axes=None, axis=-1):
    """Two of them, of 4 and 3 units. `output_shape` takes that number."""

    def make():
        layer = functools.partial(EinsumDense, equation, bias_axes=bias_axes)
        return [
            layer(output_shape(4), activation="relu", name="producer"),
            layer(output_shape(3), name="consumer"),
            keras.layers.GlobalAveragePooling1D(_DATA_FORMATS[axis == 1]),
        ]

    return _chain(
        f"einsum_dense-{name}",
        _SEQUENCE,
        make,
        consumers=("consumer",),
        axes={"producer": axis, "consumer": axis},
    )


_KINDS = [
    _einsum("no_bias", "abc,cd->abd", lambda n: (None, n)),
    _einsum("bias", "abc,cd->abd", lambda n: (None, n), "d"),
    _einsum("bias_at_each_position", "abc,cd->abd", lambda n: (3, n), "bd"),
    _einsum("bias_of_no_unit", "abc,cd->abd", lambda n: (3, n), "b"),
    _einsum("ellipsis", "...x,xy->...y", lambda n: (n,), "y"),
    _einsum("units_first", "abc,dc->abd", lambda n: (None, n), "d"),
    _einsum("another_axis", "abc,bd->adc", lambda n: (n, 5), "d", axis=1),
    *_kind("conv1d-valid", 1, functools.partial(Conv1D, 4, 3)),
    *_kind(
        "conv1d-strides",
        1,
        functools.partial(Conv1D, 4, 3, strides=2, padding="same"),
    ),
    _chain(
        "conv1d-causal",
        (8, 2),
        lambda: [
            Conv1D(4, 2, padding="causal", name="producer"),
            keras.layers.ReLU(),
            Conv1D(3, 2, padding="causal", name="consumer"),
        ],
        consumers=("consumer",),
    ),
    *_kind(
        "conv1d_transpose",
        1,
        functools.partial(Conv1DTranspose, 4, 3, strides=2, padding="same"),
    ),
    *_kind(
        "depthwise_conv1d",
        1,
        functools.partial(DepthwiseConv1D, 2, depth_multiplier=2),
    ),
    *_kind(
        "separable_conv1d",
        1,
        functools.partial(SeparableConv1D, 4, 2, depth_multiplier=2),
    ),
    *_kind(
        "conv2d-strides", 2, functools.partial(Conv2D, 4, 2, strides=(2, 1))
    ),
    *_kind("conv2d-groups", 2, functools.partial(Conv2D, 4, 2, groups=2)),
    *_kind(
        "conv2d-dilation", 2, functools.partial(Conv2D, 4, 2, dilation_rate=2)
    ),
    *_kind("conv2d_transpose", 2, functools.partial(Conv2DTranspose, 4, 2)),
    *_kind(
        "depthwise_conv2d",
        2,
        functools.partial(DepthwiseConv2D, 2, depth_multiplier=2),
    ),
    *_kind(
        "separable_conv2d",
        2,
        functools.partial(SeparableConv2D, 4, 2, depth_multiplier=2),
    ),
    *_kind("conv3d", 3, functools.partial(Conv3D, 4, 2)),
    *_kind("conv3d_transpose", 3, functools.partial(Conv3DTranspose, 4, 2)),
    *_kind(
        "depthwise-grouped",
        2,
        functools.partial(DepthwiseConv2D, 2, depth_multiplier=2),
        functools.partial(Conv2D, 4, 2, groups=2),
    ),
    *_kind(
        "grouped-transpose",
        2,
        functools.partial(Conv2D, 4, 2, groups=2),
        functools.partial(Conv2DTranspose, 3, 2),
    ),
    *_kind(
        "transpose-separable",
        2,
        functools.partial(Conv2DTranspose, 4, 2),
        functools.partial(SeparableConv2D, 3, 2, depth_multiplier=2),
    ),
]

_ROOMS = [
    *_after_conv(
        "MaxPooling2D",
        lambda f: [keras.layers.MaxPooling2D(2, data_format=f)],
    ),
    *_after_conv(
        "AveragePooling2D",
        lambda f: [
            keras.layers.AveragePooling2D(2, padding="same", data_format=f)
        ],
    ),
    *_after_conv(
        "ZeroPadding2D-Cropping2D-UpSampling2D",
        lambda f: [
            keras.layers.ZeroPadding2D((0, 2), data_format=f),
            keras.layers.Cropping2D(1, data_format=f),
            keras.layers.UpSampling2D(2, data_format=f),
        ],
    ),
    *_after_conv(
        "SpatialDropout2D",
        lambda f: [keras.layers.SpatialDropout2D(0.3, data_format=f)],
    ),
    *_images(
        "conv2d-AdaptiveAveragePooling2D",
        2,
        lambda f: [
            Conv2D(4, 2, data_format=f, name="producer"),
            keras.layers.AdaptiveAveragePooling2D(2, data_format=f),
        ],
    ),
    *_images(
        "conv2d-GlobalAveragePooling2D",
        2,
        lambda f: [
            Conv2D(4, 2, data_format=f, name="producer"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(data_format=f),
        ],
    ),
    *_images(
        "conv2d-GlobalMaxPooling2D",
        2,
        lambda f: [
            Conv2D(4, 2, data_format=f, name="producer"),
            keras.layers.GlobalMaxPooling2D(data_format=f, keepdims=True),
        ],
    ),
    *_images(
        "conv2d-Flatten",
        2,
        lambda f: [
            Conv2D(4, 3, activation="relu", data_format=f, name="producer"),
        ],
    ),
    _chain(
        "conv2d-Permute-conv2d",
        (7, 6, 2),
        lambda: [
            Conv2D(4, 2, data_format="channels_last", name="producer"),
            keras.layers.Permute((3, 1, 2)),
            Conv2D(3, 2, data_format="channels_first", name="consumer"),
            keras.layers.Flatten(),
        ],
        consumers=("consumer",),
        axes={"consumer": 1},
    ),
    _chain(
        "conv1d-pooling",
        (8, 2),
        lambda: [
            Conv1D(4, 2, name="producer"),
            keras.layers.UpSampling1D(2),
            keras.layers.ZeroPadding1D(1),
            keras.layers.Cropping1D(2),
            keras.layers.MaxPooling1D(2),
            keras.layers.AveragePooling1D(2),
            Conv1D(3, 2, name="consumer"),
        ],
        consumers=("consumer",),
    ),
    *_images(
        "conv3d-pooling",
        3,
        lambda f: [
            Conv3D(4, 2, data_format=f, name="producer"),
            keras.layers.UpSampling3D(2, data_format=f),
            keras.layers.ZeroPadding3D(1, data_format=f),
            keras.layers.Cropping3D(2, data_format=f),
            keras.layers.MaxPooling3D(2, data_format=f),
            Conv3D(3, (1, 2, 1), data_format=f, name="consumer"),
        ],
        consumers=("consumer",),
    ),
]
PATHS = _ELEMENTWISE + _NORMALIZATIONS + _MOVEMENTS + _GRAPHS + _KINDS + _ROOMS
