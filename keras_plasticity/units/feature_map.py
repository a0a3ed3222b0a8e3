"""Which unit each input feature of a consumer belongs to."""

import numpy as np
from keras import ops


class FeatureMap:
    """The units that a consumer's input features belong to.

    Mostly feature `i` is unit `i`. A `Flatten` makes several features of one
    unit, a `Concatenate` puts features of others beside it.

    Args:
        unit_of_feature: Integer array of shape `(features,)`: the index of
            the unit; -1 for a feature of no unit.
        units: Integer, the number of units. Each has at least one feature,
            and all have the same number.
        differs: Boolean, whether the features of a unit are computed in
            different ways, so that each has a mean of its own; else all have
            the mean of the unit. Defaults to `False`.

    Attributes:
        features: Integer, the number of features.
        features_of_unit: Integer array of shape `(units, features a unit)`.
        has_common_means: Boolean, whether the features of a unit have the
            mean of the unit.
    """

    def __init__(self, unit_of_feature, units, differs=False):
        unit_of_feature = np.asarray(unit_of_feature, "int32")
        self.unit_of_feature = unit_of_feature
        self.units = units
        self.features = len(unit_of_feature)
        counts = np.bincount(
            unit_of_feature[unit_of_feature >= 0], minlength=units
        )
        copies = int(counts[0])
        if len(counts) != units or copies == 0 or any(counts != copies):
            raise ValueError(
                "Each unit must be read as the same number of features, at "
                f"least one. Received: unit_of_feature={unit_of_feature} for "
                f"{units} units"
            )
        in_order = np.argsort(unit_of_feature, kind="stable")
        in_order = in_order[self.features - units * copies :]
        self.features_of_unit = in_order.reshape(units, -1).astype("int32")
        self.has_common_means = not differs
        # The regular cases, in which all is done by reshaping.
        self.is_identity = np.array_equal(unit_of_feature, np.arange(units))
        self._copies = copies
        self._grid = None
        if np.array_equal(unit_of_feature, np.tile(np.arange(units), copies)):
            self._grid, self._unit_axis = (copies, units), 1
        elif np.array_equal(
            unit_of_feature, np.repeat(np.arange(units), copies)
        ):
            self._grid, self._unit_axis = (units, copies), 0

    def to_units(self, values):
        """Mean over the features of each unit, shape `(units,)`."""
        if self.is_identity:
            return values
        if self._grid is not None:
            grid = ops.reshape(values, self._grid)
            return ops.mean(grid, axis=1 - self._unit_axis)
        values = ops.take(values, self.features_of_unit.reshape(-1))
        return ops.mean(ops.reshape(values, (self.units, -1)), axis=1)

    def sum_to_units(self, values):
        """Sum over the features of each unit, shape `(units,)`."""
        return self._copies * self.to_units(values)

    def to_features(self, values, other):
        """The value of its unit for each feature, shape `(features,)`.

        Args:
            values: Tensor of shape `(units,)`.
            other: Tensor of shape `(features,)`, for features of no unit.
        """
        if self.is_identity:
            return values
        if self._grid is not None:
            shape = [1, 1]
            shape[self._unit_axis] = self.units
            values = ops.broadcast_to(ops.reshape(values, shape), self._grid)
            return ops.reshape(values, (self.features,))
        is_unit = self.unit_of_feature >= 0
        values = ops.take(values, np.where(is_unit, self.unit_of_feature, 0))
        if is_unit.all():
            return values
        return ops.where(is_unit, values, other)

    def slices(self, view, unit):
        """The slices of a weight that belong to the features of one unit.

        Args:
            view: `WeightView` that counts features.
            unit: Integer scalar tensor.

        Returns:
            List of pairs of a `WeightView` and an index of it.
        """
        if self.is_identity:
            return [(view, unit)]
        if self._grid is not None and len(view.axes) == 1:
            return [(view.split(self._grid, self._unit_axis), unit)]
        return [(view, feature) for feature in self.features_of(unit)]

    def features_of(self, unit):
        """List of the features of a unit, each an integer scalar tensor."""
        if self.is_identity:
            return [unit]
        return [
            ops.take(self.features_of_unit[:, i], unit)
            for i in range(self._copies)
        ]
