"""Where in a weight the entries of one unit, or of one feature, lie."""

import dataclasses
import math

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional


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

    def mean_magnitude(self):
        """Mean absolute entry for each index, float32, shape `(size,)`."""
        weights = self.variable.value
        if self.shape != tuple(weights.shape):
            weights = ops.reshape(weights, self.shape)
        if len(self.axes) == 1:
            return functional.mean_magnitude(weights, self.axes[0])
        others = [i for i in range(len(self.shape)) if i not in self.axes]
        magnitude = ops.mean(abs(ops.cast(weights, "float32")), axis=others)
        # What is left has its axes in the order of the weight.
        order = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        places = [order.index(i) for i in range(len(order))]
        if places != list(range(len(places))):
            magnitude = ops.transpose(magnitude, places)
        return ops.reshape(magnitude, (self.size,))

    def take(self, index):
        """The entries of one index, of shape `part_shape`."""
        part = ops.reshape(ops.convert_to_tensor(self.variable), self.shape)
        places = self._places(index)
        for axis, place in sorted(zip(self.axes, places), reverse=True):
            part = ops.take(part, place, axis=axis)
        return part

    def assign(self, index, value):
        """Writes `value`, of shape `part_shape`, and nothing else."""
        self.assign_in(self.variable, index, value)

    def assign_in(self, variable, index, value):
        """Writes into another variable of the weight's own shape."""
        backend.assign_part(
            variable, self.shape, self.axes, self._places(index), value
        )

    def _places(self, index):
        """An index as one integer for each axis."""
        places = []
        for axis in reversed(self.axes):
            size = self.shape[axis]
            places.append(index if axis == self.axes[0] else index % size)
            index = index // size
        return tuple(reversed(places))

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
