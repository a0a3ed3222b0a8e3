"""Histograms of how long units stay silent, and their quantiles.

One bin a count of examples would need tens of thousands of bins for each unit.
Here ages below 1,024 have a bin each; above, each doubling of the age has 512
bins, so that an age is known to within 0.2 %. A bin stands for the smallest of
its ages.
"""

import numpy as np
from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor

_EXACT = 1024
_BINS_PER_DOUBLING = _EXACT // 2
# Ages are float32, which counts exactly up to here.
_LARGEST_AGE = 2**24


def num_age_bins(max_age: int) -> int:
    """Number of bins for ages up to a largest one.

    Args:
        max_age: Positive integer, at most `2**24`.

    Returns:
        Integer.

    Example:

    >>> keras_plasticity.functional.num_age_bins(20_000)
    3186
    """
    max_age = validation.check_positive_integer(
        "max_age", max_age, _LARGEST_AGE
    )
    doublings = max(0, max_age.bit_length() - _EXACT.bit_length() + 1)
    return _BINS_PER_DOUBLING * doublings + (max_age >> doublings) + 1


def age_bin(age: Tensor, max_age: int) -> Tensor:
    """The bin of each age.

    Args:
        age: Float32 tensor of whole numbers, not negative.
        max_age: Positive integer, at most `2**24`. Larger ages are in bin 0.

    Returns:
        Int32 tensor of the same shape.
    """
    (age,) = validation.check_tensors(age=age)
    max_age = validation.check_positive_integer(
        "max_age", max_age, _LARGEST_AGE
    )
    age = ops.cast(ops.where(age <= max_age, age, 0.0), "int32")
    bins = age
    doublings = 0
    while _EXACT << doublings <= max_age:
        is_beyond = age >= _EXACT << doublings
        doublings += 1
        bins = ops.where(
            is_beyond,
            _BINS_PER_DOUBLING * doublings + age // 2**doublings,
            bins,
        )
    return bins


def age_quantile(histogram: Tensor, quantile: float) -> Tensor:
    """The smallest positive age at which a share of all events is reached.

    Args:
        histogram: Float32 tensor of shape `(units, bins)`, the number of
            events in each bin of `age_bin`. Bin 0 is left out.
        quantile: Float in (0, 1), or a scalar tensor, the share.

    Returns:
        Float32 tensor of shape `(units,)`. It is 1 for a unit without events.
    """
    (histogram,) = validation.check_tensors(histogram=histogram)
    shape = validation.shape_of(histogram)
    if len(shape) != 2 or shape[1] is None or shape[1] < 2:
        raise ValueError(
            "`histogram` must be a tensor of shape (units, bins), of two bins "
            f"or more. Received: histogram.shape={shape}"
        )
    if not ops.is_tensor(quantile):
        quantile = validation.check_in_interval("quantile", quantile, "(0, 1)")
    elif tuple(quantile.shape) != ():
        raise validation.error("quantile", "a number", quantile)
    counts = ops.cumsum(histogram[:, 1:], axis=1)
    total = ops.maximum(counts[:, -1:], 1.0)
    first = ops.argmax(ops.cast(counts / total >= quantile, "int32"), axis=1)
    ages = _smallest_ages(int(histogram.shape[1]))
    return ops.take(ops.convert_to_tensor(ages[1:]), ops.cast(first, "int32"))


def _smallest_ages(num_bins):
    """The smallest age in each bin."""
    bins = np.arange(num_bins)
    doublings = np.maximum(0, bins // _BINS_PER_DOUBLING - 1)
    ages = (bins - _BINS_PER_DOUBLING * doublings) << doublings
    return ages.astype("float32")
