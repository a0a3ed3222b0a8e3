import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.optimizers import UPGD
from tests.gradients import step_by_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train


def _step(optimizer, values, gradients):
    """The new values of variables after one step."""
    variables = [keras.Variable(np.array(v, "float32")) for v in values]
    optimizer.build(variables)
    grads = [ops.convert_to_tensor(np.array(g, "float32")) for g in gradients]
    optimizer.apply(grads, variables)
    return [to_numpy(variable) for variable in variables]


def _upgd(rate=0.5, **kwargs):
    settings = {"decay": 0, "noise_stddev": 0, **kwargs}
    return UPGD(keras.optimizers.SGD(rate), **settings)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_useless_weights_take_half_a_step(scope):
    # Two of no utility, as they are 0, and one that is useful.
    (value,) = _step(_upgd(scope=scope), [[0, 0, 2]], [[1, -4, -1]])
    np.testing.assert_allclose(value[:2], [-0.25, 1.0], rtol=1e-6)
    if scope == "local":
        full = 2 + 0.5 * (1 - 1 / (1 + np.exp(-1)))
        np.testing.assert_allclose(value[2], full, rtol=1e-6)
    else:
        # The first maximum is without correction: the gate is shut.
        np.testing.assert_allclose(value[2], 2.0, rtol=1e-6)


def test_harmful_weights_take_a_full_step():
    (value,) = _step(_upgd(), [[2, 2]], [[-1, 1]])
    np.testing.assert_allclose(value, [2.0, 1.5], rtol=1e-6)


@pytest.mark.parametrize("gradient", [[1.0, 2.0], [0.0, 0.0]])
def test_without_a_useful_weight_all_take_half_a_step(gradient):
    (value,) = _step(_upgd(), [[1, 1]], [gradient])
    np.testing.assert_allclose(value, 1 - 0.25 * np.array(gradient), rtol=1e-6)


def test_the_maximum_is_over_all_variables():
    one = _step(_upgd(utility_decay=0.0), [[1.0], [1.0]], [[-1.0], [-2.0]])
    protection = 1 / (1 + np.exp(-np.array([0.5, 1.0])))
    expected = 1 + 0.5 * np.array([1, 2]) * (1 - protection)
    np.testing.assert_allclose(np.ravel(one), expected, rtol=1e-6)


def test_excluded_weights_have_no_part_in_it():
    model = make_plain_model()
    twin = make_plain_model()
    data = make_data(4)
    train(twin, keras.optimizers.SGD(0.1), data)
    optimizer = UPGD(
        keras.optimizers.SGD(0.1), exclude=["layer_1", "layer_2/bias"]
    )
    train(model, optimizer, data)
    for layer, other in zip(model.layers, twin.layers):
        for name in ("kernel", "bias"):
            value, alone = (
                to_numpy(getattr(each, name)) for each in (layer, other)
            )
            is_excluded = layer.name == "layer_1" or (
                layer.name == "layer_2" and name == "bias"
            )
            assert np.array_equal(value, alone) == is_excluded, layer.name


@pytest.mark.parametrize("protecting", [True, False])
def test_decay_and_noise(protecting):
    # No gradient, so no utility: all gates are half open.
    optimizer = _upgd(
        decay=0.2,
        noise_stddev=3.0,
        noise_refresh_steps=1,
        protecting=protecting,
        seed=1,
    )
    (value,) = _step(optimizer, [np.ones(100_000)], [np.zeros(100_000)])
    np.testing.assert_allclose(value.mean(), 0.9, atol=0.01)
    np.testing.assert_allclose(value.std(), 0.5 * 0.5 * 3.0, rtol=0.01)


def test_noise_of_updates_is_independent():
    optimizer = _upgd(1.0, noise_stddev=1.0, noise_refresh_steps=4, seed=1)
    variable = keras.Variable(np.zeros(50_000, "float32"))
    apply = step_by_gradients(optimizer, [variable])
    changes, before = [], to_numpy(variable)
    for _ in range(8):
        apply([ops.zeros(50_000)])
        after = to_numpy(variable)
        changes.append(after - before)
        before = after
    np.testing.assert_allclose(np.std(changes, axis=1), 0.5, rtol=0.02)
    correlations = np.corrcoef(changes) - np.eye(8)
    assert np.abs(correlations).max() < 0.025


def test_noise_of_what_was_built_without():
    optimizer = _upgd()
    optimizer.build([keras.Variable(np.zeros(3, "float32"))])
    assert not [v for v in optimizer.variables if "noise" == v.name]
    with pytest.raises(ValueError, match="built on a model with 0"):
        optimizer.noise_stddev = 0.1


def test_settings_change_during_training():
    optimizer = _upgd(utility_decay=0.9)
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer.build([variable])
    optimizer.decay = 0.5
    optimizer.utility_decay = 0.0
    assert optimizer.utility_decay == 0.0
    optimizer.apply([ops.zeros(2)], [variable])
    np.testing.assert_allclose(to_numpy(variable), 0.75)
    with pytest.raises(ValueError, match="`scope` of a `UPGD` cannot change"):
        optimizer.scope = "local"


def test_constraint_has_the_last_word():
    variable = keras.Variable(np.ones((2, 3), "float32"))
    variable.constraint = keras.constraints.NonNeg()
    optimizer = _upgd(noise_stddev=100.0, noise_refresh_steps=1, seed=3)
    optimizer.build([variable])
    optimizer.apply([ops.zeros((2, 3))], [variable])
    value = to_numpy(variable)
    assert value.min() == 0 and value.max() > 0


def test_plastic_layers_have_the_same_weights():
    plain, plastic = make_plain_model(), make_model()
    for model in (plain, plastic):
        train(model, UPGD(keras.optimizers.SGD(0.1), seed=3), make_data(24))
    for one, other in zip(plain.layers, plastic.layers):
        np.testing.assert_allclose(
            to_numpy(one.kernel), to_numpy(other.kernel), rtol=1e-5, atol=1e-6
        )


def test_learns():
    model = make_plain_model()
    x, y = make_data(200)
    optimizer = UPGD(keras.optimizers.Adam(0.02), noise_stddev=0.01, seed=1)
    train(model, optimizer, (x, y), batch_size=20, epochs=20)
    error = np.mean((to_numpy(model(x)) - y) ** 2)
    assert error < 0.7 * np.var(y)


def test_inside_continual_backprop():
    model = make_model(activation="relu")
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        UPGD(keras.optimizers.SGD(0.1), seed=3),
        replacement_rate=0.1,
        maturity_threshold=2,
        seed=3,
    )
    train(model, optimizer, make_data(40))
    assert all(optimizer.num_replaced().values())
    assert all(np.isfinite(to_numpy(v)).all() for v in model.weights)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scope": "layer"}, "`scope` must be 'global' or 'local'"),
        ({"protecting": 1}, "`protecting` must be `True` or `False`"),
        ({"utility_decay": 1.0}, r"`utility_decay` must be .* \[0, 1\)"),
        ({"decay": -0.1}, "`decay` must be a number that is not negative"),
        ({"noise_stddev": -1}, "`noise_stddev` must be .* not negative"),
        ({"noise_refresh_steps": 0}, "`noise_refresh_steps` must be a pos"),
        ({"exclude": "bias"}, "`exclude` must be a list of strings"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        UPGD(keras.optimizers.SGD(), **settings)


def test_accumulation_with_schedules():
    # The number of updates counts, within the condition that there is one.
    def make(**kwargs):
        schedule = keras.optimizers.schedules.PolynomialDecay
        return UPGD(
            keras.optimizers.SGD(0.5, **kwargs),
            utility_decay=0.8,
            decay=schedule(0.5, 6, 0.1),
            noise_stddev=0,
        )

    models = make_plain_model(), make_plain_model()
    data = make_data(24)
    train(models[0], make(), data, batch_size=4)
    train(models[1], make(gradient_accumulation_steps=2), data, batch_size=2)
    for one, other in zip(*(model.layers for model in models)):
        np.testing.assert_allclose(
            to_numpy(one.kernel), to_numpy(other.kernel), rtol=1e-4, atol=1e-5
        )
