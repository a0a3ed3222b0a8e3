from collections.abc import Sequence

import numpy as np


def weight_magnitude(weights: Sequence[np.ndarray]) -> float:
    """Mean absolute value over all entries of some arrays.

    Args:
        weights: List of arrays of any shapes, such as the kernels of a
            network. Every entry counts the same, so a large array counts for
            more than a small one.

    Returns:
        Float.

    Raises:
        ValueError: If there is no entry at all.

    Example:

    >>> weight_magnitude([np.array([[-1.0, 1.0]]), np.array([4.0])])
    2.0
    """
    weights = [np.asarray(array) for array in weights]
    size = sum(array.size for array in weights)
    if size == 0:
        raise ValueError(
            "`weights` must be a list of arrays with at least one entry. "
            f"Received: arrays of shapes {[array.shape for array in weights]}"
        )
    total = sum(np.abs(array).sum(dtype="float64") for array in weights)
    return float(total / size)
