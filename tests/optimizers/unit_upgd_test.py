import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.optimizers import UnitUPGD
from tests.gradients import loss_and_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train

_LOSS = keras.losses.MeanSquaredError()


class _Gate(keras.layers.Layer):
    """Multiplies each channel by a weight that is 1."""

    def build(self, input_shape):
        self.gate = self.add_weight(
            shape=input_shape[-1:], initializer="ones", name="gate"
        )

    def call(self, inputs):
        return inputs * self.gate


def _hidden(layer, gated, follow=(), input_shape=(6, 6, 4), readers=()):
    """A hidden layer, gated or not, what follows it, and who reads it."""
    inputs = keras.Input(input_shape)
    x = layer(inputs)
    for each in [*([_Gate()] if gated else []), *follow]:
        x = each(x)
    outputs = [
        keras.layers.Flatten()(reader(x))
        for reader in readers or [layers.Dense(3)]
    ]
    if len(outputs) > 1:
        outputs = [keras.layers.Concatenate()(outputs)]
    return keras.Model(inputs, outputs)


# What each makes of a network, which has a gate or not.
_NETWORKS = {
    "dense": lambda gated: _hidden(
        layers.Dense(5, activation="tanh"), gated, input_shape=(4,)
    ),
    "conv_and_flatten": lambda gated: _hidden(
        layers.Conv2D(5, (3, 2), activation="relu"),
        gated,
        [keras.layers.MaxPooling2D(), keras.layers.Flatten()],
    ),
    "average": lambda gated: _hidden(
        layers.Conv2D(5, 3, activation="gelu"),
        gated,
        [keras.layers.GlobalAveragePooling2D()],
    ),
    "conv_and_conv": lambda gated: _hidden(
        layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh"),
        gated,
        readers=[layers.Conv2D(6, 2, groups=2, padding="same", strides=2)],
    ),
    "transposed": lambda gated: _hidden(
        layers.Conv2DTranspose(4, 3, activation="tanh"),
        gated,
        readers=[layers.Conv2DTranspose(3, 2)],
    ),
    "separable": lambda gated: _hidden(
        layers.SeparableConv2D(4, 3, activation="tanh"),
        gated,
        readers=[layers.SeparableConv2D(3, 2, depth_multiplier=2)],
    ),
    "einsum": lambda gated: _hidden(
        layers.EinsumDense("abc,cd->abd", (3, 5), activation="tanh"),
        gated,
        input_shape=(3, 4),
        readers=[layers.EinsumDense("abd,de->abe", (3, 2))],
    ),
    "several_readers": lambda gated: _hidden(
        layers.Conv2D(5, 3, activation="tanh"),
        gated,
        readers=[layers.Dense(2), layers.Conv2D(3, 2), layers.Dense(1)],
    ),
}


@pytest.mark.parametrize("name", _NETWORKS)
def test_utility_is_the_gradient_of_a_gate(name):
    rng = np.random.default_rng(0)
    model, gated = _NETWORKS[name](False), _NETWORKS[name](True)
    gate = next(v for v in gated.trainable_variables if v.name == "gate")
    weights = [v for v in gated.trainable_variables if v is not gate]
    for one, other in zip(model.trainable_variables, weights, strict=True):
        if one.name in ("kernel", "bias") or one.name.endswith("_kernel"):
            value = rng.normal(0, 0.5, one.shape)
            one.assign(value)
            other.assign(value)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(3, *model.output_shape[1:])).astype("float32")
    _, gradients = loss_and_gradients(gated, _LOSS, x, y)
    (gradient,) = [
        to_numpy(g)
        for g, v in zip(gradients, gated.trainable_variables)
        if v is gate
    ]
    optimizer = UnitUPGD(keras.optimizers.SGD(0.1), utility_decay=0.0)
    _step(model, optimizer, x, y)
    (utility,) = _utilities(optimizer)
    np.testing.assert_allclose(utility, -gradient, rtol=1e-4, atol=1e-6)
    assert np.abs(utility).min() > 1e-4


def _step(model, optimizer, x, y):
    _, gradients = loss_and_gradients(model, _LOSS, x, y)
    optimizer.build(model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)


def _utilities(optimizer):
    return [
        to_numpy(variable)
        for variable in optimizer.variables
        if variable.name.endswith("_utility")
    ]


def _plain(**kwargs):
    """An optimizer that gates the step of SGD, and does nothing else."""
    settings = {"decay": 0.0, "noise_stddev": 0.0, "utility_decay": 0.0}
    return UnitUPGD(keras.optimizers.SGD(0.1), **(settings | kwargs))


def _gates(build, make, x, y):
    """Which part of the step of SGD weights have taken, by their names."""
    models = []
    for make_optimizer in (lambda: keras.optimizers.SGD(0.1), make):
        model = build()
        rng = np.random.default_rng(0)
        for variable in model.trainable_variables:
            if variable.name == "kernel":
                variable.assign(rng.normal(0, 0.5, variable.shape))
        start = {v.path: to_numpy(v) for v in model.trainable_variables}
        optimizer = make_optimizer()
        _step(model, optimizer, x, y)
        models.append((model, start, optimizer))
    result = []
    for model, start, _ in models:
        result.append(
            {
                f"{layer.name}/{variable.name}": to_numpy(variable)
                - start[variable.path]
                for layer in model.layers
                for variable in layer.trainable_variables
                if not hasattr(variable, "plastic_layer")
            }
        )
    plain, gated = result
    assert plain.keys() == gated.keys()
    with np.errstate(invalid="ignore", divide="ignore"):
        return {k: gated[k] / plain[k] for k in plain}, models[1][2]


def _distant_data():
    """Targets that no output reaches, for which some units are of use."""
    x, y = make_data(16)
    return x, 5 * y


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _assert_gates(actual, expected):
    # Of a bias whose gradient is 0, nothing is known.
    known = np.isfinite(actual)
    assert known.any()
    expected = np.broadcast_to(expected, actual.shape)
    np.testing.assert_allclose(actual[known], expected[known], rtol=2e-3)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_normalization_on_the_way_is_gated_with_its_units(scope):
    def build():
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6, use_bias=False, name="hidden"),
                keras.layers.LayerNormalization(name="norm"),
                keras.layers.ReLU(),
                layers.Dense(3, name="output"),
            ]
        )

    gates, optimizer = _gates(
        build, lambda: _plain(scope=scope), *_distant_data()
    )
    (utility,) = _utilities(optimizer)
    assert utility.max() > 0
    scale = utility.max() if scope == "global" else np.linalg.norm(utility)
    expected = 1 - _sigmoid(utility / scale)
    assert np.ptp(expected) > 0.05
    for name in ("hidden/kernel", "norm/gamma", "norm/beta"):
        _assert_gates(gates[name], expected)
    for name in ("output/kernel", "output/bias"):
        _assert_gates(gates[name], 1.0)


def _branches(join):
    def build():
        inputs = keras.Input((4,))
        x = join()(
            [
                layers.Dense(6, activation="tanh", name="one")(inputs),
                keras.layers.Dense(6, activation="tanh", name="two")(inputs),
            ]
        )
        x = keras.layers.LayerNormalization(name="norm")(x)
        return keras.Model(inputs, layers.Dense(3, name="output")(x))

    return build


def test_parameters_of_other_features_have_no_gates():
    build = _branches(keras.layers.Concatenate)
    gates, optimizer = _gates(build, _plain, *_distant_data())
    (utility,) = _utilities(optimizer)
    assert utility.max() > 0
    expected = 1 - _sigmoid(utility / utility.max())
    _assert_gates(gates["one/kernel"], expected)
    _assert_gates(gates["two/kernel"], 1.0)
    _assert_gates(gates["norm/gamma"], np.concatenate([expected, np.ones(6)]))


def test_parameters_of_other_features_have_no_noise():
    model = _branches(keras.layers.Concatenate)()
    optimizer = _plain(noise_stddev=10.0, noise_refresh_steps=2, seed=1)
    optimizer.build(model.trainable_variables)
    gamma = model.get_layer("norm").gamma
    before = {v.path: to_numpy(v) for v in model.trainable_variables}
    grads = [ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(grads, model.trainable_variables)
    noisy = to_numpy(gamma) != before[gamma.path]
    np.testing.assert_array_equal(noisy, np.arange(12) < 6)
    for name, is_noisy in {"one": True, "two": False, "output": False}.items():
        for variable in model.get_layer(name).trainable_weights[:2]:
            changed = to_numpy(variable) != before[variable.path]
            assert changed.all() if is_noisy else not changed.any()


def test_decay_of_all_weights():
    model = _branches(keras.layers.Concatenate)()
    optimizer = _plain(decay=0.5)
    optimizer.build(model.trainable_variables)
    weights = [
        v for v in model.trainable_variables if not UnitUPGD.is_statistic(v)
    ]
    before = [to_numpy(v) for v in weights]
    grads = [ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(grads, model.trainable_variables)
    for weight, value in zip(weights, before):
        np.testing.assert_allclose(to_numpy(weight), 0.95 * value, rtol=1e-6)


def test_excluded_readers_still_tell_of_utility():
    def utility_of(exclude):
        model = make_model()
        optimizer = _plain(exclude=exclude, decay=0.5)
        _step(model, optimizer, *make_data(8))
        return _utilities(optimizer), model

    all_of_them, _ = utility_of([])
    utilities, model = utility_of(["layer_2", "layer_0/bias"])
    for one, other in zip(utilities, all_of_them, strict=True):
        np.testing.assert_array_equal(one, other)
    twin = make_model()
    _step(twin, keras.optimizers.SGD(0.1), *make_data(8))
    for i, name, same in [
        (2, "kernel", True),
        (2, "bias", True),
        (0, "bias", True),
        (0, "kernel", False),
        (1, "kernel", False),
    ]:
        values = [
            to_numpy(getattr(each.layers[i], name)) for each in (model, twin)
        ]
        assert np.array_equal(*values) == same, (i, name)


def test_excluded_units_have_no_part_in_the_maximum():
    model = make_model()
    optimizer = _plain(exclude=["layer_0"])
    _step(model, optimizer, *make_data(8))
    (utility,) = _utilities(optimizer)
    assert utility.shape == (5,)


def test_units_that_are_not_replaceable_have_no_gates():
    def build():
        model = make_model()
        model.layers[0].replaceable = False
        return model

    gates, optimizer = _gates(build, _plain, *_distant_data())
    assert len(_utilities(optimizer)) == 1
    _assert_gates(gates["layer_0/kernel"], 1.0)
    assert np.nanmin(gates["layer_1/kernel"]) < 0.45


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_utilities_stay_where_nothing_that_reads_has_a_gradient():
    model = make_model()
    variables = model.trainable_variables
    optimizer = _plain(utility_decay=0.5)
    _, gradients = loss_and_gradients(model, _LOSS, *make_data(8))
    optimizer.build(variables)
    optimizer.apply(gradients, variables)
    first, second = _utilities(optimizer)
    hidden = model.layers[1].kernel
    optimizer.apply(
        [None if v is hidden else g for v, g in zip(variables, gradients)],
        variables,
    )
    after = _utilities(optimizer)
    np.testing.assert_array_equal(after[0], first)
    assert not np.array_equal(after[1], second)


def test_without_hidden_units():
    with pytest.raises(ValueError, match="There is no plastic layer"):
        train(make_plain_model(), _plain(), make_data(4))
    data = make_data(4, (4, 3))
    with pytest.raises(ValueError, match="no hidden unit to act on"):
        train(make_model((4, 3)), _plain(), data)
    model = make_model()
    with pytest.raises(ValueError, match="no hidden unit to act on"):
        train(model, _plain(exclude=["layer_0", "layer_1"]), make_data(4))
    model = make_model()
    model.layers[1].trainable = model.layers[2].trainable = False
    with pytest.raises(ValueError, match="no hidden unit to act on"):
        train(model, _plain(), make_data(4))


def test_bad_settings():
    with pytest.raises(ValueError, match="`scope` must be 'global' or 'loc"):
        _plain(scope="layer")
    optimizer = _plain()
    optimizer.build(make_model().trainable_variables)
    with pytest.raises(ValueError, match="of a `UnitUPGD` that was built"):
        optimizer.noise_stddev = 0.1


def test_inside_continual_backprop():
    model = make_model(activation="relu")
    inner = UnitUPGD(keras.optimizers.SGD(0.1), utility_decay=0.0, seed=3)
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        inner, replacement_rate=0.1, maturity_threshold=2, seed=3
    )
    train(model, optimizer, make_data(40))
    assert all(optimizer.num_replaced().values())
    assert all(np.abs(u).max() > 0 for u in _utilities(inner))
    assert all(np.isfinite(to_numpy(v)).all() for v in model.weights)


def test_around_continual_backprop():
    model = make_model(activation="relu")
    inner = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.1),
        replacement_rate=0.1,
        maturity_threshold=2,
        seed=3,
    )
    optimizer = UnitUPGD(inner, utility_decay=0.0, seed=3)
    train(model, optimizer, make_data(40))
    assert all(inner.num_replaced().values())
    assert all(np.abs(u).max() > 0 for u in _utilities(optimizer))


def test_learns():
    model = make_model()
    x, y = make_data(200)
    optimizer = UnitUPGD(keras.optimizers.Adam(0.02), noise_stddev=0.01, seed=1)
    train(model, optimizer, (x, y), batch_size=20, epochs=20)
    error = np.mean((to_numpy(model(x)) - y) ** 2)
    assert error < 0.7 * np.var(y)
