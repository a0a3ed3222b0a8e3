"""What optimizers observe of the gradients of a unit's own weights."""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import UnitResetOptimizer
from tests.gradients import loss_and_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()
_MSE = keras.losses.MeanSquaredError()
_NAMES = ("gradient_magnitude", "gradient_norm", "bias_gradient_magnitude")


class Record(UnitResetOptimizer):
    """Replaces nothing, and keeps what it was told last."""

    observed = _NAMES

    def add_state(self, units):
        units.kept = [units.add_variable(name) for name in _NAMES]

    def update_statistics(self, units):
        for name, variable in zip(_NAMES, units.kept):
            variable.assign(getattr(units, name)())


def _kept(optimizer):
    """For each layer, what it was told last: dict from name to array."""
    return [
        {n: to_numpy(v) for n, v in zip(_NAMES, units.kept)}
        for units in optimizer.hidden
    ]


def _by_unit(kernel_gradient, unit_of_entry, bias_gradient=None):
    """The expected numbers, unit by unit.

    Args:
        kernel_gradient: Array.
        unit_of_entry: Integer array that broadcasts to the same shape, the
            unit that each weight is an incoming weight of.
        bias_gradient: Array of shape `(units,)`.
    """
    units = np.broadcast_to(unit_of_entry, kernel_gradient.shape)
    entries = [
        np.float64(kernel_gradient)[units == u] for u in range(units.max() + 1)
    ]
    zeros = np.zeros(len(entries))
    return {
        "gradient_magnitude": [np.abs(each).mean() for each in entries],
        "gradient_norm": [np.sqrt((each**2).sum()) for each in entries],
        "bias_gradient_magnitude": zeros
        if bias_gradient is None
        else np.abs(bias_gradient),
    }


def _assert_equal(actual, expected):
    for name in _NAMES:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=1e-5, atol=1e-8, err_msg=name
        )


# The layer, the shape of its inputs, and what counts its units.
_KINDS = {
    "dense": (lambda: layers.Dense(5), (4,), lambda shape: np.arange(5)),
    "dense_without_bias": (
        lambda: layers.Dense(5, use_bias=False),
        (4,),
        lambda shape: np.arange(5),
    ),
    "dense_on_sequences": (
        lambda: layers.Dense(5),
        (3, 4),
        lambda shape: np.arange(5),
    ),
    "einsum": (
        lambda: layers.EinsumDense("ab,cb->ac", 5, bias_axes="c"),
        (4,),
        lambda shape: np.arange(5)[:, None],
    ),
    "groups": (
        lambda: layers.Conv2D(6, (2, 3), groups=2),
        (4, 5, 4),
        lambda shape: np.arange(6),
    ),
    "transposed": (
        lambda: layers.Conv2DTranspose(5, 2),
        (3, 3, 2),
        lambda shape: np.arange(5)[:, None],
    ),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(2, depth_multiplier=2),
        (4, 4, 3),
        lambda shape: np.arange(6).reshape(3, 2),
    ),
    "separable": (
        lambda: layers.SeparableConv2D(5, 2, depth_multiplier=2),
        (4, 4, 3),
        lambda shape: np.arange(5),
    ),
}


@pytest.mark.parametrize(
    "kind", mostly_on_torch(sorted(_KINDS), "dense", "depthwise")
)
def test_kinds_of_layers(kind):
    make_layer, shape, units_of = _KINDS[kind]
    layer = make_layer()
    model = keras.Sequential(
        [
            keras.Input(shape),
            layer,
            keras.layers.Flatten(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, *shape)).astype("float32")
    y = rng.normal(size=(6, 3)).astype("float32")
    _, gradients = loss_and_gradients(model, _MSE, x, y)
    gradient_of = {
        v.path: to_numpy(g)
        for v, g in zip(model.trainable_variables, gradients)
    }
    optimizer = Record(keras.optimizers.SGD(0.1, clipnorm=1e-3))
    optimizer.apply(gradients, model.trainable_variables)
    name = "pointwise_kernel" if kind == "separable" else "kernel"
    kernel = gradient_of[f"{layer.path}/{name}"]
    bias = gradient_of.get(f"{layer.path}/bias")
    (actual,) = _kept(optimizer)
    _assert_equal(actual, _by_unit(kernel, units_of(kernel.shape), bias))
    assert np.all(actual["gradient_magnitude"] > 0)


def _expected(model, batches):
    """What is told of dense layers after an update on several batches."""
    means = None
    for x, y in batches:
        _, gradients = loss_and_gradients(model, _MSE, x, y)
        parts = [to_numpy(g) / len(batches) for g in gradients]
        means = (
            parts if means is None else [a + b for a, b in zip(means, parts)]
        )
    gradient_of = {v.path: g for v, g in zip(model.trainable_variables, means)}
    return [
        _by_unit(
            gradient_of[f"{layer.path}/kernel"],
            np.arange(layer.units),
            gradient_of[f"{layer.path}/bias"],
        )
        for layer in model.layers[:-1]
    ]


_SCALED = {
    "alone": lambda inner: inner,
    "scaled": lambda inner: keras.optimizers.LossScaleOptimizer(
        inner, initial_scale=1024.0
    ),
}


@pytest.mark.parametrize("scale", _SCALED)
@pytest.mark.parametrize("steps", [1, 3])
def test_are_those_of_the_update(steps, scale):
    model = make_model(activation="relu")
    inner = keras.optimizers.SGD(
        0.0, gradient_accumulation_steps=steps if steps > 1 else None
    )
    optimizer = Record(_SCALED[scale](inner))
    model.compile(optimizer, "mse")
    x, y = make_data(24 * steps)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
    for i in range(2):
        batches_of_update = batches[steps * i : steps * (i + 1)]
        for j, batch in enumerate(batches_of_update):
            before = _kept(optimizer) if optimizer.built else None
            model.train_on_batch(*batch)
            if before is not None and j < steps - 1:
                # Nothing is told within an update.
                for told, kept in zip(_kept(optimizer), before):
                    np.testing.assert_array_equal(
                        told["gradient_norm"], kept["gradient_norm"]
                    )
        told = _kept(optimizer)
        # Batches of half an update, or of the one before, would differ.
        for actual, expected in zip(told, _expected(model, batches_of_update)):
            _assert_equal(actual, expected)
            assert np.any(actual["bias_gradient_magnitude"])


@pytest.mark.parametrize("steps", [1, 2])
def test_skipped_steps_count_for_nothing(steps):
    model = make_model(activation="relu")
    inner = keras.optimizers.SGD(
        0.0, gradient_accumulation_steps=steps if steps > 1 else None
    )
    optimizer = Record(
        keras.optimizers.LossScaleOptimizer(inner, initial_scale=256.0)
    )
    model.compile(optimizer, "mse")
    x, y = make_data(4 * steps)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
    infinite = np.full((4, 4), np.inf, "float32")
    for batch in batches:
        model.train_on_batch(*batch)
        model.train_on_batch(infinite, y[:4])
    assert int(optimizer.iterations) == 1
    for actual, expected in zip(_kept(optimizer), _expected(model, batches)):
        _assert_equal(actual, expected)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize("steps", [1, 2])
def test_weights_without_a_gradient(steps):
    """A stopped gradient: the units are read, but do not learn."""
    model = make_model(activation="relu")
    inner = keras.optimizers.SGD(
        0.1, gradient_accumulation_steps=steps if steps > 1 else None
    )
    optimizer = Record(inner)
    variables = model.trainable_variables
    optimizer.build(variables)
    for _ in range(steps):
        _, gradients = loss_and_gradients(model, _MSE, *make_data(4))
        optimizer.apply(
            [
                None if "layer_0/" in v.path else gradient
                for gradient, v in zip(gradients, variables)
            ],
            variables,
        )
    first, second = _kept(optimizer)
    for name in _NAMES:
        np.testing.assert_array_equal(first[name], 0.0)
        assert np.any(second[name])


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
def test_layer_that_took_no_part():
    inputs = keras.Input((4,))
    outputs = []
    for name in "ab":
        hidden = layers.Dense(5, activation="relu", name=f"{name}_0")(inputs)
        outputs.append(layers.Dense(1, name=f"{name}_1")(hidden))
    model = keras.Model(inputs, outputs)
    optimizer = Record(keras.optimizers.SGD(0.1))
    model.compile(optimizer, ["mse", "mse"])
    x, y = make_data(4)
    model.train_on_batch(x, [y[:, :1], y[:, 1:2]])
    assert [units.layer.name for units in optimizer.hidden] == ["b_0", "a_0"]
    before = _kept(optimizer)
    assert all(np.any(each["gradient_norm"]) for each in before)
    model.compile(optimizer, ["mse", None])
    model.train_on_batch(x, [y[:, :1], y[:, 1:2]])
    after = _kept(optimizer)
    for name in _NAMES:
        np.testing.assert_array_equal(before[0][name], after[0][name])
        assert np.any(before[1][name] != after[1][name])


@pytest.mark.skipif(
    _BACKEND == "jax", reason="Keras refuses another number of variables"
)
def test_layer_frozen_later():
    model = make_model(activation="relu")
    optimizer = Record(keras.optimizers.SGD(0.1))
    model.compile(optimizer, "mse")
    model.train_on_batch(*make_data(4))
    before = _kept(optimizer)
    model.layers[0].trainable = False
    model.compile(optimizer, "mse")
    model.train_on_batch(*make_data(4, seed=2))
    after = _kept(optimizer)
    for name in _NAMES:
        np.testing.assert_array_equal(before[0][name], after[0][name])
        assert np.any(before[1][name] != after[1][name])


@pytest.mark.parametrize("name", _NAMES)
def test_what_is_not_observed(name):
    model = make_model()
    optimizer = ReDo(keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)
    with pytest.raises(
        ValueError,
        match=f"`{name}` is known in an update of an optimizer that observes "
        "it. Received: `observed` of `ReDo` is \\('activation_magnitude',\\)",
    ):
        getattr(optimizer.hidden[0], name)()
