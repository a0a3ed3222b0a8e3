"""Measures of the eigenvalues of a loss's second derivatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_plasticity import validation


def hessian_rank(
    eigenvalues: Sequence[float],
    weights: Sequence[float] | None = None,
    epsilon: float = 0.01,
) -> float:
    """Share of directions in which the loss is curved at all.

    The epsilon-rank of the Hessian, the matrix of second derivatives of the
    loss by all weights, relative to its size: the number of eigenvalues with
    `|eigenvalue| > epsilon`, divided by the number of all. When it collapses
    at the start of a new task, training on it fails (Prakash et al., 2025,
    whose code counts as negligible what lies within 0.01 of 0.001).

    Args:
        eigenvalues: List of floats, all eigenvalues, or those by which the
            Lanczos algorithm approximates them.
        weights: List of as many floats, not negative: the share of all
            eigenvalues that each stands for. Defaults to `None`: all the same.
        epsilon: Float, not negative. Defaults to `0.01`.

    Returns:
        Float between 0 and 1.

    Raises:
        ValueError: If there is no eigenvalue, or one is not finite; if there
            are not as many weights, if one is negative, or if all are 0; or if
            `epsilon` is negative.

    Example:

    >>> hessian_rank([3.0, -0.5, 0.001, 0.0])
    0.5

    References:

    - [Prakash et al., 2025](https://arxiv.org/abs/2509.22335)
    """
    values = _check_vector("eigenvalues", eigenvalues)
    epsilon = validation.check_not_negative("epsilon", epsilon)
    if weights is None:
        return float(np.mean(np.abs(values) > epsilon))
    shares = _check_vector("weights", weights)
    if shares.shape != values.shape or shares.min() < 0 or not shares.any():
        raise ValueError(
            "`weights` must be as many numbers as `eigenvalues`, not negative, "
            "and not all of them 0. Received: "
            f"{len(values)} eigenvalues, weights={shares}"
        )
    shares = shares / shares.max()
    return float(shares[np.abs(values) > epsilon].sum() / shares.sum())


def _check_vector(name: str, value: Any) -> np.ndarray:
    rule = "a list of finite numbers, at least one"
    array = validation.check_array(name, value, rule).astype("float64")
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise validation.error(name, rule, value)
    return array
