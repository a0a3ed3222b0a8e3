"""Rank measures of a layer's activations.

All functions take the activations of one layer, an array of shape
`(examples, units)`, and summarize its singular values, which are computed in
float64. They do not depend on the scale of the activations. All are 0 for the
zero matrix, such as that of a layer of dead units.

"Stable rank" has two meanings: in the papers on loss of plasticity it is
`absolute_approximate_rank`, elsewhere it is `stable_rank`.

References:

- [Roy and Vetterli, 2007](https://ieeexplore.ieee.org/document/7098875), the
    effective rank
- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
- [Kumar et al., 2021](https://arxiv.org/abs/2010.14498), the absolute
    approximate rank
"""

from collections.abc import Sequence

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays

# Activations are computed in float32 at best, even if they come as float64.
_RELATIVE_PRECISION = np.finfo("float32").eps
# From this size on the squares of singular values come from products of the
# features, in a fifth of the time. Below 1e-8 of the largest they are lost, as
# is what activations hold of them.
_SMALLEST_GRAM = 32


def effective_rank(features: np.ndarray) -> float:
    """Exponential of the entropy of the normalized singular values.

    Args:
        features: Array of shape `(examples, units)`.

    Returns:
        Float between 1 and the rank of `features`; 0 for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.

    Example:

    >>> round(effective_rank(np.eye(3)), 6)
    3.0
    """
    return rank_of_values(_singular_values(features))


def approximate_rank(features: np.ndarray, threshold: float = 0.99) -> int:
    """Number of singular values that make up most of the sum of squares.

    Args:
        features: Array of shape `(examples, units)`.
        threshold: Float in (0, 1]. Defaults to `0.99`.

    Returns:
        Integer, the smallest `k` for which the `k` largest squared singular
        values add up to `threshold` of their sum; 0 for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, or
            if `threshold` is out of its range.
    """
    threshold = validation.check_in_interval("threshold", threshold, "(0, 1]")
    return _approximate_rank(_singular_values(features), threshold)


def absolute_approximate_rank(
    features: np.ndarray, threshold: float = 0.99
) -> int:
    """Number of singular values that make up most of their sum.

    This is the "stable rank" of the papers on loss of plasticity.

    Args:
        features: Array of shape `(examples, units)`.
        threshold: Float in (0, 1]. Defaults to `0.99`.

    Returns:
        Integer, the smallest `k` for which the `k` largest singular values
        add up to `threshold` of their sum; 0 for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite, or
            if `threshold` is out of its range.
    """
    threshold = validation.check_in_interval("threshold", threshold, "(0, 1]")
    return _absolute_approximate_rank(_singular_values(features), threshold)


def stable_rank(features: np.ndarray) -> float:
    """Squared Frobenius norm over squared spectral norm.

    For the "stable rank" of the papers on loss of plasticity, see
    `keras_plasticity.diagnostics.absolute_approximate_rank`.

    Args:
        features: Array of shape `(examples, units)`.

    Returns:
        Float between 1 and the rank of `features`; 0 for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.
    """
    return _stable_rank(_singular_values(features))


def hard_rank(features: np.ndarray) -> int:
    """Number of singular values that are not zero.

    Those count as zero that cannot be told from rounding errors of float32
    activations: up to `max(examples, units)` times its precision, relative to
    the largest.

    Args:
        features: Array of shape `(examples, units)`.

    Returns:
        Integer; 0 for the zero matrix.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.
    """
    return _hard_rank(_singular_values(features), np.shape(features))


def several_ranks(features: np.ndarray, names: Sequence[str]) -> dict:
    """Computes several of these measures from the same singular values.

    The singular values take nearly all of the time.

    Args:
        features: Array of shape `(examples, units)`.
        names: List of names of functions of this module.

    Returns:
        Dict from name to number.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.
    """
    values = _singular_values(features)
    results = {
        "absolute_approximate_rank": _absolute_approximate_rank(values),
        "approximate_rank": _approximate_rank(values),
        "effective_rank": rank_of_values(values),
        "hard_rank": _hard_rank(values, np.shape(features)),
        "stable_rank": _stable_rank(values),
    }
    return {name: results[name] for name in names}


def rank_of_values(values):
    """The effective rank of a matrix by its singular values.

    Args:
        values: Array of any scale, none negative.
    """
    values = values[values > 0.0]
    if values.size == 0:
        return 0.0
    p = values / values.sum()
    p = p[p > 0.0]  # Where the quotient underflows, its term is 0.
    return float(np.exp(-np.sum(p * np.log(p))))


def _approximate_rank(values, threshold=0.99):
    return _count_until(values**2, threshold)


def _absolute_approximate_rank(values, threshold=0.99):
    return _count_until(values, threshold)


def _stable_rank(values):
    if values[0] == 0.0:
        return 0.0
    return float(np.sum((values / values[0]) ** 2))


def _hard_rank(values, shape):
    rounding = max(shape) * _RELATIVE_PRECISION * values[0]
    return int(np.count_nonzero(values > rounding))


def _singular_values(features):
    """Singular values in descending order, float64, of scaled features."""
    features = arrays.check_features(features)
    exponent = arrays.exponent_of(arrays.largest_magnitude([features]))
    scaled = arrays.scaled(features, exponent)
    size = min(scaled.shape)
    if size < _SMALLEST_GRAM:
        return np.linalg.svd(scaled, compute_uv=False)
    if len(scaled) > size:
        scaled = scaled.T
    squares = np.linalg.eigvalsh(scaled @ scaled.T)[::-1]
    # Below this there is nothing but rounding.
    rounding = max(scaled.shape) * np.finfo("float64").eps * squares[0]
    return np.sqrt(np.where(squares > rounding, squares, 0.0))


def _count_until(values, threshold):
    sums = np.cumsum(values)
    if sums[-1] == 0.0:
        return 0
    return int(np.argmax(sums / sums[-1] >= threshold)) + 1
