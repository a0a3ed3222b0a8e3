"""Formulas that change the singular values of a matrix."""

import keras
from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor


def orthogonalize(matrix: Tensor, iterations: int = 10) -> Tensor:
    """Moves all singular values of a matrix towards 1.

    The matrix is divided by its Frobenius norm, and then, `iterations` times,
    `X <- 1.5 X - 0.5 X X^T X`, the iteration of Newton and Schulz. It takes
    singular values in `(0, 1]` to 1, small ones last: each of them grows by
    half in an iteration. The singular vectors stay as they are.

    Args:
        matrix: Float tensor of shape `(..., rows, columns)`.
        iterations: Integer, at least 0. Defaults to `10`.

    Returns:
        Tensor of the same shape. A matrix of zeros stays one.

    Example:

    >>> matrix = ops.convert_to_tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> ops.convert_to_numpy(
    ...     keras_plasticity.functional.orthogonalize(matrix)).round(4)
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    x = check_matrix("matrix", matrix)
    iterations = validation.check_integer("iterations", iterations, 0)
    dtype, x = x.dtype, at_least_float32(x)
    # First by the largest entry, so that no square overflows or vanishes.
    x = _divide(x, ops.max(ops.abs(x), axis=(-2, -1), keepdims=True))
    norm = ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True))
    x = _divide(x, norm)
    is_wide = x.shape[-2] < x.shape[-1]
    transposed = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    for _ in range(iterations):
        other = ops.transpose(x, transposed)
        # The smaller of the two products.
        if is_wide:
            cubed = ops.matmul(ops.matmul(x, other), x)
        else:
            cubed = ops.matmul(x, ops.matmul(other, x))
        x = 1.5 * x - 0.5 * cubed
    return ops.cast(x, dtype)


def even_out_singular_values(
    matrix: Tensor, strength: float, minimum: float = 1e-4
) -> Tensor:
    """Moves the singular values of a matrix towards their mean.

    `s <- mean(s)**strength * s**(1 - strength)`, with all `s` below `minimum`
    raised to it before.

    Args:
        matrix: Float tensor of shape `(..., rows, columns)`.
        strength: Float in [0, 1]. With 1, all become the mean.
        minimum: Float, above 0. Defaults to `1e-4`.

    Returns:
        Tensor of the same shape. A matrix of zeros, of which no direction is
        more than another, stays one, and so does one that is not finite.

    Example:

    >>> matrix = ops.convert_to_tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> ops.convert_to_numpy(
    ...     keras_plasticity.functional.even_out_singular_values(
    ...         matrix, strength=1.0)).round(4)
    array([[2.5, 0. ],
           [0. , 2.5]], dtype=float32)
    """
    matrix = check_matrix("matrix", matrix)
    strength = validation.check_in_interval("strength", strength, "[0, 1]")
    minimum = validation.check_positive("minimum", minimum)
    exact = at_least_float32(matrix)
    is_finite = ops.all(ops.isfinite(exact), axis=(-2, -1), keepdims=True)
    left, values, right = ops.svd(
        ops.where(is_finite, exact, 0.0), full_matrices=False
    )
    raised = ops.maximum(values, minimum)
    mean = ops.mean(raised, axis=-1, keepdims=True)
    new = ops.power(mean, strength) * ops.power(raised, 1.0 - strength)
    result = ops.matmul(left * new[..., None, :], right)
    is_zero = ops.max(values, axis=-1)[..., None, None] < _SMALLEST
    stays = ops.logical_or(is_zero, ops.logical_not(is_finite))
    return ops.where(stays, matrix, ops.cast(result, matrix.dtype))


def shrink_towards_direction(
    weights: Tensor, direction: Tensor, minimum: float, axis: int = 0
) -> Tensor:
    """Shrinks vectors of weights by how little they point in a direction.

    `w <- w * clip(cos(w, d), minimum, 1)`, where `cos` is the cosine of the
    angle between the two.

    Args:
        weights: Float tensor.
        direction: Float tensor of the same shape.
        minimum: Float in [0, 1], the least factor.
        axis: Integer, along which the vectors lie. Defaults to `0`: a column
            is one.

    Returns:
        Tensor of the same shape.

    Example:

    >>> weights = ops.convert_to_tensor([[3.0, 1.0], [4.0, 1.0]])
    >>> direction = ops.convert_to_tensor([[0.0, -1.0], [2.0, -1.0]])
    >>> ops.convert_to_numpy(
    ...     keras_plasticity.functional.shrink_towards_direction(
    ...         weights, direction, minimum=0.1))
    array([[2.4, 0.1],
           [3.2, 0.1]], dtype=float32)
    """
    weights, direction = validation.check_tensors(
        weights=weights, direction=direction
    )
    shapes = [validation.shape_of(each) for each in (weights, direction)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            "`weights` and `direction` must be tensors of the same shape, of "
            "one axis or more. Received: "
            f"weights.shape={shapes[0]}, direction.shape={shapes[1]}"
        )
    minimum = validation.check_in_interval("minimum", minimum, "[0, 1]")
    rank = len(shapes[0])
    axis = validation.check_integer("axis", axis, -rank, rank - 1)
    dtype = weights.dtype
    weights, direction = map(at_least_float32, (weights, direction))
    lengths = [
        ops.maximum(
            ops.sqrt(ops.sum(ops.square(each), axis=axis, keepdims=True)), 1e-8
        )
        for each in (weights, direction)
    ]
    dot = ops.sum(weights * direction, axis=axis, keepdims=True)
    cosine = dot / lengths[0] / lengths[1]
    return ops.cast(weights * ops.clip(cosine, minimum, 1.0), dtype)


# Of the largest singular value, below which there is nothing to even out.
_SMALLEST = 1e-12


def _divide(x: Tensor, norm: Tensor) -> Tensor:
    return x / ops.where(norm > 0, norm, 1.0)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for products of many matrices."""
    is_half = keras.backend.standardize_dtype(x.dtype) in (
        "float16",
        "bfloat16",
    )
    return ops.cast(x, "float32") if is_half else x


def check_matrix(name: str, value: Tensor) -> Tensor:
    """Checks that an argument is one matrix or more: a tensor."""
    (tensor,) = validation.check_tensors(**{name: value})
    shape = validation.shape_of(tensor)
    if len(shape) < 2 or 0 in shape:
        rule = "a tensor of shape (..., rows, columns) that is not empty"
        raise validation.error(name, rule, value)
    return tensor
