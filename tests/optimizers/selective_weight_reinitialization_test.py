import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import SelectiveWeightReinitialization
from tests.gradients import step_by_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train


def _make(**kwargs):
    """Without a learning rate: nothing but replacement changes a weight."""
    return SelectiveWeightReinitialization(
        keras.optimizers.SGD(0.0), **{"period": 1, **kwargs}
    )


def _variables(**shapes):
    rng = np.random.default_rng(0)
    result = {}
    for name, shape in shapes.items():
        value = rng.uniform(1, 2, shape).astype("float32")
        result[name] = keras.Variable(value, name=name)
    return result


def _steps(optimizer, variables):
    """A function that makes steps, and returns what the variables then are."""
    values = list(variables.values())
    apply = step_by_gradients(optimizer, values)

    def run(number=1):
        for _ in range(number):
            apply([ops.ones(v.shape) for v in values])
        return {name: to_numpy(v) for name, v in variables.items()}

    return run


def test_what_the_new_values_are():
    variables = _variables(
        kernel=(3, 3, 100, 50), bias=(50,), gamma=(50,), scale=(7,), beta=(50,)
    )
    # Of all weights, as all have the mean utility at most ten times.
    new = _steps(_make(factor=10.0, seed=1), variables)()
    np.testing.assert_allclose(new["kernel"].mean(), 0.0, atol=1e-3)
    np.testing.assert_allclose(new["kernel"].std(), np.sqrt(2 / 900), rtol=0.02)
    for name, value in (("bias", 0), ("beta", 0), ("gamma", 1), ("scale", 1)):
        np.testing.assert_array_equal(new[name], value, err_msg=name)


def test_the_mean():
    variables = _variables(kernel=(8, 5), gamma=(5,))
    new = _steps(_make(factor=10.0, replacement="mean"), variables)()
    np.testing.assert_array_equal(new["kernel"], 0.0)
    np.testing.assert_array_equal(new["gamma"], 1.0)


@pytest.mark.parametrize(
    "initializer, limits",
    [
        # The square roots of 6 / (fan_in + fan_out) and of 1 / fan_in.
        ("glorot_uniform", {"conv": (6 / 1350) ** 0.5, "dense": 0.2}),
        (
            keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            {"conv": 1 / 30, "dense": 0.1},
        ),
    ],
)
def test_uniform_redraw(initializer, limits):
    variables = _variables(
        conv=(3, 3, 100, 50), dense=(100, 50), bias=(50,), gamma=(50,)
    )
    optimizer = _make(factor=10.0, initializer=initializer, seed=1)
    run = _steps(optimizer, variables)
    first, second = run(), run()
    for name, limit in limits.items():
        sample = np.sort(first[name].ravel())
        # Kolmogorov and Smirnov: the largest distance to a uniform law.
        quantiles = (np.arange(sample.size) + 0.5) / sample.size
        distance = np.abs((sample / limit + 1) / 2 - quantiles).max()
        assert distance < 2 / np.sqrt(sample.size)
        assert np.all(first[name] != second[name])
    np.testing.assert_array_equal(first["bias"], 0)
    np.testing.assert_array_equal(first["gamma"], 1)


def test_only_a_part_is_drawn_from_the_initializer():
    variables = _variables(kernel=(20, 10))
    optimizer = _make(
        rule="proportional",
        factor=0.1,
        utility="magnitude",
        initializer="orthogonal",
        seed=1,
    )
    old = to_numpy(variables["kernel"])
    new = _steps(optimizer, variables)()["kernel"]
    assert np.sum(new != old) == 20
    assert np.all(np.abs(new[new != old]) < 1)


def test_what_it_leaves_alone():
    variables = _variables(embeddings=(9, 4), temperature=(), kernel=(4, 3))
    old = {name: to_numpy(v) for name, v in variables.items()}
    new = _steps(_make(factor=10.0), variables)()
    np.testing.assert_array_equal(new["embeddings"], old["embeddings"])
    np.testing.assert_array_equal(new["temperature"], old["temperature"])
    assert np.all(new["kernel"] != old["kernel"])


@pytest.mark.parametrize("utility", ["gradient", "magnitude"])
def test_weights_of_no_utility_always_go(utility):
    variable = keras.Variable(np.array([[1.0, 0.0, -2.0]], "float32"))
    optimizer = _make(utility=utility, factor=0.0, seed=1)
    optimizer.build([variable])
    gradient = np.array([[0.0, 3.0, 1.0]], "float32")
    optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    value = to_numpy(variable)
    expected = [utility == "gradient", True, False]
    np.testing.assert_array_equal(value[0] != [1, 0, -2], expected)


@pytest.mark.parametrize("period", [1, 3])
def test_period_and_number(period):
    variables = _variables(kernel=(25, 8))
    optimizer = _make(rule="proportional", factor=0.1, period=period, seed=1)
    run = _steps(optimizer, variables)
    before = to_numpy(variables["kernel"])
    for step in range(1, 7):
        after = run()["kernel"]
        assert np.sum(after != before) == (20 if step % period == 0 else 0)
        before = after


def test_the_fraction_decides_by_chance():
    variables = _variables(kernel=(5, 3))
    optimizer = _make(rule="proportional", factor=0.15, seed=1)  # 2.25 of 15.
    run = _steps(optimizer, variables)
    numbers = []
    before = to_numpy(variables["kernel"])
    for _ in range(200):
        after = run()["kernel"]
        numbers.append(np.sum(after != before))
        before = after
    assert set(numbers) == {2, 3}
    np.testing.assert_allclose(np.mean(numbers), 2.25, atol=0.1)


def test_means_begin_anew_where_a_weight_was_replaced():
    variables = _variables(kernel=(4, 3), small=(3, 1))
    optimizer = _make(
        utility="magnitude",
        rule="proportional",
        factor=0.1,  # 1.2 and 0.3 weights.
        decay_rate=0.5,
        period=2,
        seed=2,
    )
    run = _steps(optimizer, variables)
    seen = set()
    for step in range(1, 21):
        before = {k: to_numpy(v) for k, v in variables.items()}
        after = run()
        for name, variable in variables.items():
            mean = to_numpy(optimizer._means[id(variable)])
            is_replaced = np.any(before[name] != after[name])
            if is_replaced:
                assert step % 2 == 0
                np.testing.assert_array_equal(mean, 0.0)
            else:
                assert np.all(mean > 0)
            seen.add((name, step % 2 == 0, bool(is_replaced)))
    assert ("small", True, True) in seen and ("small", True, False) in seen


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 2, 5)])
def test_of_equally_useful_weights_those_of_the_first_units_go(shape):
    variables = _variables(kernel=shape)
    optimizer = _make(utility="magnitude", rule="proportional", factor=0.4)
    kernel = variables["kernel"]
    kernel.assign(np.ones(shape, "float32"))
    new = _steps(optimizer, variables)()["kernel"]
    np.testing.assert_array_equal(new[..., :2] == 1, False)
    np.testing.assert_array_equal(new[..., 2:], 1)


def test_random_utility():
    """Each weight goes as often as any other."""
    variables = _variables(kernel=(10, 6))
    optimizer = _make(utility="random", rule="proportional", factor=0.1, seed=3)
    run = _steps(optimizer, variables)
    times = np.zeros((10, 6))
    before = to_numpy(variables["kernel"])
    for _ in range(200):
        after = run()["kernel"]
        assert np.sum(after != before) == 6
        times += after != before
        before = after
    # Binomial: a mean of 20, a standard deviation of 4.2.
    assert times.min() > 5 and times.max() < 40


def test_slots_stay_as_they_are():
    variables = _variables(kernel=(4, 3))
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = SelectiveWeightReinitialization(inner, factor=10.0, period=1)
    _steps(optimizer, variables)()
    (velocity,) = [v for v in inner.variables if "momentum" in v.path]
    np.testing.assert_allclose(to_numpy(velocity), -0.1, rtol=1e-6)


def test_constraint():
    variables = _variables(kernel=(40, 30))
    variables["kernel"].constraint = keras.constraints.NonNeg()
    new = _steps(_make(factor=10.0, seed=1), variables)()["kernel"]
    assert new.min() == 0 and new.max() > 0


def test_models():
    for model in (make_plain_model(), make_model()):
        optimizer = SelectiveWeightReinitialization(
            keras.optimizers.Adam(0.01),
            rule="proportional",
            factor=0.01,
            period=5,
            seed=1,
        )
        x, y = make_data(200)
        train(model, optimizer, (x, y), batch_size=20, epochs=20)
        error = np.mean((to_numpy(model(x)) - y) ** 2)
        assert error < 0.7 * np.var(y)


def test_settings_change_during_training():
    variables = _variables(kernel=(20, 10))
    optimizer = _make(rule="proportional", factor=0.1, period=100)
    run = _steps(optimizer, variables)
    before = run()["kernel"]
    optimizer.period = 2
    optimizer.factor = 0.5
    after = run()["kernel"]
    assert np.sum(after != before) == 100
    with pytest.raises(ValueError, match=r"`factor` must be .* \[0, 1\]"):
        optimizer.factor = 1.5
    with pytest.raises(ValueError, match="`rule` of a .* cannot change"):
        optimizer.rule = "threshold"


def test_a_schedule():
    variables = _variables(kernel=(20, 10))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [2], [0.0, 0.5]
    )
    optimizer = _make(rule="proportional", factor=schedule)
    run = _steps(optimizer, variables)
    start = to_numpy(variables["kernel"])
    np.testing.assert_array_equal(run(2)["kernel"], start)
    assert np.sum(run()["kernel"] != start) == 100


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"utility": "sum"}, "`utility` must be one of .'gradient', 'magn"),
        ({"rule": "most"}, "`rule` must be 'threshold' or 'proportional'"),
        ({"replacement": "0"}, "`replacement` must be 'resample' or 'mean'"),
        ({"factor": -1}, "`factor` must be a number that is not negative"),
        ({"factor": 2, "rule": "proportional"}, r"`factor` must .* \[0, 1\]"),
        ({"period": 0}, "`period` must be a positive integer"),
        ({"decay_rate": 1}, r"`decay_rate` must be a number in \[0, 1\)"),
        ({"initializer": "even"}, "`initializer` must be `None`, a Keras init"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectiveWeightReinitialization(keras.optimizers.SGD(), **settings)


def test_nothing_to_act_on():
    variables = _variables(embeddings=(9, 4), temperature=())
    with pytest.raises(ValueError, match="has no weight to act on"):
        _make().build(list(variables.values()))
