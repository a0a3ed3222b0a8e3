import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 3)])
def test_orthogonality_gradient(shape):
    w = np.random.default_rng(0).normal(size=shape)
    result = functional.orthogonality_gradient(
        ops.convert_to_tensor(w.astype("float32")), 0.5
    )
    for expected in (
        4 * w @ (w.T @ w - 0.5 * np.eye(shape[1])),
        4 * (w @ w.T - 0.5 * np.eye(shape[0])) @ w,
    ):
        np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-4)


@pytest.mark.parametrize("num_iterations", [0, 1, 2, 10])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (1, 3), (3, 1)])
def test_spectral_norm_and_gradient(shape, num_iterations):
    rng = np.random.default_rng(0)
    matrix, start = rng.normal(size=shape), rng.normal(size=shape[1])

    def norm(w):
        v = start
        for _ in range(num_iterations):
            v = w.T @ w @ v
            v = v / (np.linalg.norm(v) + 1e-6)
        return np.linalg.norm(w @ v)

    value, gradient = functional.spectral_norm_and_gradient(
        ops.convert_to_tensor(matrix.astype("float32")),
        ops.convert_to_tensor(start.astype("float32")),
        num_iterations,
    )
    np.testing.assert_allclose(float(value), norm(matrix), rtol=1e-5)
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        shift = np.zeros(shape)
        shift[index] = 1e-6
        slope = norm(matrix + shift) - norm(matrix - shift)
        expected[index] = slope / 2e-6
    np.testing.assert_allclose(to_numpy(gradient), expected, atol=1e-4)


def test_spectral_norm_of_many_iterations_is_the_largest_singular_value():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(6, 5)).astype("float32")
    value, gradient = functional.spectral_norm_and_gradient(
        ops.convert_to_tensor(matrix), ops.ones((5,)), 200
    )
    u, singular_values, vt = np.linalg.svd(matrix)
    np.testing.assert_allclose(float(value), singular_values[0], rtol=1e-4)
    expected = np.outer(u[:, 0], vt[0])
    np.testing.assert_allclose(to_numpy(gradient), expected, atol=1e-3)


def test_spectral_norm_of_zeros_has_no_gradient():
    value, gradient = functional.spectral_norm_and_gradient(
        ops.zeros((3, 2)), ops.ones((2,))
    )
    assert float(value) == 0
    np.testing.assert_array_equal(to_numpy(gradient), 0.0)


def test_project_to_norm():
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(3, 2)), rng.normal(size=(5,))]
    joint = np.sqrt(sum((t**2).sum() for t in tensors))
    given = [ops.convert_to_tensor(t.astype("float32")) for t in tensors]
    np.testing.assert_allclose(
        float(functional.joint_norm(given)), joint, rtol=1e-6
    )
    result = functional.project_to_norm(given, 2.5)
    for value, tensor in zip(result, tensors, strict=True):
        np.testing.assert_allclose(
            to_numpy(value), tensor * 2.5 / joint, rtol=1e-5
        )


@pytest.mark.parametrize(("value", "norm"), [(0.0, 2.0), (3.0, 0.0)])
def test_what_is_zero_is_not_projected(value, norm):
    [result] = functional.project_to_norm([ops.full((2,), value)], norm)
    np.testing.assert_array_equal(to_numpy(result), value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: functional.distance_gradient(1.0, "l0"),
            "`distance` must be one of .*Received: distance=l0",
        ),
        (
            lambda: functional.orthogonality_gradient(np.ones((2, 3, 4))),
            r"`matrix` must have two axes.*matrix.shape=\(2, 3, 4\)",
        ),
        (
            lambda: functional.orthogonality_gradient(np.eye(3), np.ones(3)),
            r"`scale` must be one number. Received: scale.shape=\(3,\)",
        ),
        (
            lambda: functional.spectral_norm_and_gradient(
                np.ones((2, 3)), np.ones(2)
            ),
            r"one entry for each column.*start.shape=\(2,\)",
        ),
        (
            lambda: functional.spectral_norm_and_gradient(
                np.ones((2, 3)), np.ones(3), -1
            ),
            "`num_iterations` must be an integer of at least 0",
        ),
        (
            lambda: functional.project_to_norm(3.0, 1.0),
            "`tensors` must be a list of tensors. Received: tensors=3.0",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
