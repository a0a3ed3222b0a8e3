"""Checks of the arrays that diagnostics take."""

import numpy as np


def check_features(features):
    """Returns `features` as a finite, non-empty array of rank 2.

    Args:
        features: Array of shape `(examples, units)`.

    Returns:
        NumPy array.

    Raises:
        ValueError: If it is anything else.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(
            "`features` must be a non-empty array of shape (examples, units). "
            f"Received: features.shape={features.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError(
            "`features` must be finite numbers. Received: an array with "
            f"{np.count_nonzero(~np.isfinite(features))} NaN or infinite "
            "values. Has the network diverged?"
        )
    return features
