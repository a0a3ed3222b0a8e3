"""Measures of a network's outputs on examples that stay the same."""

import math

import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnostics import arrays


def output_churn(before: np.ndarray, after: np.ndarray) -> float:
    """Mean squared change of a network's outputs on the same examples.

    `mean((after - before)**2)`, over all examples and outputs. It says how
    much training on some examples changes what the network makes of others.

    Args:
        before: Array of any shape, the outputs at one time.
        after: Array of the same shape, the outputs on the same examples at
            another time.

    Returns:
        Float, not negative. It is infinite or NaN if an entry is.

    Raises:
        ValueError: If there is no entry, or if the shapes differ.

    Example:

    >>> output_churn(np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]))
    2.0

    References:

    - [Tang et al., 2025](https://arxiv.org/abs/2506.00592)
    """
    before = validation.check_array("before", before)
    after = validation.check_array("after", after)
    if before.shape != after.shape or before.size == 0:
        raise ValueError(
            "`before` and `after` must be arrays of the same shape, with at "
            f"least one entry. Received: before.shape={before.shape}, "
            f"after.shape={after.shape}"
        )
    largest = arrays.largest_magnitude([before, after])
    if not math.isfinite(largest):
        return largest
    # Halves, whose difference does not overflow.
    change = arrays.scaled(after, 1) - arrays.scaled(before, 1)
    exponent = arrays.exponent_of(arrays.largest_magnitude([change]))
    mean = np.mean(np.square(arrays.scaled(change, exponent)))
    return arrays.unscaled(float(mean), 2 * (exponent + 1))
