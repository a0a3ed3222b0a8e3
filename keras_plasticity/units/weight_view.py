"""Where in a weight the entries of one unit, or of one feature, lie."""

import dataclasses
import math

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.units import counted_axes


@dataclasses.dataclass(frozen=True)
class WeightView:
    """A weight, seen as an array in which some axes count something.

    The weight is reshaped (never transposed, so that this costs nothing), and
    an index runs over `axes`, the first of them slowest. Of a dense kernel of
    shape `(features, units)` the units are the view `(features, units)` with
    the axes `(1,)`; the units of a depthwise kernel `(3, 3, channels, 2)` are
    the same shape with the axes `(2, 3)`.

    Attributes:
        variable: `keras.Variable`, the weight.
        shape: Tuple, the shape of the view.
        axes: Tuple of the axes that are counted, not negative.
    """

    variable: keras.Variable
    shape: tuple
    axes: tuple

    @classmethod
    def of(cls, variable, *axes):
        """The view of a variable in its own shape that counts some axes."""
        return cls(variable, tuple(variable.shape), axes)

    @property
    def size(self):
        """How many there are to count."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def part_shape(self):
        """Shape of the entries that belong to one index."""
        return tuple(
            size for i, size in enumerate(self.shape) if i not in self.axes
        )

    def mean_magnitude(self, weights=None):
        """Mean absolute entry for each index, float32, shape `(size,)`.

        Args:
            weights: Tensor of the weight's own shape, such as its gradient.
                Defaults to the weight.
        """
        if weights is None:
            weights = self.variable.value
        if self.shape != tuple(weights.shape):
            weights = ops.reshape(weights, self.shape)
        if len(self.axes) == 1:
            return functional.mean_magnitude(weights, self.axes[0])
        weights = abs(ops.cast(weights, "float32"))
        if others := self._other_axes():
            weights = ops.mean(weights, axis=others)
        return counted_axes.flatten(weights, self.axes)

    def sum(self, values):
        """Sum of the entries of each index, float32, shape `(size,)`.

        Args:
            values: Tensor of the weight's own shape.
        """
        values = ops.reshape(ops.cast(values, "float32"), self.shape)
        if others := self._other_axes():
            values = ops.sum(values, axis=others)
        return counted_axes.flatten(values, self.axes)

    def _other_axes(self):
        return [i for i in range(len(self.shape)) if i not in self.axes]

    def spread(self, values):
        """One value for each index, in a shape that broadcasts to the weight.

        Args:
            values: Tensor of shape `(size,)`.
        """
        values = self.along(values)
        if self.shape != tuple(self.variable.shape):
            values = ops.broadcast_to(values, self.shape)
            values = ops.reshape(values, self.variable.shape)
        return values

    def along(self, values):
        """One value for each index, in a shape that broadcasts to `shape`.

        Args:
            values: Tensor of shape `(size,)`.
        """
        return counted_axes.along(values, self.axes, self.shape)

    def move(self, share, target=None):
        """Moves the entries of each index a part of the way to a target.

        `w <- (1 - share) * w + share * target`

        Args:
            share: Tensor of shape `(size,)`, in [0, 1].
            target: Tensor of the weight's own shape. Defaults to zero.
        """
        self.move_in(self.variable, share, target)

    def move_in(self, variable, share, target=None):
        """The same of another variable of the weight's own shape."""
        weights = ops.convert_to_tensor(variable)
        share = ops.cast(self.along(share), weights.dtype)
        new = (1 - share) * ops.reshape(weights, self.shape)
        if target is not None:
            new = new + share * ops.reshape(target, self.shape)
        backend.assign_whole(variable, ops.reshape(new, variable.shape))

    def take(self, index):
        """The entries of one index, of shape `part_shape`."""
        return self.take_from(ops.convert_to_tensor(self.variable), index)

    def take_from(self, values, index):
        """The entries of one index of a tensor of the weight's own shape."""
        part = ops.reshape(values, self.shape)
        indices = self._indices(index)
        for axis, i in sorted(zip(self.axes, indices), reverse=True):
            part = ops.take(part, i, axis=axis)
        return part

    def assign(self, index, value):
        """Writes `value`, of shape `part_shape`, and nothing else."""
        self.assign_in(self.variable, index, value)

    def assign_in(self, variable, index, value):
        """Writes into another variable of the weight's own shape."""
        backend.assign_part(
            variable, self.shape, self.axes, self._indices(index), value
        )

    def _indices(self, index):
        """An index as one integer for each counted axis."""
        indices = []
        for axis in reversed(self.axes):
            size = self.shape[axis]
            indices.append(index if axis == self.axes[0] else index % size)
            index = index // size
        return tuple(reversed(indices))

    def split(self, axis_sizes, counted):
        """The view in which a single counted axis is split in two.

        Args:
            axis_sizes: Tuple of two integers, whose product is the size.
            counted: Which of the two is counted from now on: 0 or 1.

        Returns:
            `WeightView`.
        """
        (axis,) = self.axes
        shape = self.shape[:axis] + tuple(axis_sizes) + self.shape[axis + 1 :]
        return WeightView(self.variable, shape, (axis + counted,))
