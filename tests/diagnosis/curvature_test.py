"""Eigenvalues of the second derivatives of a model's loss."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import diagnosis
from keras_plasticity.diagnosis import curvature
from keras_plasticity.weights import weights_of
from tests.diagnosis.differences import hessian_of
from tests.diagnosis.differences import values_of
from tests.helpers import make_data
from tests.helpers import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

DIMS = (3, 4, 2)  # 26 weights.


def _model():
    model = make_model(dims=DIMS, layer=keras.layers.Dense)
    model.compile("sgd", "mse")
    return model


def _loss(weights, x, y):
    kernel, bias, last_kernel, last_bias = weights
    outputs = np.tanh(x @ kernel + bias) @ last_kernel + last_bias
    return np.mean((outputs - y) ** 2)


def test_eigenvalues_are_those_of_the_differences():
    model = _model()
    x, y = make_data(9, DIMS)
    matrix = hessian_of(_loss, values_of(model), x, y)
    expected = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    # All of them: there are no more weights than steps.
    values, weights = diagnosis.hessian_spectrum(
        model, (x, y), num_steps=26, batch_size=3
    )
    np.testing.assert_allclose(values, expected, atol=1e-4)
    np.testing.assert_allclose(weights, 1 / 26)
    for epsilon in (0.003, 0.1, 1.0):
        rank = diagnosis.hessian_rank(model, (x, y), epsilon, batch_size=3)
        assert rank == np.mean(np.abs(expected) > epsilon)
    sharpness = diagnosis.sharpness(model, (x, y), batch_size=3)
    assert sharpness == pytest.approx(expected[-1], rel=1e-4)
    # The largest ones in fewer steps, from any vector.
    for seed in (0, 1, None):
        sharpness = diagnosis.sharpness(model, (x, y), 12, 3, seed)
        assert sharpness == pytest.approx(expected[-1], rel=1e-3)
    values, weights = diagnosis.hessian_spectrum(
        model, (x, y), num_steps=12, num_vectors=3, batch_size=3
    )
    assert values.shape == weights.shape == (36,)
    assert np.all(np.diff(values) >= 0) and weights.sum() == pytest.approx(1)
    assert values[0] == pytest.approx(expected[0], abs=1e-3)


def test_a_loss_that_is_quadratic():
    # One unit, whose loss has the second derivatives 2 x^T x / n.
    model = make_model(dims=(5, 1), layer=keras.layers.Dense, use_bias=False)
    model.compile("sgd", "mse")
    x, y = make_data(20, (5, 1))
    expected = np.linalg.eigvalsh(2 * x.T @ x / 20)
    values, _ = diagnosis.hessian_spectrum(model, (x, y))
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    # One example.
    values, _ = diagnosis.hessian_spectrum(model, (x[:1], y[:1]))
    expected = [0.0, 0.0, 0.0, 0.0, 2 * np.sum(x[0] ** 2)]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert diagnosis.hessian_rank(model, (x[:1], y[:1])) == 1 / 5


def test_no_curvature():
    model = _model()
    for v in weights_of(model):
        v.assign(ops.zeros(v.shape))
    x, y = make_data(5, DIMS)
    # Of a network of zeros, only the last bias moves the outputs.
    assert diagnosis.hessian_rank(model, (x, y), num_steps=26) >= 2 / 26
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    flat.compile("sgd", loss=lambda y, outputs: ops.mean(0.0 * outputs))
    for num_steps in (3, 8):
        values, weights = diagnosis.hessian_spectrum(
            flat, (x, y), num_steps=num_steps
        )
        assert not values.any() and weights.sum() == pytest.approx(1)
    assert diagnosis.sharpness(flat, (x, y)) == 0.0
    assert diagnosis.hessian_rank(flat, (x, y)) == 0.0


def _matrix(values, seed=0):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (basis * values) @ basis.T


@pytest.mark.parametrize("num_steps", [1, 2, 7, 40])
def test_lanczos(num_steps):
    values = np.array([-3.0, 0.0, 0.5, 0.7, 2.0, 2.5, 9.0])
    matrix = _matrix(values)
    start = np.random.default_rng(1).normal(size=7)
    found, weights = curvature.lanczos(
        lambda vector: matrix @ vector, start, num_steps
    )
    assert len(found) == min(num_steps, 7)
    assert weights.sum() == pytest.approx(1.0)
    # The moments are those of the matrix.
    start = start / np.linalg.norm(start)
    for power in range(min(2 * num_steps, 8)):
        moment = start @ np.linalg.matrix_power(matrix, power) @ start
        assert np.sum(weights * found**power) == pytest.approx(moment, rel=1e-3)
    if num_steps >= 7:
        np.testing.assert_allclose(found, values, atol=1e-4)


def test_lanczos_ends_where_there_is_no_more():
    # Three different eigenvalues: so many steps.
    values = np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 0.0, 0.0, 0.0])
    matrix = _matrix(values)
    start = np.random.default_rng(1).normal(size=9)
    for scale in (1e-12, 1.0, 1e12):
        found, weights = curvature.lanczos(
            lambda vector: scale * matrix @ vector, start, 9
        )
        order = np.argsort(found)[-2:]
        np.testing.assert_allclose(found[order], [scale, 5 * scale], rtol=1e-3)
    found, weights = curvature.lanczos(np.zeros_like, start, 9)
    np.testing.assert_array_equal(found, [0.0])
    np.testing.assert_array_equal(weights, [1.0])


def test_the_share_is_right_over_vectors():
    values = np.zeros(200)
    values[:50] = np.linspace(1, 2, 50)
    matrix = _matrix(values)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        found, weights = curvature.lanczos(
            lambda vector: matrix @ vector, rng.normal(size=200), 20
        )
        shares.append(weights[np.abs(found) > 0.01].sum())
    # A standard error is about sqrt(2 * 0.25 * 0.75 / 200 / 40) = 0.007.
    assert np.mean(shares) == pytest.approx(0.25, abs=0.02)


def test_a_network_that_has_diverged():
    model = _model()
    data = make_data(5, DIMS)
    model.layers[0].bias.assign(np.full(4, np.nan))
    for num_steps in (5, 30):
        values, _ = diagnosis.hessian_spectrum(model, data, num_steps)
        assert np.isnan(values).all()
        assert np.isnan(diagnosis.hessian_rank(model, data, 0.1, num_steps))
        assert np.isnan(diagnosis.sharpness(model, data, num_steps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": np.ones((2, 3))}, r"`data` must be a tuple \(x, y\)"),
        ({"data": (np.ones((2, 3)), None, 1)}, "a tuple of length 3"),
        (
            {"data": (np.ones((2, 3)), np.ones((3, 2)))},
            r"one entry for each example.*shapes \[\(2, 3\), \(3, 2\)\]",
        ),
        ({"data": (np.ones((0, 3)), np.ones((0, 2)))}, "one example at least"),
        (
            {"data": (np.full((2, 3), np.nan), np.ones((2, 2)))},
            "`data` must be finite numbers.*NaN",
        ),
        ({"data": (["a"], np.ones((1, 2)))}, "one entry for each exam"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(arguments, message):
    good = {"model": _model(), "data": make_data(5, DIMS)}
    for measure in (diagnosis.hessian_rank, diagnosis.sharpness):
        with pytest.raises(ValueError, match=message):
            measure(**{**good, **arguments})


def test_models_that_have_no_second_derivatives():
    x, y = make_data(5, DIMS)
    model = make_model(dims=DIMS)
    with pytest.raises(ValueError, match="compiled with a loss"):
        diagnosis.sharpness(model, (x, y))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="epsilon=-1"):
        diagnosis.hessian_rank(model, (x, y), epsilon=-1)
    with pytest.raises(ValueError, match="num_vectors=0"):
        diagnosis.hessian_rank(model, (x, y), num_vectors=0)
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        diagnosis.sharpness(model, (x, y))
    with pytest.raises(TypeError, match="`model` must be a `keras.Model`"):
        diagnosis.sharpness("model", (x, y))
