import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from tests.helpers import to_numpy


def matrices(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, shape).astype("float32")


def numpy_orthogonalize(matrix, iterations):
    x = matrix.astype("float64")
    x = x / np.linalg.norm(x)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 4), (7, 1)])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_orthogonalize(shape, iterations):
    matrix = matrices(*shape)
    result = functional.orthogonalize(matrix, iterations)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result),
        numpy_orthogonalize(matrix, iterations),
        atol=2e-6,
    )


def test_orthogonalize_each_of_a_stack():
    stack = matrices(2, 3, 4, 5)
    result = ops.convert_to_numpy(functional.orthogonalize(stack))
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(
            result[index], numpy_orthogonalize(stack[index], 10), atol=2e-6
        )


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_orthogonalize_knows_no_scale(factor):
    matrix = matrices(4, 6)
    np.testing.assert_allclose(
        ops.convert_to_numpy(functional.orthogonalize(matrix * factor)),
        ops.convert_to_numpy(functional.orthogonalize(matrix)),
        atol=1e-5,
    )


def test_orthogonalize_ends_in_an_isometry():
    result = ops.convert_to_numpy(functional.orthogonalize(matrices(9, 4), 40))
    np.testing.assert_allclose(result.T @ result, np.eye(4), atol=1e-5)


def test_zeros_stay_zeros():
    zeros = np.zeros((2, 3, 4), "float32")
    for result in (
        functional.orthogonalize(zeros),
        functional.even_out_singular_values(zeros, 0.5),
    ):
        np.testing.assert_array_equal(ops.convert_to_numpy(result), zeros)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (2, 5, 4)])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_even_out_singular_values(shape, strength):
    matrix = matrices(*shape)
    # One singular value is 0, and so raised to the minimum.
    if shape[-2] < shape[-1]:
        matrix[..., 0, :] = matrix[..., 1, :]
    else:
        matrix[..., 0] = matrix[..., 1]
    values = np.linalg.svd(matrix.astype("float64"), compute_uv=False)
    assert values.min() < 1e-6
    raised = np.maximum(values, 0.01)
    new = raised.mean(-1, keepdims=True) ** strength * raised ** (1 - strength)
    result = ops.convert_to_numpy(
        functional.even_out_singular_values(matrix, strength, minimum=0.01)
    )
    np.testing.assert_allclose(
        np.linalg.svd(result, compute_uv=False), new, rtol=1e-4
    )


def test_even_out_singular_values_keeps_directions():
    matrix = matrices(6, 4)
    u, s, v = np.linalg.svd(matrix.astype("float64"), full_matrices=False)
    expected = (u * (s.mean() ** 0.4 * s**0.6)) @ v
    result = functional.even_out_singular_values(matrix, 0.4)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), expected, atol=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_shrink_towards_direction(axis):
    weights, direction = matrices(4, 5, 6), matrices(4, 5, 6, seed=1)
    cosine = np.sum(weights * direction, axis=axis, keepdims=True) / (
        np.linalg.norm(weights, axis=axis, keepdims=True)
        * np.linalg.norm(direction, axis=axis, keepdims=True)
    )
    assert cosine.min() < 0.2 < cosine.max()
    result = functional.shrink_towards_direction(weights, direction, 0.2, axis)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result),
        weights * np.clip(cosine, 0.2, 1),
        rtol=1e-4,
    )


def test_without_a_direction_all_shrink():
    weights = matrices(4, 5)
    result = functional.shrink_towards_direction(weights, 0 * weights, 0.25)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), 0.25 * weights, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: functional.orthogonalize(np.ones(3)),
            r"`matrix` must be a tensor of shape \(..., rows, columns\)",
        ),
        (
            lambda: functional.orthogonalize(np.ones((2, 2)), -1),
            "`iterations` must be an integer of at least 0",
        ),
        (
            lambda: functional.even_out_singular_values(np.ones((2, 2)), 1.5),
            r"`strength` must be a number in \[0, 1\]",
        ),
        (
            lambda: functional.even_out_singular_values(
                np.ones((2, 2)), 0.5, 0
            ),
            "`minimum` must be a positive number",
        ),
        (
            lambda: functional.shrink_towards_direction(
                np.ones((2, 2)), np.ones((3, 2)), 0.5
            ),
            "tensors of the same shape",
        ),
        (
            lambda: functional.shrink_towards_direction(
                np.ones((2, 2)), np.ones((2, 2)), 2
            ),
            r"`minimum` must be a number in \[0, 1\]",
        ),
        (
            lambda: functional.shrink_towards_direction(
                np.ones((2, 2)), np.ones((2, 2)), 0.1, axis=2
            ),
            "`axis` must be",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_that_of_the_result(dtype):
    x = ops.cast(matrices(3, 4), dtype)
    for result, expected in (
        (
            functional.orthogonalize(x),
            functional.orthogonalize(ops.cast(x, "float32")),
        ),
        (
            functional.even_out_singular_values(x, 0.5),
            functional.even_out_singular_values(ops.cast(x, "float32"), 0.5),
        ),
    ):
        assert keras.backend.standardize_dtype(result.dtype) == dtype
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(result, "float32")),
            ops.convert_to_numpy(
                ops.cast(ops.cast(expected, dtype), "float32")
            ),
        )


def test_a_matrix_that_is_not_finite_stays():
    stack = matrices(3, 4, 5)
    stack[1, 2, 3] = np.nan
    result = ops.convert_to_numpy(
        functional.even_out_singular_values(stack, 0.5)
    )
    np.testing.assert_array_equal(result[1], stack[1])
    np.testing.assert_allclose(
        result[2],
        ops.convert_to_numpy(
            functional.even_out_singular_values(stack[2], 0.5)
        ),
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_vectors_of_zeros_in_half_precision(dtype):
    zeros = ops.zeros((3,), dtype)
    shrunk = functional.shrink_towards_direction(zeros, ops.ones((3,)), 0.3)
    np.testing.assert_array_equal(to_numpy(shrunk), 0)
