"""Units that several axes of a tensor count, and products that carry them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import graph
from keras_plasticity.layers import Dense
from keras_plasticity.layers import EinsumDense
from keras_plasticity.layers import PlasticLayer
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import changed_layer
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_NEW = {"kernel_initializer": keras.initializers.Constant(0.3)}
_INPUT = (5, 4)


def _heads(equation="abc,cde->abde", shape=(5, 3, 2), **kwargs):
    """A layer whose units two axes count."""
    kwargs = {"bias_axes": "de", "name": "producer", **_NEW, **kwargs}
    return EinsumDense(equation, shape, **kwargs)


def _reader(equation, shape=(5, 4), bias_axes="c"):
    return EinsumDense(
        equation, shape, bias_axes=bias_axes, name="consumer", **_NEW
    )


# Functions from the outputs of a producer with units (3, 2) to those of its
# consumer, and the unit of each feature of the latter.
_UNITS = np.arange(6).reshape(3, 2)
_WAYS = {
    "same_order": (lambda x: _reader("abde,dec->abc")(x), _UNITS),
    "another_order": (lambda x: _reader("abde,edc->abc")(x), _UNITS.T),
    "moved": (
        lambda x: _reader("adbe,edc->abc")(ops.relu(ops.swapaxes(x, 1, 2))),
        _UNITS.T,
    ),
    "reshaped": (
        lambda x: Dense(4, name="consumer")(keras.layers.Reshape((5, 6))(x)),
        _UNITS,
    ),
    "other_parts": (
        lambda x: _reader("abde,dec->abc")(ops.reshape(x, (-1, 5, 2, 3))),
        _UNITS,
    ),
    "flattened": (
        lambda x: Dense(4, name="consumer")(keras.layers.Flatten()(x)),
        np.tile(_UNITS.reshape(-1), 5),
    ),
    "repeated": (
        lambda x: _reader("abde,dec->abc")(ops.repeat(x, 2, axis=2)),
        np.repeat(_UNITS, 2, axis=0),
    ),
    "positions": (
        lambda x: _reader("abde,bdec->ac", (4,))(x),
        np.tile(_UNITS.reshape(-1), 5),
    ),
    "concatenated": (
        lambda x: _reader("abde,dec->abc")(
            ops.concatenate([-x, ops.zeros_like(x)[..., :1]], axis=3)
        ),
        np.concatenate([_UNITS, [[-1]] * 3], axis=1),
    ),
    "normalized": (
        lambda x: _reader("abde,dec->abc")(
            keras.layers.LayerNormalization(axis=[2, 3], name="norm")(x)
        ),
        _UNITS,
    ),
    "mean": (
        lambda x: _reader("ade,dec->ac", (4,))(ops.mean(x, axis=1)),
        _UNITS,
    ),
    "attention": (
        lambda x: _reader("abde,dec->abc")(
            ops.einsum("bdts,bsde->btde", _scores(x), x)
        ),
        _UNITS,
    ),
    "matrix_product": (
        lambda x: _reader("adbe,dec->abc")(
            ops.matmul(_scores(x), ops.swapaxes(x, 1, 2))
        ),
        _UNITS,
    ),
    "fused": (
        lambda x: _reader("abde,dec->abc")(
            ops.dot_product_attention(
                ops.ones_like(x), ops.ones_like(x), x, is_causal=True
            )
        ),
        _UNITS,
    ),
    "attention_layer": (
        lambda x: Dense(4, name="consumer")(
            keras.layers.Attention()([_zeros(x)[:, :2], _flat(x), _zeros(x)])
        ),
        _UNITS,
    ),
    "where": (
        lambda x: _reader("abde,dec->abc")(ops.where(_mask(x), x, 0.0)),
        _UNITS,
    ),
    "elided": (
        lambda x: _reader("...de,dec->...c", (4,))(x),
        _UNITS,
    ),
    "masked": (
        lambda x: _reader("abde,dec->abc")(
            ops.where(
                _scores(x)[:, 1, :, 3:4, None] > 0.5, x, ops.zeros_like(x)
            )
        ),
        _UNITS,
    ),
}


def _scores(x):
    """Weights that do not depend on the units, of shape (batch, 3, 5, 5)."""
    zeros = ops.sum(ops.zeros_like(x), axis=(2, 3))[:, None, :, None]
    scores = np.random.default_rng(2).uniform(0, 1, (1, 3, 5, 5))
    return zeros + ops.convert_to_tensor(scores.astype("float32"))


def _flat(x):
    return keras.layers.Reshape((5, 6))(x)


def _zeros(x):
    return ops.zeros_like(_flat(x))


def _mask(x):
    return _scores(x)[:, 1, :, 3:4, None] > 0.5


def _make(way, producer=None):
    inputs = keras.Input(_INPUT)
    outputs = way((producer or _heads())(inputs))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if "statistics" not in variable.path:
            variable.assign(rng.uniform(0.2, 0.8, variable.shape))
    return model


def _find(model, name="producer"):
    plastic = [
        x for x in model._flatten_layers() if isinstance(x, PlasticLayer)
    ]
    found = graph.find_connections(plastic, model)
    return {each.layer.name: each for each in found}[name]


@pytest.mark.parametrize("way, expected", _WAYS.values(), ids=_WAYS)
def test_ways(way, expected):
    model = _make(way)
    connections = _find(model)
    assert connections.error is connections.skip_reason is None
    (feature_map,) = connections.consumers.values()
    assert feature_map.unit_of_feature.tolist() == expected.reshape(-1).tolist()
    # Which features of the consumer a unit changes is found by an experiment.
    x = np.random.default_rng(1).normal(0, 1, (3, *_INPUT)).astype("float32")
    consumer = model.get_layer("consumer")
    axes = consumer.feature_axes(consumer.input)
    if any(layer.name == "norm" for layer in model.layers):
        return  # All features depend on all units.

    def features(change):
        received = []
        with (
            changed_layer(model.get_layer("producer"), after=change),
            changed_layer(consumer, lambda h: received.append(h) or h),
        ):
            model(x)
        h = np.moveaxis(to_numpy(received[0]), axes, range(len(axes)))
        return h.reshape(expected.size, -1)

    before = features(lambda h: h)
    for unit, (d, e) in enumerate(np.ndindex(3, 2)):
        change = np.zeros((1, 1, 3, 2), "float32")
        change[..., d, e] = 0.5
        is_changed = np.any(
            features(lambda h: h + ops.convert_to_tensor(change)) != before,
            axis=1,
        )
        np.testing.assert_array_equal(is_changed, expected.reshape(-1) == unit)


@pytest.mark.parametrize(
    "name", ["another_order", "repeated", "concatenated", "normalized"]
)
@pytest.mark.parametrize("transfer_mean", [False, True])
def test_a_replaced_unit_leaves_without_a_trace(name, transfer_mean):
    way, unit_of_feature = _WAYS[name]
    if name == "normalized" and transfer_mean:
        return
    model = _make(way)
    producer, consumer = (
        model.get_layer("producer"),
        model.get_layer("consumer"),
    )
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.0),
        replacement_rate=1.0,
        maturity_threshold=10,
        utility="overall",
        transfer_mean=transfer_mean,
    )
    model.compile(
        optimizer, "mse", run_eagerly=keras.backend.backend() == "tensorflow"
    )
    optimizer.build(model.trainable_variables)
    unit = 3
    producer.age.assign([100.0 * (i == unit) for i in range(6)])
    x = np.random.default_rng(1).normal(0, 1, (4, *_INPUT)).astype("float32")
    axes = consumer.feature_axes(consumer.input)
    received = []
    with changed_layer(consumer, lambda h: received.append(h) or h):
        before = to_numpy(model(x))
    h = np.moveaxis(to_numpy(received[0]), axes, (-2, -1)).astype("float64")
    kernels = [to_numpy(producer.kernel), to_numpy(consumer.kernel)]
    model.train_on_batch(x, np.zeros_like(before))
    assert optimizer.num_replaced()["producer"] == 1
    d, e = np.argwhere(_UNITS == unit)[0]
    expected = kernels[0].copy()
    expected[:, d, e] = 0.3
    np.testing.assert_array_equal(to_numpy(producer.kernel), expected)
    assert to_numpy(producer.bias)[d, e] == 0
    is_unit = unit_of_feature == unit
    expected = kernels[1].copy()
    expected[is_unit] = 0
    np.testing.assert_array_equal(to_numpy(consumer.kernel), expected)
    if name == "normalized":
        norm = model.get_layer("norm")
        gamma, beta = to_numpy(norm.gamma), to_numpy(norm.beta)
        np.testing.assert_array_equal(gamma == 1, is_unit)
        np.testing.assert_array_equal(beta == 0, is_unit)
        return
    # All statistics are new: the running mean is that of this batch.
    center = h[..., is_unit].mean() if transfer_mean else 0.0
    change = (h[..., is_unit] - center) @ kernels[1][is_unit]
    np.testing.assert_allclose(
        to_numpy(model(x)), before - change, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "way, reason",
    [
        (
            lambda x: ops.einsum("atde,asde->adts", x, ops.ones_like(x)),
            "no outgoing weights of their own.*'einsum",
        ),
        (lambda x: ops.einsum("atde,asde->adts", x, x), "with each other"),
        (
            lambda x: keras.layers.Attention()([_flat(x), _flat(x)]),
            "no outgoing weights of their own",
        ),
        (
            lambda x: ops.einsum("abde,abde->abde", ops.ones_like(x), x),
            "used as a gate by 'einsum",
        ),
        (
            lambda x: ops.dot_product_attention(x, x, ops.ones_like(x)),
            "no outgoing weights of their own",
        ),
        (
            lambda x: ops.matmul(x, ops.swapaxes(ops.ones_like(x), 2, 3)),
            "no outgoing weights of their own",
        ),
    ],
    ids=[
        "scores",
        "squared",
        "attention_layer",
        "gate",
        "keys",
        "matrix_product",
    ],
)
def test_left_alone(way, reason):
    connections = _find(_make(lambda x: Dense(2, name="last")(way(x))))
    assert connections.error is None and not connections.consumers
    with pytest.raises(ValueError, match=reason):
        raise ValueError(connections.skip_reason)


@pytest.mark.parametrize(
    "way, reason",
    [
        (
            lambda x: ops.einsum("abde,de->ab", x, np.ones((3, 2), "float32")),
            r"\(`Einsum`\) adds units up",
        ),
        (
            lambda x: ops.einsum("abdd->abd", x[..., :2, :]),
            r"\(`Einsum`\) takes a diagonal",
        ),
        (lambda x: ops.mean(x, axis=3), r"\(`Mean`\) adds units up"),
        (
            lambda x: ops.reshape(x, (-1, 3, 10)),
            "reads another axis than that of the units",
        ),
        (
            lambda x: keras.layers.LayerNormalization(axis=3)(x),
            "no parameters along the axis of the units",
        ),
        (
            lambda x: keras.layers.Softmax(axis=2)(x),
            r"\(`Softmax`\) is not known to keep units apart",
        ),
        (lambda x: x, "'last' .* reads another axis than that of the units"),
    ],
    ids=[
        "weights",
        "diagonal",
        "mean",
        "mixed_with_positions",
        "normalization",
        "softmax",
        "one_axis_alone",
    ],
)
def test_refused(way, reason):
    model = _make(lambda x: Dense(2, name="last")(way(x)))
    with pytest.raises(ValueError, match=reason):
        graph.check([_find(model)])


def test_several_axes_of_one_layer_are_read_by_one():
    """Each unit of an ordinary layer is read once for each position."""
    inputs = keras.Input(_INPUT)
    x = Dense(4, name="producer")(inputs)
    outputs = EinsumDense("abc,bcd->ad", (2,), name="consumer")(x)
    connections = _find(keras.Model(inputs, outputs))
    (feature_map,) = connections.consumers.values()
    assert feature_map.unit_of_feature.tolist() == [0, 1, 2, 3] * 5


def test_outer_product():
    """Each feature is a pair of units: those of one layer are replaced."""
    inputs = keras.Input((5,))
    first, second = Dense(3, name="first")(inputs), Dense(4, name="b")(inputs)
    x = ops.einsum("ai,aj->aij", first, second)
    model = keras.Model(inputs, Dense(2)(keras.layers.Flatten()(x)))
    found = _find(model, "first")
    (feature_map,) = found.consumers.values()
    assert feature_map.unit_of_feature.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.error is found.skip_reason is None
    assert "multiplied with the units of layer 'first'" in (
        _find(model, "b").skip_reason
    )


@pytest.mark.parametrize("other_too", [False, True])
def test_outer_product_beside_units(other_too):
    """Of what a layer reads, a part are pairs of units."""
    inputs = keras.Input((5,))
    first, second = Dense(3, name="first")(inputs), Dense(4, name="b")(inputs)
    x = keras.layers.Flatten()(ops.einsum("ai,aj->aij", first, second))
    others = [first, second] if other_too else [first]
    x = keras.layers.Concatenate()([x, *others])
    model = keras.Model(inputs, Dense(2)(x))
    found = _find(model, "first")
    (feature_map,) = found.consumers.values()
    expected = [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2] + [-1] * 4 * other_too
    assert feature_map.unit_of_feature.tolist() == expected
    assert found.error is found.skip_reason is None
    assert "multiplied with the units of layer 'first'" in (
        _find(model, "b").skip_reason
    )


def test_length_that_the_layer_does_not_know():
    way, expected = _WAYS["reshaped"]
    connections = _find(_make(way, _heads(shape=(None, 3, 2))))
    (feature_map,) = connections.consumers.values()
    assert feature_map.unit_of_feature.tolist() == expected.reshape(-1).tolist()


def test_inspect_tells_of_both_axes():
    texts = []
    model = _make(_WAYS["repeated"][0])
    keras_plasticity.inspect(model, print_fn=texts.append)
    assert "consumer, 2 features a unit" in texts[0]
    assert "producer (EinsumDense)" in texts[0]
