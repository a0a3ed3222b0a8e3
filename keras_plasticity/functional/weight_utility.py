"""How useful single weights are, and what follows from it."""

from keras import ops

from keras_plasticity import validation
from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.types import Tensor


def first_order_utility(weight: Tensor, gradient: Tensor) -> Tensor:
    """How much the loss would rise without a weight, to first order.

    Args:
        weight: Tensor.
        gradient: Tensor of the same shape, the gradient of the loss.

    Returns:
        Tensor, `-gradient * weight`.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.first_order_utility(
    ...     ops.convert_to_tensor([1.0, 2.0]),
    ...     ops.convert_to_tensor([0.5, -0.5])))
    array([-0.5,  1. ], dtype=float32)
    """
    weight, gradient = validation.check_tensors(
        weight=weight, gradient=gradient
    )
    return -gradient * weight


def global_protection(utility: Tensor, largest: Tensor) -> Tensor:
    """How far weights are protected, by the most useful one of all.

    Args:
        utility: Tensor.
        largest: Scalar tensor, the largest utility of all weights.

    Returns:
        Tensor of the shape of `utility`, `sigmoid(utility / largest)`; 0.5
        where `largest` is not positive, and nothing is known to be useful.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.global_protection(
    ...     ops.convert_to_tensor([0.0, 2.0]), 2.0)).round(3)
    array([0.5  , 0.731], dtype=float32)
    """
    utility, largest = validation.check_tensors(
        utility=utility, largest=largest
    )
    is_known = ops.greater(largest, 0.0)
    ratio = utility / ops.where(is_known, largest, 1.0)
    return ops.sigmoid(ops.where(is_known, ratio, 0.0))


def local_protection(utility: Tensor) -> Tensor:
    """How far weights are protected, among those of the same unit.

    Args:
        utility: Tensor of the shape of a kernel, whose last axis counts units,
            or of a vector.

    Returns:
        Tensor of the same shape, `sigmoid(utility / norm)`: the Euclidean norm
        over all inputs of a unit, or over the whole vector. Of a convolution
        it is over the width of the kernel only, for each height and input, as
        in the authors' code.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.local_protection(
    ...     ops.convert_to_tensor([[3.0, 0.0], [4.0, -1.0]]))).round(3)
    array([[0.646, 0.5  ],
           [0.69 , 0.269]], dtype=float32)
    """
    (utility,) = validation.check_tensors(utility=utility)
    utility = ops.convert_to_tensor(utility)
    utility = at_least_float32(utility)
    # The last axis of PyTorch's weight: the inputs of a dense layer, or the
    # last axis of positions of a convolution.
    axis = max(0, len(utility.shape) - 3)
    square = ops.sum(ops.square(utility), axis=axis, keepdims=True)
    return ops.sigmoid(utility / ops.maximum(ops.sqrt(square), 1e-12))


def below_mean(utility: Tensor, factor: float | Tensor) -> Tensor:
    """Which weights have at most a part of the mean utility.

    Args:
        utility: Tensor, not negative.
        factor: Float or scalar tensor, the part.

    Returns:
        Boolean tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.below_mean(
    ...     ops.convert_to_tensor([0.5, 2.0, 3.5]), 0.25))
    array([ True, False, False])
    """
    utility, factor = validation.check_tensors(utility=utility, factor=factor)
    return utility <= factor * ops.mean(utility)


def least(utility: Tensor, number: Tensor) -> Tensor:
    """Which weights are the least useful.

    Args:
        utility: Tensor.
        number: Integer scalar tensor, how many.

    Returns:
        Boolean tensor of the same shape, true as often. Of equal weights, the
        first ones count as the least useful; NaN counts as infinite.

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.least(
    ...     ops.convert_to_tensor([0.5, 2.0, 0.5, 0.1]), 2))
    array([ True, False, False,  True])
    """
    (utility,) = validation.check_tensors(utility=utility)
    number = validation.check_integer_tensor("number", number)
    if validation.shape_of(number) != ():
        raise validation.error("number", "a single integer", number)
    utility = ops.convert_to_tensor(utility)
    # Backends differ in where they sort it.
    utility = ops.where(ops.isnan(utility), float("inf"), utility)
    order = ops.argsort(ops.reshape(utility, (-1,)))
    rank = ops.cast(ops.argsort(order), "int32")
    return ops.reshape(rank < ops.cast(number, "int32"), utility.shape)
