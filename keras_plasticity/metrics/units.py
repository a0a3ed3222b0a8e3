import numpy as np

from keras_plasticity.metrics.validation import check_features


def dead_units(features: np.ndarray) -> int:
    """Number of units that are 0 for every example.

    A ReLU unit that is 0 on everything has no gradient, and stays so.

    Args:
        features: Array of shape `(examples, units)`, the activations of one
            layer after its non-linearity.

    Returns:
        Integer between 0 and `units`.

    Raises:
        ValueError: If `features` is empty, not of rank 2, or not finite.

    Example:

    >>> dead_units(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    1
    """
    return int(np.sum(~check_features(features).any(axis=0)))
