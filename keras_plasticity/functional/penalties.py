"""Gradients of penalties on weights.

An optimizer adds them to the gradients of the loss, or takes steps along them.
A kernel is a matrix of shape `(inputs, units)`: one column a unit.
"""

from typing import Any

import keras
from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor

DISTANCES = ("l2", "l1", "huber")
# What the authors of L2-ER add to the norm that they divide by.
_EPSILON = 1e-6
# Below any norm that matters: what is divided by it is zero.
_TINY = 1e-30


def distance_gradient(difference: Tensor, distance: str = "l2") -> Tensor:
    """Gradient of a distance, summed over all entries.

    Args:
        difference: Tensor, the vector `d` from one point to another.
        distance: String:
            - `"l2"`: `1/2 * d**2`, with the gradient `d`;
            - `"l1"`: `|d|`, with the gradient `sign(d)`, 0 at 0;
            - `"huber"`: `1/2 * d**2` where `|d| <= 1`, else `|d| - 1/2`, with
                the gradient `clip(d, -1, 1)`.

            Defaults to `"l2"`.

    Returns:
        Tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.distance_gradient(
    ...     ops.convert_to_tensor([-3.0, 0.0, 0.5]), "huber"))
    array([-1. ,  0. ,  0.5], dtype=float32)
    """
    (difference,) = validation.check_tensors(difference=difference)
    distance = validation.check_choice("distance", distance, DISTANCES)
    if distance == "l1":
        return ops.sign(difference)
    if distance == "huber":
        return ops.clip(difference, -1.0, 1.0)
    return difference


def orthogonality_gradient(matrix: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient of `sum((W^T W - scale * I)**2)`, which is
    `4 * (W W^T W - scale * W)`.

    It is zero where the columns of a tall matrix, or the rows of a wide one,
    are orthogonal and of squared length `scale`. `sum((W W^T - scale * I)**2)`
    has the same gradient: the two differ by a constant.

    Args:
        matrix: Tensor of shape `(inputs, units)`.
        scale: Float or scalar tensor. Defaults to `1.0`.

    Returns:
        Tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.orthogonality_gradient(
    ...     ops.convert_to_tensor([[2.0, 0.0], [0.0, 1.0]])))
    array([[24.,  0.],
           [ 0.,  0.]], dtype=float32)
    """
    matrix, scale = _check_matrix(matrix, scale=scale)
    validation.check_scalar("scale", scale)
    rows, columns = matrix.shape
    transposed = ops.transpose(matrix)
    # Of the two matrices of inner products, the smaller one.
    if columns <= rows:
        cubed = ops.matmul(matrix, ops.matmul(transposed, matrix))
    else:
        cubed = ops.matmul(ops.matmul(matrix, transposed), matrix)
    return 4.0 * (cubed - scale * matrix)


def spectral_norm_and_gradient(
    matrix: Tensor, start: Tensor, num_iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """The largest singular value by power iteration, and its gradient.

    From `v = start`, each iteration computes `u = W^T W v` and
    `v = u / (|u| + 1e-6)`. The value is `|W v|`. As long as the iteration has
    not converged it is less than the largest singular value.

    The gradient is that of what is computed, through all iterations. Where the
    value is zero, so is the gradient.

    Args:
        matrix: Tensor of shape `(inputs, units)`.
        start: Tensor of shape `(units,)`, not zero.
        num_iterations: Integer, not negative. Defaults to `10`.

    Returns:
        Tuple of a scalar tensor and of a tensor of the shape of `matrix`.

    Example:

    >>> value, gradient = (
    ...     keras_plasticity.functional.spectral_norm_and_gradient(
    ...         ops.convert_to_tensor([[3.0, 0.0], [0.0, 1.0]]),
    ...         start=ops.convert_to_tensor([1.0, 0.0])))
    >>> round(float(value), 3)
    3.0
    >>> ops.convert_to_numpy(gradient).round(3)
    array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    matrix, v = _check_matrix(matrix, start=start)
    if validation.shape_of(v) != (matrix.shape[1],):
        raise ValueError(
            "`start` must have one entry for each column of `matrix`. "
            f"Received: start.shape={validation.shape_of(v)}, "
            f"matrix.shape={tuple(matrix.shape)}"
        )
    validation.check_integer("num_iterations", num_iterations, 0)
    iterations = []
    for _ in range(num_iterations):
        wv = ops.matmul(matrix, v)
        u = ops.matmul(wv, matrix)
        norm = _norm(u)
        iterations.append((v, wv, u, norm))
        v = u / (norm + _EPSILON)
    wv = ops.matmul(matrix, v)
    value = _norm(wv)
    # The gradient is a sum of products of a column and a row: each product
    # with `matrix` adds one.
    columns, rows = [wv / ops.maximum(value, _TINY)], [v]
    upstream = ops.matmul(columns[0], matrix)
    for v, wv, u, norm in reversed(iterations):
        shift = norm + _EPSILON
        along = ops.sum(u * upstream) / ops.maximum(norm * shift, _TINY)
        upstream = (upstream - along * u) / shift
        columns.append(wv)
        rows.append(upstream)
        w_upstream = ops.matmul(matrix, upstream)
        columns.append(w_upstream)
        rows.append(v)
        upstream = ops.matmul(w_upstream, matrix)
    gradient = ops.matmul(ops.stack(columns, axis=1), ops.stack(rows))
    return value, gradient


def _norm(vector: Tensor) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(vector)))


def _check_matrix(matrix: Tensor, **other: Any) -> Tensor:
    """A matrix and another tensor, of one floating-point dtype."""
    (matrix,) = validation.check_tensors(matrix=matrix)
    (value,) = validation.check_tensors(**other)
    shape = validation.shape_of(matrix)
    if len(shape) != 2:
        raise ValueError(
            "`matrix` must have two axes: inputs and units. Received: "
            f"matrix.shape={shape}"
        )
    if not isinstance(value, float):
        dtype = keras.backend.standardize_dtype(matrix.dtype)
        value = ops.cast(value, dtype)
    return matrix, value
