"""The bias-corrected running mean, as a mean with a shrinking step.

An exponential running mean `m <- decay * m + (1 - decay) * x` that starts at
0 is too small while it is young, which is mended by dividing by
`1 - decay**age`. Dividing at every step gives the recursion used here, on the
corrected mean itself:

    corrected <- corrected + step_size * (x - corrected),
    step_size = (1 - decay) / (1 - decay**age).

At age 1 the step size is 1, and it falls towards `1 - decay`. There is nothing
to correct when the mean is read.
"""

import math

from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor


def step_size(age: Tensor, decay_rate: float) -> Tensor:
    """Step size of the bias-corrected running mean.

    Args:
        age: Float tensor, the number of observations with the present one,
            at least 1.
        decay_rate: Float in [0, 1).

    Returns:
        Tensor of the shape of `age`,
        `(1 - decay_rate) / (1 - decay_rate**age)`.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.step_size(
    ...     ops.convert_to_tensor([1.0, 2.0]), decay_rate=0.5))
    array([1.       , 0.6666667], dtype=float32)
    """
    (age,) = validation.check_tensors(age=age)
    decay_rate = validation.check_in_interval(
        "decay_rate", decay_rate, "[0, 1)"
    )
    return step_size_by_log(age, *decay_constants(decay_rate))


def decay_constants(decay_rate: float) -> tuple[float, float]:
    """What `step_size` needs to know of a decay rate, in full precision.

    Args:
        decay_rate: Float in [0, 1).

    Returns:
        Tuple `(log(decay_rate), 1 - decay_rate)`.
    """
    log_decay = math.log(decay_rate) if decay_rate > 0 else -math.inf
    return log_decay, 1.0 - decay_rate


def step_size_by_log(
    age: Tensor, log_decay: float | Tensor, complement: float | Tensor
) -> Tensor:
    """`step_size` for the result of `decay_constants`.

    Args:
        age: Float tensor, at least 1.
        log_decay: Float or scalar tensor.
        complement: Float or scalar tensor.

    Returns:
        Tensor of the shape of `age`.
    """
    # 1 - decay**age loses all its digits for a decay near 1; expm1 does not.
    return complement / -ops.expm1(age * log_decay)


def running_mean(mean: Tensor, value: Tensor, step_size: Tensor) -> Tensor:
    """One step of the bias-corrected running mean.

    Args:
        mean: Tensor, the corrected mean before this observation.
        value: Tensor, the observation. Where it is not finite the mean stays
            as it is.
        step_size: Tensor, as `keras_plasticity.functional.step_size` gives it.

    Returns:
        Tensor, the corrected mean with this observation in it.
    """
    mean, value, step_size = validation.check_tensors(
        mean=mean, value=value, step_size=step_size
    )
    change = step_size * (value - mean)
    return mean + ops.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)
