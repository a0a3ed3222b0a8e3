"""Measures of the empirical neural tangent kernel.

The kernel of some outputs is the matrix of inner products of their gradients by
all weights, `K = J J^T`. Gradient descent with small steps changes the outputs
as if by regression with this kernel: what lies in directions of small
eigenvalues is learned late or never.

References:

- [Jacot et al., 2018](https://arxiv.org/abs/1806.07572), the kernel
- [Lyle et al., 2024](https://arxiv.org/abs/2402.18762), its rank
"""

import math

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays
from keras_plasticity.diagnostics.rank import rank_of_values

# Gradients are computed in float32 at best, even if they come as float64.
_RELATIVE_PRECISION = float(np.finfo("float32").eps)
# So many entries are copied to float64 at once.
_ENTRIES_AT_ONCE = 2**22


def tangent_kernel_rank(gradients: np.ndarray) -> float:
    """Effective rank of the empirical neural tangent kernel.

    The exponential of the entropy of the normalized eigenvalues of
    `gradients @ gradients.T`.

    Args:
        gradients: Array of shape `(examples, weights)`: for each example the
            gradient of one number that the network computes from it, by all
            weights. What number is yours to choose: the output, the logit of a
            class, a sum of outputs, the loss. With several outputs of each
            example, each may have a row of its own.

    Returns:
        Float between 1 and `examples`; 0 if all gradients are 0.

    Raises:
        ValueError: If `gradients` is empty, not of rank 2, or not finite.

    Example:

    >>> round(tangent_kernel_rank(np.eye(3, 5)), 6)
    3.0
    """
    return rank_of_values(tangent_kernel_eigenvalues(gradients))


def tangent_kernel_condition(gradients: np.ndarray) -> float:
    """Condition number of the empirical neural tangent kernel.

    The largest eigenvalue of `gradients @ gradients.T` over the smallest. An
    eigenvalue that cannot be told from rounding errors of float32 gradients
    counts as 0: one up to the square of `examples` times float32's precision,
    relative to the largest.

    Args:
        gradients: Array of shape `(examples, weights)`, as in
            `keras_plasticity.diagnostics.tangent_kernel_rank`.

    Returns:
        Float of at least 1; infinity if the smallest eigenvalue is 0, as it is
        with more examples than weights.

    Raises:
        ValueError: If `gradients` is empty, not of rank 2, or not finite.

    Example:

    >>> tangent_kernel_condition(np.diag([1.0, 2.0]))
    4.0
    """
    values = tangent_kernel_eigenvalues(gradients)
    if values[-1] == 0.0:
        return math.inf
    return float(values[0] / values[-1])


def tangent_kernel_eigenvalues(gradients):
    """Eigenvalues of the kernel in descending order, up to their scale.

    Args:
        gradients: Array of shape `(examples, weights)`.

    Returns:
        Array of shape `(examples,)`, in float64.

    Raises:
        ValueError: If `gradients` is empty, not of rank 2, or not finite.
    """
    gradients = validation.check_array("gradients", gradients)
    if gradients.ndim != 2 or gradients.size == 0:
        raise ValueError(
            "`gradients` must be a non-empty array of shape (examples, "
            f"weights). Received: gradients.shape={gradients.shape}"
        )
    validation.check_finite(
        "gradients", gradients, " Has the network diverged?"
    )
    exponent = arrays.exponent_of(arrays.largest_magnitude([gradients]))
    rows, columns = gradients.shape
    kernel = np.zeros((rows, rows))
    step = max(1, _ENTRIES_AT_ONCE // rows)
    for start in range(0, columns, step):
        part = arrays.scaled(gradients[:, start : start + step], exponent)
        kernel += part @ part.T
    values = np.linalg.eigvalsh(kernel)[::-1]
    rounding = values[0] * (rows * _RELATIVE_PRECISION) ** 2
    return np.where(values > rounding, values, 0.0)
