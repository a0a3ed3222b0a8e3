"""Values of units, or of features, that several axes of a tensor count.

The axes are listed in the order in which they count, the first one slowest,
which need not be their order in the tensor.
"""

from collections.abc import Sequence

from keras import ops

from keras_plasticity.types import Tensor


def flatten(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Puts the counted axes of a tensor into one.

    Args:
        values: Tensor that has no other axes, in the tensor's order.
        axes: Tuple of the counted axes in the order in which they count. Only
            their order matters.

    Returns:
        Tensor of one axis.
    """
    order = sorted(axes)
    order = [order.index(axis) for axis in axes]
    if order != list(range(len(order))):
        values = ops.transpose(values, order)
    return ops.reshape(values, (-1,))


def along(
    values: Tensor, axes: tuple[int, ...], shape: Sequence[int]
) -> Tensor:
    """Spreads the values over the counted axes of a tensor.

    Args:
        values: Tensor of one axis.
        axes: Tuple of the counted axes in the order in which they count.
        shape: Tuple, the shape of the tensor.

    Returns:
        Tensor that broadcasts to `shape`.
    """
    if len(axes) > 1:
        values = ops.reshape(values, [shape[axis] for axis in axes])
        order = sorted(range(len(axes)), key=axes.__getitem__)
        if order != list(range(len(order))):
            values = ops.transpose(values, order)
    return ops.reshape(
        values, [n if i in axes else 1 for i, n in enumerate(shape)]
    )
