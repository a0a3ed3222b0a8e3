"""Checks of the arguments of layers that name axes."""

from collections.abc import Sequence
from typing import Any

from keras_plasticity import validation


def check_axis(name: str, value: Any) -> int:
    """Checks that an argument is an axis, and not that of the batch.

    Args:
        name: String.
        value: The argument.
    """
    if not _is_axis(value):
        raise validation.error(
            name, "an integer, and not that of the batch", value
        )
    return int(value)


def check_axes(name: str, value: Any) -> int | list[int]:
    """Checks that an argument is an axis or some axes of one example.

    Args:
        name: String.
        value: The argument.

    Returns:
        Integer, or list of integers.
    """
    if _is_axis(value):
        return int(value)
    rule = "an integer or several, none of them that of the batch"
    axes = validation.check_list(name, value, rule=rule)
    if not axes or not all(_is_axis(axis) for axis in axes):
        raise validation.error(name, rule, value)
    return [int(axis) for axis in axes]


def resolve(axis: int, input_shape: Sequence) -> int:
    """An axis of a layer's inputs, counted from the first one.

    Args:
        axis: Integer, checked by `check_axis`.
        input_shape: Tuple, the shape of the inputs with the batch.

    Raises:
        ValueError: If the inputs do not have it, or it is that of the batch.
    """
    rank = len(input_shape)
    if not -rank < axis < rank:
        raise ValueError(
            f"`axis` must be one of the {rank} axes of the inputs, and not "
            f"that of the batch. Received: axis={axis}, "
            f"input_shape={input_shape}"
        )
    return axis % rank


def known_size(axis: int, input_shape: Sequence) -> int:
    """The length of an axis of a layer's inputs.

    Args:
        axis: Integer, checked by `check_axis`.
        input_shape: Tuple, the shape of the inputs with the batch.

    Raises:
        ValueError: If the inputs do not have the axis, or it is that of the
            batch, or its length is not known.
    """
    size = input_shape[resolve(axis, input_shape)]
    if size is None:
        raise ValueError(
            "The number of features must be known. Received: "
            f"axis={axis}, input_shape={input_shape}"
        )
    return size


def _is_axis(value):
    return validation.is_integer(value) and 0 < abs(value) < 2**31
