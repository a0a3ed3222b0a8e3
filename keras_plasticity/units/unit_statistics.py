"""Statistics of a plastic layer's inputs and of its units."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity.units import backward_pass

_UNIT_STATISTICS = ("utility", "age", "mean_activation")
# What a training step can observe, and the statistic that holds it.
_OBSERVATIONS = {
    "activation_mean": "input_mean",
    "activation_magnitude": "input_magnitude",
    "activation_deviation": "input_deviation",
    "firing": "input_firing",
    "num_examples": "num_examples",
}
_CENTER = ("input_offset", "input_gain")
OBSERVATIONS = tuple(_OBSERVATIONS)


class UnitStatistics(keras.layers.Layer):
    """Weights that carry a plastic layer's statistics.

    It is a sublayer, so that the statistics lie in a group of their own in a
    weights file: a file of the plain Keras layer loads into the plastic one,
    and back.

    All of its weights are float32 and marked `overwrite_with_gradient`: the
    "gradient" that back-propagation hands to the optimizer is the new value,
    and every Keras optimizer stores it as it is; see `backward_pass`.

    Of the layer's own units, shape `(units,)`, kept by the optimizer:

    - `utility`: how useful the unit is, as the optimizer defines it;
    - `age`: updates since the unit was created;
    - `mean_activation`: bias-corrected running mean of its activation.

    Of the layer's input features, shape `(features,)`, means over the batch
    and all positions, observed in each training step:

    - `input_mean`, `input_magnitude`: of `h` and of `|h|`;
    - `input_deviation`: of `|h - c|`, where
        `c = input_offset + input_gain * mean(h)`;
    - `input_firing`: share of the examples and positions at which the unit
        behind the feature fires, which is where its pre-activation is positive.

    And `num_examples`, shape `(1,)`: the size of the batch.

    All of these are observed until an optimizer says which of them it needs.

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
        firing_level: What an input exceeds where its unit fires: 0, or a
            float32 array of shape `(features,)`.
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
        self._forget_producers()
        self._observed = OBSERVATIONS
        # A set of weak references would have no order.
        self.callers = weakref.WeakKeyDictionary()

    def build(self):
        for name in _UNIT_STATISTICS:
            setattr(self, name, self._add_statistic(name, self.units))
        for name in [*_OBSERVATIONS.values(), *_CENTER]:
            size = 1 if name == "num_examples" else self.features
            initializer = "ones" if name == "input_gain" else "zeros"
            setattr(self, name, self._add_statistic(name, size, initializer))
        self.built = True

    def _add_statistic(self, name, size, initializer="zeros"):
        variable = backward_pass.add_overwritten_weight(
            self, name, size, initializer
        )
        variable.plastic_layer = self._owner
        return variable

    def _forget_producers(self):
        self.feature_maps = ()
        self.firing_level = 0.0

    def observe_only(self, names):
        """Observes from now on only what an optimizer needs.

        Args:
            names: Sequence of strings among `OBSERVATIONS`.

        Returns:
            List of the `keras.Variable`s that hold these observations.
        """
        self._observed = tuple(names)
        self._forget_producers()
        return [getattr(self, _OBSERVATIONS[name]) for name in names]

    def input_variables(self):
        """The variables that hold observations."""
        return [getattr(self, name) for name in _OBSERVATIONS.values()]

    def add_feature_map(self, feature_map, activation):
        """Notes whose units the layer reads.

        Args:
            feature_map: `FeatureMap` from the input features to units.
            activation: The activation function of these units, or `None`.
        """
        self.feature_maps += (feature_map,)
        level = _firing_level(activation)
        if level != 0.0:
            is_unit = feature_map.unit_of_feature >= 0
            levels = np.where(is_unit, level, self.firing_level)
            self.firing_level = levels.astype("float32")

    def observe(self, inputs, axis):
        """Returns `inputs` unchanged; its backward pass yields the statistics.

        Args:
            inputs: Tensor with the features in one axis.
            axis: Integer, that axis, not negative.

        Returns:
            `inputs`.
        """
        names = [*_OBSERVATIONS.values(), *_CENTER, *_UNIT_STATISTICS]
        values = [getattr(self, name).value for name in names]

        def backward(upstream, inputs, values):
            new = dict(zip(names, values))
            new.update(self._observations(inputs, axis, new))
            return (upstream, *new.values())

        return backward_pass.identity(inputs, values, backward)

    def _observations(self, inputs, axis, values):
        """What is observed of this batch; all other statistics stay."""
        result = {}
        if "num_examples" in self._observed:
            number = ops.convert_to_tensor(ops.shape(inputs)[0])
            number = ops.reshape(ops.cast(number, "float32"), (1,))
            (result["num_examples"],) = backend.sum_over_replicas([number])
        if keras.backend.standardize_dtype(inputs.dtype) != "float32":
            inputs = ops.cast(inputs, "float32")
        if "activation_mean" in self._observed:
            (mean,) = backend.mean_over_replicas(
                [_mean_of_features(inputs, axis)]
            )
            result["input_mean"] = mean
        means = {}
        if "activation_magnitude" in self._observed:
            means["input_magnitude"] = abs(inputs)
        if "activation_deviation" in self._observed:
            center = self.center(
                mean, values["input_offset"], values["input_gain"]
            )
            center = self._along(inputs, axis, center)
            means["input_deviation"] = abs(inputs - center)
        if "firing" in self._observed:
            level = self.firing_level
            if not isinstance(level, float):
                level = self._along(inputs, axis, ops.convert_to_tensor(level))
            means["input_firing"] = ops.cast(inputs > level, "float32")
        values = [_mean_of_features(value, axis) for value in means.values()]
        if values:
            result.update(zip(means, backend.mean_over_replicas(values)))
        return result

    def _along(self, inputs, axis, values):
        """Values of shape `(features,)`, to be combined with the inputs."""
        if axis == len(inputs.shape) - 1:
            return values
        shape = [1] * len(inputs.shape)
        shape[axis] = self.features
        return ops.reshape(values, shape)

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
            # The weights of a plain Keras layer: statistics start again.
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


def _firing_level(activation):
    """The activation of a unit whose pre-activation is zero."""
    if activation is None or isinstance(activation, keras.layers.Layer):
        return 0.0  # As of all activation layers of Keras.
    with backend.compute_now():
        value = activation(ops.zeros((1, 1)))
        return float(ops.convert_to_numpy(value)[0, 0])
