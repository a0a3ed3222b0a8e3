"""Resets of all units by a part: who is changed, and by how much."""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import CCBP
from keras_plasticity.optimizers import CPR
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

_DRAW = 0.25


def _constant(**kwargs):
    return {"kernel_initializer": keras.initializers.Constant(_DRAW), **kwargs}


def _depthwise():
    initializer = keras.initializers.Constant(_DRAW)
    return layers.DepthwiseConv2D(
        2, depth_multiplier=2, depthwise_initializer=initializer, name="layer"
    )


def _separable():
    return layers.SeparableConv2D(
        5,
        2,
        depth_multiplier=2,
        pointwise_initializer=keras.initializers.Constant(_DRAW),
        name="layer",
    )


# The layer, and the shape of its inputs.
_LAYERS = {
    "dense": (lambda: layers.Dense(6, **_constant(name="layer")), (4,)),
    "einsum": (
        lambda: layers.EinsumDense(
            "ab,cb->ac", 6, bias_axes="c", **_constant(name="layer")
        ),
        (4,),
    ),
    "groups": (
        lambda: layers.Conv2D(6, 2, groups=2, **_constant(name="layer")),
        (4, 5, 4),
    ),
    "transposed": (
        lambda: layers.Conv2DTranspose(6, 2, **_constant(name="layer")),
        (3, 3, 2),
    ),
    "depthwise": (_depthwise, (4, 4, 3)),
    "separable": (_separable, (4, 4, 3)),
}
# What follows the layer, of which the units are channels.
_READERS = {
    "flatten": lambda: [keras.layers.Flatten(), layers.Dense(3)],
    "convolution": lambda: [layers.Conv2D(4, 2, use_bias=False)],
    "groups": lambda: [layers.Conv2D(4, 2, groups=2)],
    "transposed": lambda: [layers.Conv2DTranspose(4, 2)],
    "depthwise": lambda: [layers.DepthwiseConv2D(2, depth_multiplier=2)],
    "separable": lambda: [layers.SeparableConv2D(4, 2)],
}


def _randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if "statistics" not in variable.path:
            variable.assign(rng.normal(0, 0.5, variable.shape))


def _built(model, optimizer=None):
    optimizer = optimizer or CPR(keras.optimizers.SGD(0.1), seed=1)
    optimizer.build(model.trainable_variables)
    return optimizer


def _shares(size):
    return np.linspace(0, 1, size).astype("float32")


@pytest.mark.parametrize(
    "kind", mostly_on_torch(sorted(_LAYERS), "dense", "depthwise")
)
def test_incoming_weights_move_to_the_draw(kind):
    make_layer, shape = _LAYERS[kind]
    layer = make_layer()
    model = keras.Sequential(
        [keras.Input(shape), layer, keras.layers.Flatten(), layers.Dense(3)]
    )
    _randomize(model)
    layer.bias.assign(np.zeros(layer.bias.shape))
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")
    # All of these layers are linear in these weights, unit by unit.
    old = to_numpy(layer(x))
    (units,) = _built(model).hidden
    shares = _shares(units.size)
    units.reset_partially(keras.ops.convert_to_tensor(shares))
    mixed = to_numpy(layer(x))
    kernel = units._incoming[0][0].variable
    kernel.assign(np.full(kernel.shape, _DRAW))
    new = to_numpy(layer(x))
    assert np.any(np.abs(new - old) > 0.1)
    np.testing.assert_allclose(
        mixed, (1 - shares) * old + shares * new, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "reader", mostly_on_torch(sorted(_READERS), "flatten", "groups")
)
def test_outgoing_weights_fade(reader):
    layer = layers.Conv2D(6, 2, kernel_initializer="ones", name="layer")
    inputs = keras.Input((4, 5, 3))
    hidden = layer(inputs)
    after = _READERS[reader]()
    x = hidden
    for each in after:
        x = each(x)
    model = keras.Model(inputs, x)
    _randomize(model)
    # The draw is what they are.
    layer.kernel.assign(np.ones(layer.kernel.shape))

    def rest(values):
        for each in after:
            values = each(values)
        return to_numpy(values)

    x = np.random.default_rng(1).normal(size=(2, 4, 5, 3)).astype("float32")
    hidden = to_numpy(layer(x))
    shares = _shares(6)
    expected = rest(hidden * (1 - shares))
    (units,) = _built(model).hidden
    units.reset_partially(keras.ops.convert_to_tensor(shares))
    np.testing.assert_array_equal(to_numpy(layer(x)), hidden)
    np.testing.assert_allclose(rest(hidden), expected, rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(expected) > 0.1)


def test_all_layers_that_read_the_units():
    """Of which one reads the units of two layers."""
    inputs = keras.Input((4,))
    first = layers.Dense(3, kernel_initializer="ones", name="first")(inputs)
    second = layers.Dense(2, kernel_initializer="ones", name="second")(inputs)
    both = layers.Dense(4, name="both")(
        keras.layers.Concatenate()([second, first])
    )
    alone = layers.Dense(5, name="alone")(first)
    model = keras.Model(inputs, [both, alone])
    _randomize(model)
    before = {v.path: to_numpy(v) for v in model.trainable_variables}
    units, _ = _built(model).hidden
    assert units.layer.name == "first"
    shares = np.float32([0, 0.5, 1])
    units.reset_partially(keras.ops.convert_to_tensor(shares))
    kept = 1 - shares
    factors = {
        "first/kernel": None,
        "both/kernel": np.concatenate([[1, 1], kept])[:, None],
        "alone/kernel": kept[:, None],
    }
    for variable in model.trainable_variables:
        factor = factors.get(variable.path, 1.0)
        if factor is None:
            expected = kept * before[variable.path] + shares
        else:
            expected = factor * before[variable.path]
        np.testing.assert_allclose(
            to_numpy(variable), expected, rtol=1e-6, err_msg=variable.path
        )


def _with_normalization():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, bias_initializer="ones", name="a"),
            keras.layers.LayerNormalization(name="normalization"),
            keras.layers.ReLU(),
            layers.Dense(3, name="b"),
        ]
    )
    return model


@pytest.mark.parametrize("method", [CPR, CCBP])
def test_biases_and_normalization(method):
    model = _with_normalization()
    _randomize(model, seed=3)
    layer, normalization = model.layers[:2]
    variables = [layer.bias, normalization.gamma, normalization.beta]
    start = [to_numpy(v) for v in variables]
    optimizer = _built(model, method(keras.optimizers.SGD(0.1)))
    _randomize(model, seed=4)
    before = [to_numpy(v) for v in variables]
    (units,) = optimizer.hidden
    shares = _shares(6)
    units.reset_partially(keras.ops.convert_to_tensor(shares))
    for variable, initial, old in zip(variables, start, before):
        expected = old
        if method is CCBP:
            expected = (1 - shares) * old + shares * initial
        np.testing.assert_allclose(
            to_numpy(variable), expected, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("method", [CPR, CCBP])
def test_slots_and_ages_stay_as_they_are(method):
    x, y = make_data(4)
    slots = []
    for rate in (0.0, 0.9):
        model = make_model(activation="relu")
        inner = keras.optimizers.Adam(0.01)
        # The first reset follows the second update.
        period = 1 if method is CPR else 2
        optimizer = method(inner, replacement_rate=rate, period=period, seed=1)
        model.compile(optimizer, "mse")
        start = to_numpy(model.layers[0].kernel)
        for _ in range(2):
            model.train_on_batch(x, y)
        slots.append([to_numpy(v) for v in inner.variables])
        change = np.abs(to_numpy(model.layers[0].kernel) - start).max()
        assert (change > 0.1) == (rate > 0)
        for layer in model.layers[:-1]:
            np.testing.assert_array_equal(to_numpy(layer.age), 2)
        assert optimizer.num_replaced() == {"layer_0": 0, "layer_1": 0}
    for one, other in zip(*slots):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", [CPR, CCBP])
def test_draws_of_initializers_that_draw_whole_weights(method):
    model = make_model(
        (4, 6, 3), activation="relu", kernel_initializer="orthogonal"
    )
    (units,) = _built(model, method(keras.optimizers.SGD(0.1), seed=1)).hidden
    kernel = model.layers[0].kernel
    draws = []
    for _ in range(2):
        units.reset_partially(keras.ops.ones((6,)))
        draws.append(to_numpy(kernel))
        np.testing.assert_allclose(
            draws[-1] @ draws[-1].T, np.eye(4), atol=1e-5
        )
    assert np.any(draws[0] != draws[1])


@pytest.mark.parametrize("method", [CPR, CCBP])
def test_rate_may_be_a_schedule(method):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [4], [0.0, 1.0]
    )
    x, y = make_data(4)
    model = make_model(activation="relu")
    plain = make_model(activation="relu")
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer = method(inner, replacement_rate=schedule, period=1, seed=1)
    model.compile(optimizer, "mse")
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    for update in range(6):
        plain.train_on_batch(x, y)
        for _ in range(2):
            model.train_on_batch(x, y)
        difference = max(
            np.abs(to_numpy(a.kernel) - to_numpy(b.kernel)).max()
            for a, b in zip(model.layers, plain.layers)
        )
        # After this update, `update + 1` have been made.
        assert (difference > 1e-2) == (update + 1 > 4), update


def test_slots_are_not_reset_on_request():
    with pytest.raises(
        ValueError,
        match="`CPR` does not take `reset_optimizer_state`: no unit is "
        "replaced as a whole.*Received: reset_optimizer_state=True",
    ):
        CPR(keras.optimizers.SGD(), reset_optimizer_state=True)


@pytest.mark.parametrize("method", [CPR, CCBP])
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("replacement_rate", -0.1, "must be a number in \\[0, 1\\]"),
        ("replacement_rate", 1.5, "must be a number in \\[0, 1\\]"),
        ("replacement_rate", "low", "must be a number in \\[0, 1\\]"),
        ("sharpness", -1, "must be a number that is not negative"),
        ("sharpness", None, "must be a number that is not negative"),
        ("decay_rate", 1.0, "must be a number in \\[0, 1\\)"),
        ("decay_rate", -0.5, "must be a number in \\[0, 1\\)"),
        ("period", 0, "must be a positive integer"),
        ("period", 2.5, "must be a positive integer"),
    ],
)
def test_bad_argument(method, name, value, message):
    with pytest.raises(
        ValueError, match=f"`{name}` {message}.*Received: {name}={value}"
    ):
        method(keras.optimizers.SGD(), **{name: value})


@pytest.mark.parametrize(
    "method, name, value, message",
    [
        (CPR, "threshold", -1, "must be a number that is not negative"),
        (CPR, "transform", "exp", "must be one of \\('exponential', "),
        (CPR, "transform", None, "must be one of"),
        (CCBP, "utility", "abs_mean", "must be one of \\('gradient_mag"),
        (CCBP, "utility", 3, "must be one of"),
        (CCBP, "continuous", 1, "must be `True` or `False`"),
        (CCBP, "maturity_threshold", -1, "must be an integer of at least 0"),
        (CCBP, "maturity_threshold", 0.5, "must be an integer of at least 0"),
    ],
)
def test_bad_argument_of_one(method, name, value, message):
    with pytest.raises(ValueError, match=f"`{name}` {message}.*Received: "):
        method(keras.optimizers.SGD(), **{name: value})
