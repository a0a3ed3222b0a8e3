"""Checks of the arrays that diagnostics take, and their scale.

Measures are computed in float64, on arrays whose largest magnitude is about
one: the squares and sums of any numbers then neither overflow nor vanish. The
scale is a power of two, so that no digit changes.
"""

import math

import numpy as np

from keras_plasticity import validation


def check_features(features):
    """Returns `features` as a finite, non-empty array of rank 2.

    Args:
        features: Array of shape `(examples, units)`.

    Returns:
        NumPy array.

    Raises:
        ValueError: If it is anything else.
    """
    features = validation.check_array("features", features)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(
            "`features` must be a non-empty array of shape (examples, units). "
            f"Received: features.shape={features.shape}"
        )
    return validation.check_finite(
        "features", features, " Has the network diverged?"
    )


def largest_magnitude(arrays):
    """The largest absolute entry; NaN if an entry is NaN.

    Args:
        arrays: List of arrays with at least one entry.

    Returns:
        Float.
    """
    # Not by `abs`: the smallest integer has no positive counterpart.
    ends = [end(a) for a in arrays if a.size for end in (np.min, np.max)]
    return float(np.max(np.abs(np.array(ends, "float64"))))


def exponent_of(magnitude):
    """The exponent `e` of the scale `2.0**e` of numbers up to a magnitude.

    Args:
        magnitude: Finite number, not negative.

    Returns:
        Integer.
    """
    _, exponent = math.frexp(magnitude)
    # Of the smallest numbers of all, the inverse of the scale is infinite.
    return max(exponent, -1000)


def scaled(array, exponent):
    """Returns `array / 2.0**exponent`, in float64."""
    return array.astype("float64") * 2.0**-exponent


def unscaled(number, exponent):
    """Returns `number * 2.0**exponent`, which may be infinite."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(number, exponent))
