"""Measures of kernels, and of their gradients, as matrices.

A kernel counts as a matrix of shape `(inputs, units)`: its last axis counts the
units, all others the inputs. That of a convolution of shape
`(height, width, channels, filters)` has `height * width * channels` inputs.

References:

- [Liu et al., 2025](https://arxiv.org/abs/2505.24061), units without gradient
"""

import math
from collections.abc import Sequence

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays
from keras_plasticity.diagnostics.units import UnitActivity


def gradient_dormant_units(
    gradient: np.ndarray, threshold: float = 0.01
) -> int:
    """Number of units whose weights have small gradients within their layer.

    The score of a unit is the mean absolute gradient of its incoming weights,
    divided by the mean of these over the units of the layer:
    `mean(|g[:, i]|) / mean(|g|)`. A unit is dormant if its score does not
    exceed the threshold. This is what ReGraMa resets units by, see
    `keras_plasticity.optimizers.ReGraMa`. Other than the activations of
    `keras_plasticity.diagnostics.dormant_units`, gradients tell of any
    non-linearity whether a unit learns.

    Args:
        gradient: Array of shape `(..., units)`, the gradient of the loss by
            the kernel of one layer, on a batch of examples.
        threshold: Float, not negative. With 0, those units are dormant that
            have no gradient at all. Defaults to `0.01`.

    Returns:
        Integer between 0 and `units`; `units` if all gradients are 0.

    Raises:
        ValueError: If `gradient` has no entry, fewer than two axes, or is not
            finite, or if `threshold` is negative.

    Example:

    >>> gradient_dormant_units(np.array([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))
    1

    References:

    - [Liu et al., 2025](https://arxiv.org/abs/2505.24061)
    """
    gradient = validation.check_array("gradient", gradient)
    if gradient.ndim < 2 or gradient.size == 0:
        raise ValueError(
            "`gradient` must be a non-empty array of shape (..., units). "
            f"Received: gradient.shape={gradient.shape}"
        )
    validation.check_finite("gradient", gradient, " Has the network diverged?")
    return UnitActivity(_as_matrix(gradient)).dormant(threshold)


def isometry_deviation(kernels: Sequence[np.ndarray]) -> float:
    """How far kernels are from keeping the lengths of what they multiply.

    `||W^T W - I||`, the Frobenius norm, of a kernel `W` of shape
    `(inputs, units)` and, if there are fewer inputs than units, of
    `||W W^T - I||`; of several kernels the root of the sum of squares. It is 0
    if all singular values are 1, as orthogonal initialization makes them.

    Args:
        kernels: List of arrays of shape `(..., units)`; all axes but the last
            count the inputs.

    Returns:
        Float, not negative. A kernel of zeros has the square root of the
        number of its inputs or units, the smaller one. It is infinite or NaN
        if an entry is.

    Raises:
        ValueError: If there is no entry, or if an array has fewer than two
            axes, as biases have.

    Example:

    >>> isometry_deviation([np.eye(3), np.zeros((4, 9))])
    2.0
    """
    kernels = validation.check_arrays("kernels", kernels)
    shapes = [kernel.shape for kernel in kernels]
    if not shapes or any(len(s) < 2 or 0 in s for s in shapes):
        raise ValueError(
            "`kernels` must be a list of non-empty arrays of shape (..., "
            "units), at least one, without biases. Received: arrays of shapes "
            f"{shapes}"
        )
    largest = arrays.largest_magnitude(kernels)
    if not math.isfinite(largest):
        return largest
    # Only down: of small kernels, what counts is the identity.
    exponent = max(arrays.exponent_of(largest), 0)
    one = math.ldexp(1.0, -2 * exponent)
    total = 0.0
    for kernel in kernels:
        matrix = _as_matrix(arrays.scaled(kernel, exponent))
        if len(matrix) < matrix.shape[1]:
            matrix = matrix.T
        gram = matrix.T @ matrix
        np.fill_diagonal(gram, gram.diagonal() - one)
        total += np.sum(np.square(gram))
    return arrays.unscaled(math.sqrt(total), 2 * exponent)


def _as_matrix(kernel):
    return kernel.reshape(-1, kernel.shape[-1])
