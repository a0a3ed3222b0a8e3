"""Derivatives of a loss by differences, in float64."""

import numpy as np

from keras_plasticity.weights import weights_of
from tests.helpers import to_numpy


def values_of(model):
    """The weights of a model, in float64."""
    return [to_numpy(v).astype("float64") for v in weights_of(model)]


def flat(arrays):
    """All entries of a list of arrays, as one vector."""
    return np.concatenate([np.ravel(each) for each in arrays])


def gradient_of(function, weights, x, y):
    """The gradient of `function(weights, x, y)` as one vector.

    Args:
        function: Function that returns a float.
        weights: List of arrays.
        x: What the function takes.
        y: Likewise.
    """
    return _differences(lambda moved: function(moved, x, y), weights, 1e-4)


def hessian_of(function, weights, x, y):
    """The matrix of second derivatives; see `gradient_of`."""
    return _differences(
        lambda moved: gradient_of(function, moved, x, y), weights, 1e-3
    )


def _differences(function, weights, step):
    results = []
    for i, w in enumerate(weights):
        for index in np.ndindex(w.shape):
            ends = []
            for sign in (1, -1):
                moved = [each.copy() for each in weights]
                moved[i][index] += sign * step
                ends.append(function(moved))
            results.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(results)
