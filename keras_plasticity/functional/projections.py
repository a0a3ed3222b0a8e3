"""Projections of weights."""

from collections.abc import Sequence

from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The square root of the sum of all squares in one or more tensors.

    Args:
        tensors: List of tensors.

    Returns:
        Scalar tensor. Of one matrix, it is the Frobenius norm.

    Example:

    >>> float(keras_plasticity.functional.joint_norm(
    ...     [ops.convert_to_tensor([3.0]), ops.convert_to_tensor([[4.0]])]))
    5.0
    """
    tensors = _check_tensors(tensors)
    return ops.sqrt(sum(ops.sum(ops.square(tensor)) for tensor in tensors))


def project_to_norm(tensors: Sequence[Tensor], norm: Tensor) -> list[Tensor]:
    """Tensors times the positive number that gives them a joint norm.

    Args:
        tensors: List of tensors.
        norm: Scalar tensor, not negative, the wanted `joint_norm`. Where it is
            zero, or all tensors are, they stay as they are.

    Returns:
        List of tensors.

    Example:

    >>> [tensor] = keras_plasticity.functional.project_to_norm(
    ...     [ops.convert_to_tensor([3.0, 4.0])], norm=10.0)
    >>> ops.convert_to_numpy(tensor)
    array([6., 8.], dtype=float32)
    """
    tensors = _check_tensors(tensors)
    (norm,) = validation.check_tensors(norm=norm)
    validation.check_scalar("norm", norm)
    present = joint_norm(tensors)
    norm = ops.cast(norm, present.dtype)
    is_zero = (present <= 0.0) | (norm <= 0.0)
    factor = ops.where(is_zero, 1.0, norm / ops.where(is_zero, 1.0, present))
    return [factor * tensor for tensor in tensors]


def _check_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    tensors = validation.check_list(
        "tensors", tensors, rule="a list of tensors"
    )
    return [validation.check_tensors(tensors=each)[0] for each in tensors]
