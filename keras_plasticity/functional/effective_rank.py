"""The effective rank of features, to be maximized."""

from keras import ops

from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.functional.matrices import check_matrix
from keras_plasticity.types import Tensor

_EPSILON = 1e-8


def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the normalized singular values.

    `exp(-sum(p * log(p + 1e-8)))`, where `p = s / max(sum(s), 1e-8)` for the
    singular values `s`. Its gradient is exact and finite, also where singular
    values are equal or zero. To measure, rather than to maximize, see
    `keras_plasticity.diagnostics.effective_rank`, which computes in float64.

    Args:
        features: Tensor of shape `(examples, units)`.

    Returns:
        Scalar tensor, between 1 and the rank of `features`; 1 for the zero
        matrix.

    Example:

    >>> round(float(effective_rank(ops.eye(3))), 4)
    3.0

    References:

    - [Roy and Vetterli, 2007](https://ieeexplore.ieee.org/document/7098875)
    """
    features = at_least_float32(check_matrix("features", features))
    # Not by the backend's gradient of a decomposition, which is infinite where
    # singular values are equal. They alone count, of which the gradient is
    # `u * v` for each.
    constant = ops.stop_gradient(features)
    u, values, v = ops.svd(constant, full_matrices=False)
    rank, slopes = _of_singular_values(values)
    gradient = ops.matmul(u * slopes, v)
    change = ops.sum(gradient * features)
    return rank + change - ops.stop_gradient(change)


def _of_singular_values(values: Tensor) -> Tensor:
    """The effective rank, and its derivatives by the singular values."""
    total = ops.maximum(ops.sum(values), _EPSILON)
    p = values / total
    log_p = ops.log(p + _EPSILON)
    rank = ops.exp(-ops.sum(p * log_p))
    slopes = -(log_p + p / (p + _EPSILON))
    return rank, rank * (slopes - ops.sum(p * slopes)) / total
