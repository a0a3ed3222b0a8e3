import inspect
import json
import math

import keras
import numpy as np
import pytest

from keras_plasticity.layers import EinsumDense
from tests.helpers import observed_means
from tests.helpers import to_numpy

# Equation, shape of the inputs, further arguments, and the places of the
# features among the axes of the inputs and of the units among the outputs', in
# the order in which they count.
_CASES = {
    "matrix": (
        "ab,bc->ac",
        (4,),
        {"output_shape": 3, "bias_axes": "c"},
        (1,),
        (1,),
    ),
    "sequence": (
        "abc,cd->abd",
        (5, 4),
        {"output_shape": (None, 3), "bias_axes": "d", "activation": "tanh"},
        (2,),
        (2,),
    ),
    "ellipsis": (
        "...x,xy->...y",
        (2, 5, 4),
        {"output_shape": 3, "bias_axes": "y"},
        (3,),
        (3,),
    ),
    "units_first": (
        "abc,dc->abd",
        (5, 4),
        {"output_shape": (None, 3)},
        (2,),
        (2,),
    ),
    "another_axis": (
        "abc,bd->adc",
        (4, 5),
        {"output_shape": (3, 5), "bias_axes": "dc"},
        (1,),
        (1,),
    ),
    "moved_axis": (
        "abc,cd->adb",
        (5, 4),
        {"output_shape": (3, 5), "bias_axes": "d"},
        (2,),
        (1,),
    ),
    "to_heads": (
        "abc,cde->abde",
        (5, 4),
        {"output_shape": (None, 3, 2), "bias_axes": "de"},
        (2,),
        (2, 3),
    ),
    "from_heads": (
        "abcd,cde->abe",
        (5, 2, 2),
        {"output_shape": (None, 3), "bias_axes": "e"},
        (2, 3),
        (2,),
    ),
    "orders_differ": (
        "abcd,dec->aeb",
        (5, 2, 2),
        {"output_shape": (3, 5), "bias_axes": "e"},
        (3, 2),
        (1,),
    ),
    "units_in_another_order": (
        "abc,ced->adbe",
        (5, 4),
        {"output_shape": (3, 5, 2), "bias_axes": "de"},
        (2,),
        (3, 1),
    ),
    "ellipsis_at_the_end": (
        "ab...,bcd->adc...",
        (4, 5),
        {"output_shape": (2, 3), "bias_axes": "cd"},
        (1,),
        (2, 1),
    ),
}
_case = pytest.mark.parametrize(
    "equation, shape, kwargs, feature_axes, unit_axes",
    _CASES.values(),
    ids=_CASES,
)
_FEATURES = 4


def _make_models(equation, shape, kwargs):
    """A plain and a plastic one with the same random weights."""
    rng = np.random.default_rng(0)
    models = [
        keras.Sequential([keras.Input(shape), kind(equation, **kwargs)])
        for kind in (keras.layers.EinsumDense, EinsumDense)
    ]
    plain, plastic = [model.layers[0] for model in models]
    for name in ("kernel", "bias"):
        variable = getattr(plain, name)
        if variable is not None:
            value = rng.normal(0, 0.5, variable.shape)
            variable.assign(value)
            getattr(plastic, name).assign(value)
    return models


def _assert_same_weights(plastic, plain):
    for name in ("kernel", "bias"):
        expected = getattr(plain.layers[0], name)
        if expected is None:
            assert getattr(plastic.layers[0], name) is None
            continue
        np.testing.assert_array_equal(
            to_numpy(getattr(plastic.layers[0], name)), to_numpy(expected)
        )


@_case
def test_is_the_plain_layer(equation, shape, kwargs, feature_axes, unit_axes):
    plain, plastic = _make_models(equation, shape, kwargs)
    x = np.random.default_rng(1).normal(0.5, 1, (6, *shape)).astype("float32")
    expected = to_numpy(plain(x))
    for training in (False, True):
        outputs = to_numpy(plastic(x, training=training))
        np.testing.assert_array_equal(outputs, expected)
    assert plastic.output_shape == plain.output_shape

    layer = plastic.layers[0]
    assert layer.feature_axes(x) == feature_axes
    assert layer.unit_axes(expected) == unit_axes
    start = to_numpy(layer.kernel)
    for model in (plain, plastic):
        model.compile(keras.optimizers.Adam(0.05), "mse")
        model.fit(x, expected + 1, batch_size=3, shuffle=False, verbose=0)
    assert np.any(start != to_numpy(layer.kernel))
    _assert_same_weights(plastic, plain)

    units = math.prod(expected.shape[axis] for axis in unit_axes)
    # It has seen the last batch.
    places = range(len(feature_axes))
    features = np.moveaxis(x[3:], feature_axes, places).reshape(_FEATURES, -1)
    np.testing.assert_allclose(
        observed_means(layer)["activation_mean"],
        features.mean(axis=1),
        rtol=1e-5,
    )
    for name in ("utility", "age", "mean_activation"):
        assert getattr(layer, name).shape == (units,)
    assert layer.unit_view().size == units
    if layer.bias is not None:
        assert layer.bias_view().size == units
    assert layer.feature_view().size == _FEATURES


@_case
def test_weights_file_of_a_plain_model_and_back(
    equation, shape, kwargs, feature_axes, unit_axes, tmp_path
):
    path = tmp_path / "model.weights.h5"
    plain, plastic = _make_models(equation, shape, kwargs)
    for variable in plain.weights:
        variable.assign(to_numpy(variable) + 1)
    plain.save_weights(path)
    plastic.load_weights(path)
    _assert_same_weights(plastic, plain)
    for variable in plastic.weights:
        variable.assign(to_numpy(variable) + 1)
    plastic.save_weights(path)
    plain.load_weights(path)
    _assert_same_weights(plastic, plain)


# A value for each argument that is not its default.
_OTHER_VALUES = {
    "equation": "abc,bd->adc",
    "output_shape": (None, 7),
    "activation": "relu",
    "bias_axes": "b",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l1",
    "bias_regularizer": "l2",
    "kernel_constraint": "non_neg",
    "bias_constraint": "non_neg",
    "lora_rank": 2,
    "lora_alpha": 3,
    "gptq_unpacked_column_size": 4,
    "quantization_config": keras.quantizers.Int8QuantizationConfig(),
    "name": "other",
    "trainable": False,
    "dtype": "bfloat16",
}


def test_takes_the_arguments_of_the_plain_layer():
    plain, plastic = keras.layers.EinsumDense, EinsumDense
    required = {
        "equation": "abc,cd->abd",
        "output_shape": (None, 3),
        "name": "layer",
    }
    names = set(inspect.signature(plain).parameters) - {"kwargs"}
    assert {"equation", "activation"} < names
    for name in names | {"name", "trainable", "dtype"}:
        kwargs = {**required, name: _OTHER_VALUES[name]}
        if name == "lora_alpha":
            kwargs["lora_rank"] = 2
        config = plastic(**kwargs).get_config()
        assert config == plain(**kwargs).get_config(), name
        assert config != plain(**required).get_config() or name in (
            # Keras keeps these only in a layer that is quantized.
            "gptq_unpacked_column_size",
        )
    # Those in front have no need of names.
    arguments = ("abc,cd->abd", (None, 3), "relu", "d")
    config = plastic(*arguments, name="layer").get_config()
    assert config == plain(*arguments, name="layer").get_config()


def test_serialization():
    layer = EinsumDense("ab,bc->ac", 3, activation="relu", replaceable=False)
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == "keras_plasticity>EinsumDense"
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is EinsumDense
    assert twin.get_config() == layer.get_config()
    assert not twin.replaceable
    layer = EinsumDense("ab,bc->ac", 3)
    assert layer.replaceable and "replaceable" not in layer.get_config()


@pytest.mark.parametrize(
    "equation",
    [
        "ab,ab->ab",
        "abc,c->ab",
        "abc,abd->abcd",
        "abc,bcd->abd",  # A kernel for each position.
        "ab,bc",
        "ab,bcc->ac",
    ],
)
def test_refused_equations(equation):
    with pytest.raises(
        ValueError, match="input features or units.*Received.*"
    ) as e:
        EinsumDense(equation, output_shape=(None, 3))
    assert f"equation={equation!r}" in str(e.value)


def test_lora_and_quantization_are_refused():
    layer = EinsumDense("ab,bc->ac", 3)
    layer.build((None, 4))
    message = r"cannot be %s.*`keras.layers.EinsumDense`"
    with pytest.raises(ValueError, match=message % "adapted by LoRA"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match=message % "quantized"):
        layer.quantize("int8")
    for policy in ("int8_from_float32", "float8_from_float32"):
        layer = EinsumDense("ab,bc->ac", 3, dtype=policy)
        with pytest.raises(ValueError, match=message % "quantized"):
            layer.build((None, 4))
    layer = EinsumDense("ab,bc->ac", 3, lora_rank=2)
    with pytest.raises(ValueError, match=message % "adapted by LoRA"):
        layer.build((None, 4))
