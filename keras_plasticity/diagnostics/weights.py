"""Measures of weights and gradients.

Entries of any magnitude are taken: what is computed from them overflows only if
the result itself is no float64. If an entry is infinite so is the result, and
if one is NaN, it is NaN.
"""

import math
from collections.abc import Sequence

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays


def gradient_norm(gradients: Sequence[np.ndarray | None]) -> float:
    """Euclidean norm of the entries of all gradients together.

    Args:
        gradients: List of arrays of any shapes. `None`, the gradient of a
            weight that the loss does not depend on, counts as zeros.

    Returns:
        Float, not negative. It is infinite or NaN if an entry is.

    Raises:
        ValueError: If there is no entry at all.

    Example:

    >>> gradient_norm([np.array([[3.0, 0.0]]), None, np.array([-4.0])])
    5.0
    """
    gradients = validation.check_arrays("gradients", gradients, or_none=True)
    gradients = [g for g in gradients if g is not None]
    _check_entries("gradients", gradients)
    largest = arrays.largest_magnitude(gradients)
    if not math.isfinite(largest):
        return largest
    exponent = arrays.exponent_of(largest)
    squares = (np.square(arrays.scaled(g, exponent)).sum() for g in gradients)
    return arrays.unscaled(math.sqrt(sum(squares)), exponent)


def weight_change(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    reduction: str = "mean",
) -> float:
    """Mean or sum of absolute differences between two sets of weights.

    Args:
        before: List of arrays of any shapes.
        after: List of arrays of the same shapes.
        reduction: `"mean"` (default) over all entries, or `"sum"`, which
            Dohare et al. (2024) show for reinforcement learning.

    Returns:
        Float, not negative. It is infinite or NaN if an entry is.

    Raises:
        ValueError: If there is no entry at all, if the shapes differ, or if
            `reduction` is unknown.

    Example:

    >>> weight_change([np.array([1.0, 2.0])], [np.array([1.0, 4.0])])
    1.0
    """
    validation.check_choice("reduction", reduction, ("mean", "sum"))
    before = validation.check_arrays("before", before)
    after = validation.check_arrays("after", after)
    shapes = [[array.shape for array in arrays] for arrays in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`before` and `after` must be arrays of the same shapes. "
            f"Received: before of shapes {shapes[0]}, after of {shapes[1]}"
        )
    size = _check_entries("before", before)
    largest = arrays.largest_magnitude([*before, *after])
    if not math.isfinite(largest):
        return largest
    exponent = arrays.exponent_of(largest)
    total = sum(
        np.abs(arrays.scaled(b, exponent) - arrays.scaled(a, exponent)).sum()
        for b, a in zip(before, after)
    )
    if reduction == "mean":
        total /= size
    return arrays.unscaled(total, exponent)


def weight_growth(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> float:
    """By what factor the mean magnitude of weights has grown.

    `mean(|after|) / mean(|before|)`, over all entries. Before may be an earlier
    time, or the same network newly initialized.

    Args:
        before: List of arrays of any shapes, such as the kernels of a network.
        after: List of arrays of any shapes.

    Returns:
        Float, not negative. It is 1 if all weights are 0 before and after, and
        infinite if they are 0 only before. It is NaN if an entry is, or if
        entries of both are infinite.

    Raises:
        ValueError: If there is no entry at all.

    Example:

    >>> weight_growth([np.array([1.0, -1.0])], [np.array([3.0, 2.0])])
    2.5
    """
    old, old_exponent = _mean_magnitude("before", before)
    new, new_exponent = _mean_magnitude("after", after)
    if old == 0.0:
        return 1.0 if new == 0.0 else new * math.inf
    if not math.isfinite(old) or not math.isfinite(new):
        return new / old
    return arrays.unscaled(new / old, new_exponent - old_exponent)


def weight_magnitude(weights: Sequence[np.ndarray]) -> float:
    """Mean absolute entry of a list of arrays.

    Args:
        weights: List of arrays of any shapes, such as the kernels of a
            network. The mean is over entries, so large arrays count for more.

    Returns:
        Float, not negative. It is infinite or NaN if an entry is.

    Raises:
        ValueError: If there is no entry at all.

    Example:

    >>> weight_magnitude([np.array([[-1.0, 1.0]]), np.array([4.0])])
    2.0
    """
    return arrays.unscaled(*_mean_magnitude("weights", weights))


def _mean_magnitude(name, weights):
    """Mean absolute entry: a float, and the exponent of its scale."""
    weights = validation.check_arrays(name, weights)
    size = _check_entries(name, weights)
    largest = arrays.largest_magnitude(weights)
    if not math.isfinite(largest):
        return largest, 0
    exponent = arrays.exponent_of(largest)
    total = sum(np.abs(arrays.scaled(w, exponent)).sum() for w in weights)
    return float(total / size), exponent


def _check_entries(name, arrays):
    """Returns the number of entries of all arrays; 0 is an error."""
    size = sum(array.size for array in arrays)
    if size == 0:
        raise ValueError(
            f"`{name}` must be a list of arrays with at least one entry. "
            f"Received: arrays of shapes {[array.shape for array in arrays]}"
        )
    return size
