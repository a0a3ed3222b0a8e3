"""Where in a tensor the units of a layer lie, and why they may be lost."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Where the units of a layer lie in a tensor.

    For rules of `keras_plasticity.graph.register_rule`. Of a tensor of shape
    `(batch, time, 4)` whose last axis counts four units the axes are `(2,)`
    and the array is `[0, 1, 2, 3]`.

    Attributes:
        axes: Tuple of integers, not negative, in ascending order.
        unit: Integer array of the shape of these axes: the unit of each
            index; -1 for none.
        differs: Boolean, whether some unit is seen as several features that
            are computed in different ways, `relu(x)` and `relu(-x)`, each of
            which has a mean of its own.
    """

    axes: tuple
    unit: np.ndarray
    differs: bool = False

    @classmethod
    def of_outputs(cls, axes, shape, size):
        """The units of a layer in its outputs.

        Args:
            axes: Tuple of the axes that count them, in the order in which
                they count.
            shape: Tuple, the shape of the outputs.
            size: Integer, the number of units.

        Returns:
            `Units`.
        """
        unit = np.arange(size)
        if len(axes) > 1:
            unit = unit.reshape([shape[axis] for axis in axes])
            unit = np.transpose(unit, np.argsort(axes))
        return cls(tuple(sorted(axes)), unit)

    def same_as(self, other):
        """Whether other units, or `None`, lie in the same way."""
        return (
            other is not None
            and self.axes == other.axes
            and np.array_equal(self.unit, other.unit)
        )

    def over(self, axes, shape):
        """The same units along other axes, if these count them as well.

        They do if all are of one unit along each axis that is left out. Along
        an axis that is new they repeat.

        Args:
            axes: Tuple of integers, not negative.
            shape: Tuple, the shape of the tensor.

        Returns:
            `Units`; `None` if the axes do not count the units.
        """
        axes = tuple(sorted(axes))
        unit = self.unit
        for i in reversed(range(len(self.axes))):
            if self.axes[i] not in axes:
                if np.any(unit != unit.take([0], axis=i)):
                    return None
                unit = unit.take(0, axis=i)
        sizes = dict(zip([a for a in self.axes if a in axes], unit.shape))
        new_shape = [sizes.get(axis, shape[axis]) for axis in axes]
        if None in new_shape:
            return None
        unit = unit.reshape([sizes.get(axis, 1) for axis in axes])
        return Units(axes, np.broadcast_to(unit, new_shape), self.differs)

    def in_order(self, axes):
        """The unit of each index that the axes count, an array of one axis.

        Args:
            axes: The attribute, in the order in which they count.
        """
        order = [self.axes.index(axis) for axis in axes]
        return np.transpose(self.unit, order).reshape(-1)


class Refusal(Exception):
    """The units cannot be followed: an error, with the reason."""


class Skip(Exception):
    """The units can be followed, but none can be replaced alone: a reason."""


# The names that attention layers give to their projections.
_PROJECTIONS = ("attention_output", "gate", "key", "query", "value")


def name_of(layer):
    """The name of a layer; of a projection, with that of its attention."""
    parts = layer.path.split("/")
    if layer.name in _PROJECTIONS and len(parts) > 1:
        return "/".join(parts[-2:])
    return layer.name


def describe(operation):
    kind = type(operation).__name__
    return f"'{operation.name}' (`{kind}`)"
