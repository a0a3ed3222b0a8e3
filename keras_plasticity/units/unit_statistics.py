"""The statistics of a plastic layer: what it reads, and what it makes."""

import weakref

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.units import backward_pass

_UNIT_STATISTICS = ("utility", "age", "mean_activation")
_INPUT_STATISTICS = (
    "input_mean",
    "input_magnitude",
    "input_deviation",
    "input_offset",
    "input_gain",
)


class UnitStatistics(keras.layers.Layer):
    """Weights that carry a plastic layer's statistics.

    It is a sublayer, so that the statistics lie in a group of their own in a
    weights file: a file of the plain Keras layer loads into the plastic one,
    and back.

    All of its weights are float32 and marked `overwrite_with_gradient`: the
    "gradient" that back-propagation hands to the optimizer is the new value,
    and every Keras optimizer stores it as it is; see `backward_pass`.

    Of the layer's own units, shape `(units,)`, kept by `ContinualBackprop`:

    - `utility`: bias-corrected running mean of the utility;
    - `age`: updates since the unit was created;
    - `mean_activation`: bias-corrected running mean of its activation.

    Of the layer's input features, shape `(features,)`, means over the batch
    and all positions, observed in each training step:

    - `input_mean`, `input_magnitude`: of `h` and of `|h|`;
    - `input_deviation`: of `|h - c|`, where
        `c = input_offset + input_gain * mean(h)`.

    The centre `c` has to be the running mean with this very batch in it.
    `input_offset` and `input_gain`, which the optimizer leaves for the next
    step, say how. Features that belong to one unit (after a `Flatten`) have a
    common centre: their `mean(h)` is the mean over all of them.

    Args:
        owner: The plastic layer.
        units: Integer, the number of the layer's units.
        features: Integer, the number of the layer's input features.

    Attributes:
        feature_maps: Tuple of a `FeatureMap` for each layer whose units are
            read here. Known once an optimizer that needs them is built.
        callers: Mapping whose keys are the models, or other layers, of which
            the owner was seen to be a part when they were called; the one
            called last is the last.
    """

    def __init__(self, owner, units, features, **kwargs):
        # Statistics do not follow the layer's dtype policy: means of half
        # precision numbers over millions of steps would be worthless.
        super().__init__(dtype="float32", **kwargs)
        self._owner = weakref.ref(owner)
        self.units = units
        self.features = features
        self.feature_maps = ()
        # A set of weak references would have no order.
        self.callers = weakref.WeakKeyDictionary()

    def build(self):
        for name in _UNIT_STATISTICS:
            setattr(self, name, self._add_statistic(name, self.units))
        for name in _INPUT_STATISTICS:
            initializer = "ones" if name == "input_gain" else "zeros"
            setattr(
                self,
                name,
                self._add_statistic(name, self.features, initializer),
            )
        self.built = True

    def _add_statistic(self, name, size, initializer="zeros"):
        variable = backward_pass.add_overwritten_weight(
            self, name, size, initializer
        )
        variable.plastic_layer = self._owner
        return variable

    def observe(self, inputs, axis):
        """Returns `inputs` unchanged; its backward pass yields the statistics.

        Args:
            inputs: Tensor with the features in one axis.
            axis: Integer, that axis, not negative.

        Returns:
            `inputs`.
        """
        values = [
            getattr(self, name).value
            for name in _INPUT_STATISTICS + _UNIT_STATISTICS
        ]

        def backward(upstream, inputs, values):
            return (upstream, *self._new_values(inputs, axis, values))

        return backward_pass.identity(inputs, values, backward)

    def _new_values(self, inputs, axis, values):
        """The observations of this batch; all that is not observed stays."""
        _, _, _, offset, gain, *unit_statistics = values
        if keras.backend.standardize_dtype(inputs.dtype) != "float32":
            inputs = ops.cast(inputs, "float32")
        (mean,) = backend.mean_over_replicas([_mean_of_features(inputs, axis)])
        center = self.center(mean, offset, gain)
        if axis != len(inputs.shape) - 1:
            shape = [1] * len(inputs.shape)
            shape[axis] = self.features
            deviation = abs(inputs - ops.reshape(center, shape))
        else:
            deviation = abs(inputs - center)
        magnitude, deviation = backend.mean_over_replicas(
            [
                _mean_of_features(abs(inputs), axis),
                _mean_of_features(deviation, axis),
            ]
        )
        return (
            mean,
            magnitude,
            deviation,
            offset,
            gain,
            *unit_statistics,
        )

    def center(self, mean, offset, gain):
        """The running mean of each feature with this batch in it.

        Args:
            mean: Tensor of shape `(features,)`, of this batch.
            offset: Tensor, value of `input_offset`.
            gain: Tensor, value of `input_gain`.

        Returns:
            Tensor of shape `(features,)`.
        """
        for feature_map in self.feature_maps:
            if not feature_map.is_identity:
                mean = feature_map.to_features(feature_map.to_units(mean), mean)
        return offset + gain * mean

    def load_own_variables(self, store):
        if not store.keys():
            # The weights of a plain Keras layer: statistics start anew.
            for variable in self.variables:
                is_gain = variable is self.input_gain
                fill = ops.ones if is_gain else ops.zeros
                variable.assign(fill(variable.shape))
            return
        super().load_own_variables(store)


def _mean_of_features(x, axis):
    """Mean over all axes but one."""
    others = [i for i in range(len(x.shape)) if i != axis]
    if all(x.shape[i] == 1 for i in others):
        # Online learning: one example.
        return ops.reshape(x, (-1,)) if len(others) > 1 else x[0]
    return ops.mean(x, axis=others)
