"""A measure of how much a network will gain by its next steps."""

import math
from collections.abc import Sequence

import numpy as np

from keras_plasticity import validation


def optimization_readiness(
    loss: float, gradient_norm: float, batch_gradient_norms: Sequence[float]
) -> float:
    """How well the next steps of gradient descent can be expected to do.

    `||g||**4 / (L * mean(||g_b||**2))`, where `L` is the loss on the examples
    to come, `g` its gradient, and `g_b` those of small batches. It is the
    product of `||g||**2 / L`, how strong the gradient is, and of
    `||g||**2 / mean(||g_b||**2)`, how much the batches agree on it. Of a smooth
    loss it bounds the relative gain of one step from below.

    Args:
        loss: Float, not negative: the mean loss on many examples.
        gradient_norm: Float, the norm of its gradient by all weights.
        batch_gradient_norms: List of floats, the norms of the gradients of
            batches of the size that is trained on, with the same weights.

    Returns:
        Float, not negative; 0 if the loss or all gradients of batches are 0,
        and NaN if a number is not finite.

    Raises:
        ValueError: If there is no norm of a batch, or if a number is negative.

    Example:

    >>> optimization_readiness(2.0, 1.0, [1.0, 1.0, 2.0])
    0.25

    References:

    - [Wang et al., 2026](https://arxiv.org/abs/2605.09044)
    """
    loss = _check_numbers("loss", loss, 0)
    norm = _check_numbers("gradient_norm", gradient_norm, 0)
    norms = _check_numbers("batch_gradient_norms", batch_gradient_norms, 1)
    if not all(np.isfinite(n).all() for n in (loss, norm, norms)):
        return math.nan
    largest = norms.max()
    if loss == 0.0 or largest == 0.0:
        return 0.0
    # Mantissas, and exponents of two, which are added.
    (a, i), (b, j), (c, k) = map(math.frexp, (norm, loss, largest))
    mean = np.mean(np.square(norms / largest)) * c**2
    with np.errstate(over="ignore"):
        return float(np.ldexp(a**4 / (b * mean), 4 * i - j - 2 * k))


def _check_numbers(name, value, ndim):
    """Returns an argument as an array of numbers that are not negative."""
    rule = "a number" if ndim == 0 else "a list of numbers, at least one,"
    rule += " that is not negative" if ndim == 0 else " that are not negative"
    array = validation.check_array(name, value, rule).astype("float64")
    if array.ndim != ndim or array.size == 0 or (array < 0.0).any():
        raise validation.error(name, rule, value)
    return array
