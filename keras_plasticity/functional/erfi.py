"""The imaginary error function, which Keras does not have.

Its Dawson integral is a sum of Gaussians, one at each odd multiple of a step
`h`, that misses it by a relative `exp(-(pi / (2 * h))**2)`. With the factor
`exp(x**2)` in the exponents,

    erfi(x) = 2 / pi * sum over odd n > 0 of
              (exp(n*h * (2*x - n*h)) - exp(n*h * (-2*x - n*h))) / n.

All terms have the sign of `x`, so that nothing cancels, and there is no loop.
"""

import math

import numpy as np
from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor

# It misses the function by less than float32 can tell.
_STEP = 0.35
# Beyond, it is more than float32 can hold.
_LARGEST = 9.5
# A Gaussian this far from its centre counts for nothing.
_REACH = 4.5
_ODD = np.arange(1, math.ceil((_LARGEST + _REACH) / _STEP), 2)


def erfi(x: Tensor) -> Tensor:
    """The imaginary error function, `2 / sqrt(pi) * integral of exp(t**2)`.

    It is as exact as float32 allows: where `x` is rounded, a relative
    `2 * x**2` as much is lost. It is infinite from about 9.6 on.

    Args:
        x: Tensor.

    Returns:
        Tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.erfi(
    ...     ops.convert_to_tensor([0.0, 0.5, -1.0]))).round(4)
    array([ 0.    ,  0.615 , -1.6504], dtype=float32)
    """
    (x,) = validation.check_tensors(x=x)
    x = ops.expand_dims(ops.convert_to_tensor(x), -1)
    positions = ops.convert_to_tensor(_STEP * _ODD, x.dtype)
    # In the exponent, that no term is beyond float32 where the sum is not.
    factors = ops.convert_to_tensor(np.log(2 / (math.pi * _ODD)), x.dtype)
    # Or infinity less infinity would be NaN.
    size = ops.minimum(ops.abs(x), 2 * _LARGEST)
    terms = ops.exp(positions * (2 * size - positions) + factors)
    # The second Gaussian of each pair.
    terms = terms * -ops.expm1(-4 * positions * size)
    return ops.sign(x[..., 0]) * ops.sum(terms, axis=-1)
