import inspect
import json
import re

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from tests.helpers import observed_means
from tests.helpers import to_numpy

# Each kind of layer with what it cannot do without.
_KINDS = {
    "Conv1D": {"filters": 4, "kernel_size": 3},
    "Conv2D": {"filters": 4, "kernel_size": 3},
    "Conv3D": {"filters": 4, "kernel_size": 2},
    "Conv1DTranspose": {"filters": 4, "kernel_size": 3},
    "Conv2DTranspose": {"filters": 4, "kernel_size": 3},
    "Conv3DTranspose": {"filters": 4, "kernel_size": 2},
    "DepthwiseConv1D": {"kernel_size": 3},
    "DepthwiseConv2D": {"kernel_size": 3},
    "SeparableConv1D": {"filters": 4, "kernel_size": 3},
    "SeparableConv2D": {"filters": 4, "kernel_size": 3},
}
_kind = pytest.mark.parametrize("kind", _KINDS)

# Each kind as it stands, and some with more.
_CASES = {
    **{kind: (kind, {}) for kind in _KINDS},
    "Conv1D-causal": ("Conv1D", {"padding": "causal", "dilation_rate": 2}),
    "Conv2D-groups": ("Conv2D", {"groups": 2, "activation": "relu"}),
    "Conv2D-strides": ("Conv2D", {"strides": (2, 1), "padding": "same"}),
    "Conv2D-no_bias": ("Conv2D", {"use_bias": False}),
    "Conv2DTranspose-strides": ("Conv2DTranspose", {"strides": 2}),
    "DepthwiseConv2D-multiplier": ("DepthwiseConv2D", {"depth_multiplier": 3}),
    "SeparableConv2D-multiplier": ("SeparableConv2D", {"depth_multiplier": 3}),
}
_case = pytest.mark.parametrize("case", _CASES)
_DATA_FORMATS = ("channels_last", "channels_first")
_data_format = pytest.mark.parametrize("data_format", _DATA_FORMATS)

_CHANNELS = 2
_ROOM = {1: (9,), 2: (7, 6), 3: (4, 5, 4)}


def _input_shape(rank, data_format):
    if data_format == "channels_first":
        return (_CHANNELS, *_ROOM[rank])
    return (*_ROOM[rank], _CHANNELS)


def _rank(kind):
    return int(re.search(r"\dD", kind)[0][0])


def _make(source, kind, **kwargs):
    """A layer of `keras.layers` or of `keras_plasticity.layers`."""
    # On JAX random initializers compile for each shape, which is slow.
    arguments = inspect.signature(getattr(keras.layers, kind)).parameters
    zeros = {name: "zeros" for name in arguments if "initializer" in name}
    return getattr(source, kind)(**{**_KINDS[kind], **zeros, **kwargs})


def _own_weights(layer):
    return [v for v in layer.weights if "statistics" not in v.path]


def _set_random_weights(*layers_or_models):
    """The same weights for each of them."""
    for each in layers_or_models:
        rng = np.random.default_rng(0)
        for variable in _own_weights(each):
            variable.assign(rng.normal(0, 0.5, variable.shape))


@_case
@_data_format
def test_computes_what_the_plain_layer_computes(case, data_format):
    kind, kwargs = _CASES[case]
    shape = (3, *_input_shape(_rank(kind), data_format))
    plain, plastic = [
        _make(source, kind, data_format=data_format, **kwargs)
        for source in (keras.layers, layers)
    ]
    plain.build(shape)
    plastic.build(shape)
    _set_random_weights(plain, plastic)
    x = np.random.default_rng(1).normal(0, 1, shape).astype("float32")
    expected = to_numpy(plain(x))
    assert np.any(expected != 0)
    for training in (False, True):
        np.testing.assert_array_equal(
            to_numpy(plastic(x, training=training)), expected
        )
    assert tuple(plastic.compute_output_shape(shape)) == expected.shape


@_case
@_data_format
def test_statistics(case, data_format):
    kind, kwargs = _CASES[case]
    shape = (None, *_input_shape(_rank(kind), data_format))
    layer = _make(layers, kind, data_format=data_format, **kwargs)
    layer.build(shape)
    output_shape = layer.compute_output_shape(shape)
    units = output_shape[1 if data_format == "channels_first" else -1]
    for name in ("utility", "age", "mean_activation"):
        np.testing.assert_array_equal(
            to_numpy(getattr(layer, name)), np.zeros(units)
        )
    for variable in layer.statistics.sums(
        ["activation_mean", "firing"]
    ).values():
        np.testing.assert_array_equal(to_numpy(variable), np.zeros(_CHANNELS))
    assert layer.unit_view().size == units
    assert layer.feature_view().size == _CHANNELS


# A value for each argument of each kind that is not its default.
_OTHER_VALUES = {
    "filters": 6,
    "kernel_size": 5,
    "strides": 2,
    "padding": "same",
    "output_padding": 0,
    "data_format": "channels_first",
    "dilation_rate": 2,
    "depth_multiplier": 2,
    "groups": 2,
    "activation": "relu",
    "use_bias": False,
    **{
        f"{weight}_{what}": value
        for weight in ("kernel", "bias", "depthwise", "pointwise")
        for what, value in (
            ("initializer", "he_normal"),
            ("regularizer", "l2"),
            ("constraint", "non_neg"),
        )
    },
    "activity_regularizer": "l1",
    "lora_rank": 2,
    "lora_alpha": 3,
    "name": "other",
    "trainable": False,
    "dtype": "bfloat16",
}


@_kind
def test_takes_the_arguments_of_the_plain_layer(kind):
    plain, plastic = getattr(keras.layers, kind), getattr(layers, kind)
    names = set(inspect.signature(plain).parameters) - {"kwargs"}
    assert {"activation", "data_format", "kernel_size"} < names
    for name in names | {"name", "trainable", "dtype"}:
        kwargs = {**_KINDS[kind], "name": "layer", name: _OTHER_VALUES[name]}
        if name == "lora_alpha":
            kwargs["lora_rank"] = 2
        config = plastic(**kwargs).get_config()
        assert config == plain(**kwargs).get_config(), name
        assert config != plain(**_KINDS[kind], name="layer").get_config()
    # Those in front have no need of names.
    arguments = _KINDS[kind].values()
    config = plastic(*arguments, name="layer").get_config()
    assert config == plain(*arguments, name="layer").get_config()


@_kind
def test_serialization(kind):
    layer = _make(layers, kind, activation="relu", replaceable=False)
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == f"keras_plasticity>{kind}"
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is getattr(layers, kind)
    assert twin.get_config() == layer.get_config()
    assert not twin.replaceable
    # It is replaceable by default, and then the config is a plain layer's.
    layer = type(layer).from_config(_make(keras.layers, kind).get_config())
    assert layer.replaceable and "replaceable" not in layer.get_config()


@_kind
def test_lora_and_quantization_are_refused(kind):
    layer = _make(layers, kind)
    layer.build((None, *_input_shape(_rank(kind), "channels_last")))
    message = rf"cannot be %s.*`keras.layers.{kind}`"
    with pytest.raises(ValueError, match=message % "adapted by LoRA"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match=message % "quantized"):
        layer.quantize("int8")
    layer = _make(layers, kind, dtype="int8_from_float32")
    with pytest.raises(ValueError, match=message % "quantized"):
        layer.build((None, *_input_shape(_rank(kind), "channels_last")))


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D", "Conv3D"])
def test_lora_by_argument_is_refused(kind):
    layer = _make(layers, kind, lora_rank=2)
    with pytest.raises(ValueError, match="cannot be adapted by LoRA"):
        layer.build((None, *_input_shape(_rank(kind), "channels_last")))


def _make_model(source, rank, data_format="channels_last"):
    """One layer of each kind of a rank, and a dense one at the end."""
    shape = _input_shape(rank, data_format)
    kwargs = {"padding": "same", "data_format": data_format}
    model = [keras.Input(shape)]
    for kind in _KINDS:
        if _rank(kind) == rank:
            more = {"groups": 2} if kind == f"Conv{rank}D" else {}
            if kind.startswith(("Depthwise", "Separable")):
                more["depth_multiplier"] = 2
            if kind.endswith("Transpose"):
                more["strides"] = 2
            model.append(
                _make(source, kind, activation="tanh", **kwargs, **more)
            )
    model += [
        keras.layers.Flatten(data_format),
        source.Dense(3, kernel_initializer="zeros"),
    ]
    return keras.Sequential(model)


@pytest.mark.parametrize(
    "rank, data_format, optimizer",
    [
        (1, "channels_last", "SGD"),
        (2, "channels_last", "Adam"),
        (2, "channels_first", "SGD"),
        (3, "channels_first", "Adam"),
    ],
)
def test_trains_to_the_weights_of_the_plain_layers(
    rank, data_format, optimizer
):
    rng = np.random.default_rng(1)
    shape = _input_shape(rank, data_format)
    x = rng.normal(0.5, 1, (8, *shape)).astype("float32")
    y = rng.normal(0, 1, (8, 3)).astype("float32")
    models = [
        _make_model(source, rank, data_format)
        for source in (keras.layers, layers)
    ]
    _set_random_weights(*models)
    start = [to_numpy(v) for v in _own_weights(models[0])]
    for model in models:
        model.compile(getattr(keras.optimizers, optimizer)(0.05), "mse")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    plain, plastic = map(_own_weights, models)
    assert len(plain) == len(plastic) == len(start)
    for expected, variable, value in zip(plain, plastic, start):
        assert np.any(value != to_numpy(expected)), expected.path
        np.testing.assert_array_equal(
            to_numpy(variable), to_numpy(expected), err_msg=expected.path
        )
    # The first layer has seen the last batch.
    channels = np.moveaxis(x[4:], x.shape.index(_CHANNELS), 0)
    channels = channels.reshape(_CHANNELS, -1)
    means = observed_means(models[1].layers[0])
    for name, value in (
        ("activation_mean", channels.mean(axis=1)),
        ("activation_magnitude", np.abs(channels).mean(axis=1)),
        (
            "activation_deviation",
            np.abs(channels - channels.mean(axis=1, keepdims=True)).mean(1),
        ),
    ):
        np.testing.assert_allclose(
            means[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weights_file_of_a_plain_model_and_back(rank, tmp_path):
    path = tmp_path / "model.weights.h5"
    plain, plastic = [_make_model(s, rank) for s in (keras.layers, layers)]
    _set_random_weights(plain)
    plain.save_weights(path)
    plastic.layers[0].age.assign([7.0] * 4)
    plastic.load_weights(path)
    for expected, variable in zip(*map(_own_weights, (plain, plastic))):
        np.testing.assert_array_equal(to_numpy(variable), to_numpy(expected))
    # What was known of other weights says nothing of these.
    np.testing.assert_array_equal(to_numpy(plastic.layers[0].age), 0.0)

    for variable in plastic.weights:
        variable.assign(to_numpy(variable) + 1)
    plastic.save_weights(path)
    again = _make_model(layers, rank)
    for model in (plain, again):
        model.load_weights(path)
    for expected, variable in zip(*map(_own_weights, (plastic, plain))):
        np.testing.assert_array_equal(to_numpy(variable), to_numpy(expected))
    # A plastic model gets its statistics back.
    for expected, variable in zip(plastic.weights, again.weights):
        np.testing.assert_array_equal(to_numpy(variable), to_numpy(expected))


@_kind
def test_docstring_is_filled_in(kind):
    text = inspect.getdoc(getattr(layers, kind))
    assert text.startswith(f"A `keras.layers.{kind}` whose output channels")
    assert "{" not in text
    for section in ("Args", "Call arguments", "Returns", "Example"):
        assert f"\n{section}:\n" in text
