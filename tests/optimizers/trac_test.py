import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import TRAC
from tests.gradients import step_by_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train


def _loss_before_and_after(optimizer, model, steps=150):
    x, y = make_data(20)
    losses = [np.mean((to_numpy(model(x)) - y) ** 2)]
    train(model, optimizer, (x, y), batch_size=20, epochs=steps)
    return [*losses, np.mean((to_numpy(model(x)) - y) ** 2)]


@pytest.mark.parametrize("make", [make_plain_model, make_model])
def test_finds_the_scale_itself(make):
    # From 1e-8, and with a learning rate a thousand times too small.
    before, after = _loss_before_and_after(
        TRAC(keras.optimizers.SGD(1e-4)), make()
    )
    assert after < 0.7 * before


def test_a_useless_direction_is_given_up():
    # Steps uphill: weights stay about where they were.
    model = make_plain_model()
    start = [to_numpy(v) for v in model.weights]
    optimizer = TRAC(keras.optimizers.SGD(0.1), scale=0.1)
    variables = model.trainable_variables
    apply = step_by_gradients(optimizer, variables)
    for step in range(30):
        gradients = [ops.sign(v - s) for v, s in zip(variables, start)]
        if step == 0:
            gradients = [ops.ones(v.shape) for v in variables]
        apply(gradients)
    np.testing.assert_allclose(to_numpy(optimizer._total), 0.0, atol=1e-6)
    for variable, value in zip(variables, start):
        np.testing.assert_allclose(to_numpy(variable), value, atol=1e-5)


def test_the_first_step():
    # No distance yet: only the first sums count, whatever the gradient.
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer = TRAC(keras.optimizers.SGD(0.5), betas=[0.5], scale=0.01)
    apply = step_by_gradients(optimizer, [variable])
    apply([ops.convert_to_tensor([1.0, -2.0])])
    # erfi(0.5) / erfi(sqrt(0.5))
    scale = 0.01 * 0.6149520946965110 / 0.9534382692512609
    np.testing.assert_allclose(
        to_numpy(variable), [-0.5 * scale, scale], rtol=1e-5
    )


def test_what_is_lost_in_rounding_is_kept():
    # At 1,000 float32 knows nothing below 3e-5; steps are of 1e-8 at first.
    def run(start):
        variable = keras.Variable(np.full(2, start, "float32"))
        optimizer = TRAC(keras.optimizers.SGD(0.1), scale=1e-8)
        apply = step_by_gradients(optimizer, [variable])
        totals = []
        for _ in range(50):
            gradient = ops.convert_to_tensor([-1.0, 0.5])
            apply([gradient])
            totals.append(float(to_numpy(optimizer._total)))
        return totals, to_numpy(variable) - np.float32(start)

    expected, change = run(0.0)
    totals, change_far_off = run(1000.0)
    assert expected[-1] > 10 * expected[0]
    np.testing.assert_allclose(totals, expected, rtol=1e-4)
    np.testing.assert_allclose(change_far_off, change, rtol=1e-3)


def test_a_change_from_outside_is_kept():
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer = TRAC(keras.optimizers.SGD(0.1), betas=[0.9], scale=0.5)
    apply = step_by_gradients(optimizer, [variable])
    zeros = [ops.zeros(2)]
    apply([ops.convert_to_tensor([0.1, 0.1])])
    total = float(to_numpy(optimizer._total))
    variable.assign([1.0, -1.0])
    apply(zeros)
    new = float(to_numpy(optimizer._total))
    assert new > 0 and new != total
    np.testing.assert_allclose(
        to_numpy(variable), np.array([1, -1]) * new / total, rtol=1e-5
    )


def test_a_change_before_the_first_step_is_undone():
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer = TRAC(keras.optimizers.SGD(0.1))
    apply = step_by_gradients(optimizer, [variable])
    variable.assign([1.0, -1.0])
    for _ in range(3):
        apply([ops.ones(2)])
    assert np.abs(to_numpy(variable)).max() < 1e-6


def test_config_has_the_defaults_of_the_authors():
    config = TRAC(keras.optimizers.Adam()).get_config()
    assert config["betas"] == [0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
    assert config["scale"] == config["epsilon"] == 1e-8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"betas": []}, "`betas` must be one or more numbers"),
        ({"betas": 0.9}, "`betas` must be one or more numbers"),
        ({"betas": [0.9, 1.0]}, r"`betas` must be a number in \(0, 1\)"),
        ({"betas": [0.0]}, r"`betas` must be a number in \(0, 1\)"),
        ({"scale": 0}, "`scale` must be a positive number"),
        ({"epsilon": -1e-8}, "`epsilon` must be a positive number"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TRAC(keras.optimizers.SGD(), **settings)
