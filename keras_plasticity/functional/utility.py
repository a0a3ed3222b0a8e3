"""How useful a unit is: the utilities of continual backpropagation.

Each function is named as in the paper, and takes only the quantities it uses,
by name, one entry a unit:

- `activation_magnitude`: mean of |h| over the batch, h being the unit's
  output as its consumer receives it;
- `activation_deviation`: mean of |h - f|, f being the unit's running mean
  activation with this batch in it;
- `outgoing_magnitude`: mean absolute outgoing weight;
- `incoming_magnitude`: mean absolute incoming weight.

A function of your own that takes any of these names can be given to
`ContinualBackprop(utility=...)`.

The paper writes sums of absolute weights where the authors' code takes means.
Within a layer the ranking is the same; the means are used here.

References:

- [Dohare et al., 2023](https://arxiv.org/abs/2306.13812), section "overall
    utility"
"""

import math

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import validation
from keras_plasticity.types import Tensor

# A unit whose incoming weights are all zero adapts infinitely fast, and
# 0 * inf is not a number. Far below any trained weight, far above underflow.
_SMALLEST_MAGNITUDE = 1e-30


def mean_magnitude(weights: Tensor, axis: int) -> Tensor:
    """Mean of absolute weights for each index of one axis.

    Args:
        weights: Tensor of any rank.
        axis: Integer, the axis that is kept.

    Returns:
        Float32 tensor of shape `(weights.shape[axis],)`.
    """
    (weights,) = validation.check_tensors(weights=weights)
    shape = validation.shape_of(weights)
    if not shape or None in shape or 0 in shape:
        raise ValueError(
            "`weights` must have one or more axes, none of them empty. "
            f"Received: weights.shape={shape}"
        )
    last = len(shape) - 1
    axis = validation.check_integer("axis", axis, -len(shape), last)
    axis = axis % len(shape)
    if keras.backend.standardize_dtype(weights.dtype) != "float32":
        weights = ops.cast(weights, "float32")
    size = math.prod(shape) // shape[axis]
    if last == 0:
        return abs(weights)
    if axis == last:
        if len(shape) > 2:
            weights = ops.reshape(weights, (size, shape[-1]))
        return backend.column_magnitudes(weights) / size
    if axis == 0:
        if len(shape) > 2:
            weights = ops.reshape(weights, (shape[0], size))
        return backend.row_magnitudes(weights) / size
    others = tuple(i for i in range(len(shape)) if i != axis)
    return ops.sum(abs(weights), axis=others) / size


def contribution(
    activation_magnitude: Tensor, outgoing_magnitude: Tensor
) -> Tensor:
    """`mean |h| * mean |w_out|`: what the unit adds to its consumers.

    Args:
        activation_magnitude: Float32 tensor of shape `(units,)`, the mean of
            |h| over the batch.
        outgoing_magnitude: Float32 tensor of shape `(units,)`.

    Returns:
        Float32 tensor of shape `(units,)`.
    """
    activation_magnitude, outgoing_magnitude = validation.check_tensors(
        activation_magnitude=activation_magnitude,
        outgoing_magnitude=outgoing_magnitude,
    )
    return activation_magnitude * outgoing_magnitude


def mean_corrected_contribution(
    activation_deviation: Tensor, outgoing_magnitude: Tensor
) -> Tensor:
    """`mean |h - f| * mean |w_out|`: what a constant could not replace.

    Args:
        activation_deviation: Float32 tensor of shape `(units,)`, the mean of
            |h - f| over the batch.
        outgoing_magnitude: Float32 tensor of shape `(units,)`.

    Returns:
        Float32 tensor of shape `(units,)`.
    """
    activation_deviation, outgoing_magnitude = validation.check_tensors(
        activation_deviation=activation_deviation,
        outgoing_magnitude=outgoing_magnitude,
    )
    return activation_deviation * outgoing_magnitude


def adaptation(incoming_magnitude: Tensor) -> Tensor:
    """`1 / mean |w_in|`: how fast the unit can change.

    Args:
        incoming_magnitude: Float32 tensor of shape `(units,)`.

    Returns:
        Float32 tensor of shape `(units,)`; finite, also for weights that
        are all zero.
    """
    (incoming_magnitude,) = validation.check_tensors(
        incoming_magnitude=incoming_magnitude
    )
    return 1.0 / ops.maximum(incoming_magnitude, _SMALLEST_MAGNITUDE)


def overall(
    activation_deviation: Tensor,
    outgoing_magnitude: Tensor,
    incoming_magnitude: Tensor,
) -> Tensor:
    """Mean-corrected contribution times adaptation.

    It is the utility of the paper's first versions, and of the authors' code
    for regression, MNIST and ImageNet.

    Args:
        activation_deviation: Float32 tensor of shape `(units,)`, the mean of
            |h - f| over the batch.
        outgoing_magnitude: Float32 tensor of shape `(units,)`.
        incoming_magnitude: Float32 tensor of shape `(units,)`.

    Returns:
        Float32 tensor of shape `(units,)`.
    """
    deviation, outgoing, incoming = validation.check_tensors(
        activation_deviation=activation_deviation,
        outgoing_magnitude=outgoing_magnitude,
        incoming_magnitude=incoming_magnitude,
    )
    return deviation * outgoing * adaptation(incoming)


def weight_magnitude(outgoing_magnitude: Tensor) -> Tensor:
    """`mean |w_out|`: the outgoing weights alone.

    Args:
        outgoing_magnitude: Float32 tensor of shape `(units,)`.

    Returns:
        Float32 tensor of shape `(units,)`.
    """
    (outgoing_magnitude,) = validation.check_tensors(
        outgoing_magnitude=outgoing_magnitude
    )
    return outgoing_magnitude


def gradient_score(gradient_magnitude: Tensor) -> Tensor:
    """`mean |g| / mean over units of mean |g|`: the score of ReGraMa.

    Args:
        gradient_magnitude: Float32 tensor of shape `(units,)`, the mean
            absolute gradient of the unit's incoming weights.

    Returns:
        Float32 tensor of shape `(units,)`. If no unit has a gradient it is 0.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.gradient_score(
    ...     ops.convert_to_tensor([0.0, 3.0, 3.0])))
    array([0. , 1.5, 1.5], dtype=float32)
    """
    (gradient_magnitude,) = validation.check_tensors(
        gradient_magnitude=gradient_magnitude
    )
    return gradient_magnitude / (ops.mean(gradient_magnitude) + 1e-8)


def dormancy_score(activation_magnitude: Tensor) -> Tensor:
    """`mean |h| / mean over units of mean |h|`: the score of ReDo.

    Args:
        activation_magnitude: Float32 tensor of shape `(units,)`, the mean of
            |h| over the batch.

    Returns:
        Float32 tensor of shape `(units,)`. If all units are dead it is 0.
    """
    (activation_magnitude,) = validation.check_tensors(
        activation_magnitude=activation_magnitude
    )
    return activation_magnitude / (ops.mean(activation_magnitude) + 1e-9)
