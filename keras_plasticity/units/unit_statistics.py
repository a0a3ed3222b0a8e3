"""Statistics of a plastic layer's inputs and of its units."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity import keras_compat
from keras_plasticity.units import backward_pass
from keras_plasticity.units import counted_axes
from keras_plasticity.units.backward_pass import UNIT

_UNIT_STATISTICS = ("utility", "age", "mean_activation")
# What a training step can observe, and the weight in which its sum travels.
_OBSERVATIONS = {
    "activation_mean": "activation_sum",
    "activation_magnitude": "magnitude_sum",
    "activation_deviation": "deviation_sum",
    "firing": "firing_sum",
    "num_examples": "count",
}
_CENTER = ("running_mean", "shrinkage")
OBSERVATIONS = tuple(_OBSERVATIONS)


class UnitStatistics(keras.layers.Layer):
    """Weights that carry a plastic layer's statistics.

    It is a sublayer, so that the statistics lie in a group of their own in a
    weights file: a file of the plain Keras layer loads into the plastic one,
    and back. All of its weights are float32.

    Of the layer's own units, shape `(units,)`, kept by the optimizer:

    - `utility`: how useful the unit is, as the optimizer defines it;
    - `age`: updates since the unit was created;
    - `mean_activation`: bias-corrected running mean of its activation.

    These three are not among the `weights` of the model: an optimizer that
    keeps them lists them among its own, and on JAX a training step must not
    be given them twice. They are saved with the layer. With `units=0` there
    are none of them: a layer that has a second kernel, which reads other
    features, observes these by a second object.

    Of the layer's input features, shape `(features,)`, sums over the batch of
    means over all positions, as each training step observes them:

    - `activation_sum`, `magnitude_sum`: of `h` and of `|h|`;
    - `deviation_sum`: of `|h - c|`, where `c` is the centre, see below;
    - `firing_sum`: of whether the unit behind the feature fires, which is
        where its pre-activation is positive. Where a unit has two features
        with activations of their own (`keras_plasticity.layers.CReLU`), each
        is looked at alone, and fires where it is positive.

    And `count`, shape `(2,)`: the number of examples, and of calls of the
    layer. These weights only carry sums from the backward pass to the
    optimizer, in the unit and for the reasons that `backward_pass` gives.
    All are observed until an optimizer says which of them it needs, and none
    where the layer is called with `training=False`.

    The centre `c` has to be the running mean with this very batch in it. For
    that the optimizer leaves for the next step, in the same unit, the
    `running_mean` and its `shrinkage`, which is one minus the next step size.
    Features that belong to one unit (after a `Flatten`) have a common centre:
    their `mean(h)` is the mean over all of them. Features that are computed
    from it in different ways (`keras_plasticity.layers.CReLU`) have their own.

    Args:
        owner: The plastic layer.
        units: Integer, the number of the layer's units whose books are kept
            here.
        features: Integer, the number of the layer's input features.

    Attributes:
        feature_maps: Tuple of a `FeatureMap` for each layer whose units are
            read here. Known once an optimizer that needs them is built.
        firing_level: What an input exceeds where its unit fires: 0, or a
            float32 array of shape `(features,)`.
        callers: Mapping whose keys are the models, or other layers, of which
            the owner was seen to be a part when they were called; the one
            called last is the last.
        observes_inference: Boolean, whether calls with `training=False` are
            observed, too.
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
        self.observes_inference = False
        # A set of weak references would have no order.
        self.callers = weakref.WeakKeyDictionary()

    def build(self):
        for name in self._unit_statistics():
            variable = self.add_weight(
                name=name,
                shape=(self.units,),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                autocast=False,
            )
            setattr(self, name, variable)
        for name in [*_OBSERVATIONS.values(), *_CENTER]:
            shape = (2 if name == "count" else self.features,)
            variable = backward_pass.add_overwritten_weight(self, name, shape)
            variable.plastic_layer = self._owner
            setattr(self, name, variable)
        owner = self._owner()
        backend.warn_if_trained_elsewhere(
            self,
            self.count,
            f"trains plastic layer '{owner.name}', but does not keep the "
            "statistics of its units: their utility and age stay 0, and none "
            "of them is replaced. Train it by an optimizer of "
            "`keras_plasticity.optimizers`, or use "
            f"`keras.layers.{type(owner).__name__}`.",
        )
        self.built = True

    @property
    def variables(self):
        if keras.backend.backend() == "torch":
            # What a `state_dict` holds, of the layer and of its model.
            return self.carriers() + self.unit_variables()
        return self.carriers()

    @property
    def weights(self):
        return self.carriers()

    def _unit_statistics(self):
        return _UNIT_STATISTICS if self.units else ()

    def unit_variables(self):
        """The variables that an optimizer keeps of the units."""
        names = self._unit_statistics() if self.built else ()
        return [getattr(self, name) for name in names]

    def carriers(self):
        """The variables that are among those of the model."""
        names = [*_OBSERVATIONS.values(), *_CENTER] if self.built else []
        return [getattr(self, name) for name in names]

    def _forget_producers(self):
        self.feature_maps = ()
        self.firing_level = 0.0

    def observe_only(self, names):
        """Observes from now on only what an optimizer needs.

        Args:
            names: Sequence of strings among `OBSERVATIONS`.
        """
        self._observed = tuple(names)
        self._forget_producers()

    def sums(self, names):
        """The variables in which observations travel.

        Args:
            names: Sequence of strings among `OBSERVATIONS`.

        Returns:
            Dict from name to `keras.Variable`.
        """
        return {name: getattr(self, _OBSERVATIONS[name]) for name in names}

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

    def observes_call(self):
        """Whether the call that is being made is observed: a boolean."""
        return self.observes_inference or not keras_compat.is_inference()

    def observe(self, inputs, axes, weights=None):
        """Returns `inputs` unchanged; its backward pass yields the statistics.

        Args:
            inputs: Tensor.
            axes: Tuple of its axes that count the features, not negative, in
                the order in which they count.
            weights: Float tensor of shape `(batch_size, steps)` of ones and
                zeros: which time steps count, where the second axis of
                `inputs` counts steps. By default all do.

        Returns:
            `inputs`.
        """

        def backward(upstream, inputs, values):
            carried, positions = self._split(values)
            new = self._new_values(inputs, axes, carried, *positions)
            return (upstream, *new, *map(ops.zeros_like, positions))

        values = self._values() + ([] if weights is None else [weights])
        return backend.identity(inputs, values, backward)

    def observe_beside(self, outputs, inputs, axes, weights=None):
        """Returns `outputs` unchanged; its backward pass observes `inputs`.

        For inputs that never leave the layer which reads them.

        Args:
            outputs: Tensor, an output of the layer.
            inputs: See `observe`.
            axes: See `observe`.
            weights: See `observe`.

        Returns:
            `outputs`.
        """

        def backward(upstream, outputs, values):
            carried, (inputs, *positions) = self._split(values)
            new = self._new_values(inputs, axes, carried, *positions)
            return (upstream, *new, *map(ops.zeros_like, values[len(new) :]))

        values = self._values() + [ops.stop_gradient(inputs)]
        if weights is not None:
            values.append(weights)
        return backend.identity(outputs, values, backward)

    def _values(self):
        """The values of the carriers."""
        return [variable.value for variable in self.carriers()]

    def _split(self, values):
        """The values of the carriers, and what else there is."""
        number = len(_OBSERVATIONS) + len(_CENTER)
        return list(values[:number]), list(values[number:])

    def _new_values(self, inputs, axes, values, weights=None):
        """What the carriers hold after this batch, a list."""
        names = [*_OBSERVATIONS.values(), *_CENTER]
        carried = dict(zip(names, values))
        new = self._observations(inputs, axes, carried, weights)
        # One tensor of zeros for all that is not observed.
        zeros = ops.zeros_like(values[-1])
        return [new.get(name, zeros) for name in names]

    def _observations(self, inputs, axes, values, weights):
        """What is observed of this batch: dict from name of weight to sum."""
        size = inputs.shape[0]
        if size is None:
            size = ops.cast(ops.shape(inputs)[0], "float32")
        if keras.backend.standardize_dtype(inputs.dtype) != "float32":
            inputs = ops.cast(inputs, "float32")
        num_examples = ops.reshape(
            ops.cast(ops.convert_to_tensor(size), "float32"), (1,)
        )
        first = [num_examples]
        if weights is not None:
            first.append(ops.reshape(ops.sum(weights), (1,)))
        if "activation_mean" in self._observed:
            first.append(sum_of_features(inputs, axes, weights))
        num_examples, *first = backend.sum_over_replicas(first)
        if weights is not None:
            # The mean over all steps that count, in whichever example, for as
            # many examples as there are. Without any such step, there is none.
            num_steps, *first = first
            factor = num_examples / ops.maximum(num_steps, 1.0)
            num_examples = num_examples * ops.minimum(num_steps, 1.0)
            first = [factor * total for total in first]
        count = ops.concatenate([num_examples, ops.ones_like(num_examples)])
        result = {"count": UNIT * count}
        if first:
            (total,) = first
            result["activation_sum"] = UNIT * total
        rest = {}
        if "activation_magnitude" in self._observed:
            rest["magnitude_sum"] = abs(inputs)
        if "activation_deviation" in self._observed:
            center = self.center(
                total / ops.maximum(num_examples, 1.0),
                values["running_mean"],
                values["shrinkage"],
            )
            center = self._along(inputs, axes, center)
            rest["deviation_sum"] = abs(inputs - center)
        if "firing" in self._observed:
            level = self.firing_level
            if not isinstance(level, float):
                level = self._along(inputs, axes, ops.convert_to_tensor(level))
            rest["firing_sum"] = ops.cast(inputs > level, "float32")
        sums = [UNIT * sum_of_features(x, axes, weights) for x in rest.values()]
        if sums:
            sums = backend.sum_over_replicas(sums)
            if weights is not None:
                sums = [factor * each for each in sums]
            result.update(zip(rest, sums))
        return result

    def _along(self, inputs, axes, values):
        """Values of shape `(features,)`, to be combined with the inputs."""
        shape = list(inputs.shape)
        if axes == (len(shape) - 1,):
            return values
        if len(axes) == 1:
            shape[axes[0]] = self.features
        return counted_axes.along(values, axes, shape)

    def center(self, mean, running_mean, shrinkage):
        """The running mean of each feature with this batch in it.

        Args:
            mean: Tensor of shape `(features,)`, of this batch.
            running_mean: Tensor, value of `running_mean`.
            shrinkage: Tensor, value of `shrinkage`.

        Returns:
            Tensor of shape `(features,)`.
        """
        for feature_map in self.feature_maps:
            if feature_map.has_common_means and not feature_map.is_identity:
                mean = feature_map.to_features(feature_map.to_units(mean), mean)
        step_size = 1.0 - shrinkage / UNIT
        return functional.running_mean(running_mean / UNIT, mean, step_size)

    def quantize(self, *args, **kwargs):
        pass  # The layer refuses for both.

    def load_own_variables(self, store):
        if not store.keys():
            # The weights of a plain Keras layer: statistics start again.
            for variable in self.unit_variables() + self.carriers():
                variable.assign(ops.zeros(variable.shape))
            return
        super().load_own_variables(store)


def sum_of_features(x, axes, weights=None):
    """Sum over the batch of the mean over all positions.

    Args:
        x: Tensor whose first axis counts examples.
        axes: Tuple of the axes that count features, not negative, in the order
            in which they count.
        weights: Tensor of the shape of the first two axes of `x`. With it,
            over these two axes it is the sum of what has a weight above zero.

    Returns:
        Tensor of shape `(features,)`.
    """
    others = [i for i in range(len(x.shape)) if i not in axes]
    if weights is not None:
        shape = (*ops.shape(weights), *[1] * (len(x.shape) - 2))
        # Not a product: what does not count may be no number.
        x = ops.where(ops.reshape(weights, shape) > 0.0, x, 0.0)
        total = ops.sum(x, axis=others) / _product_of_sizes(x, others[2:])
        return counted_axes.flatten(total, axes) if len(axes) > 1 else total
    if all(x.shape[i] == 1 for i in others):
        # Online learning: one example.
        if len(axes) > 1:
            x = ops.reshape(x, [x.shape[axis] for axis in sorted(axes)])
            return counted_axes.flatten(x, axes)
        return ops.reshape(x, (-1,)) if len(others) > 1 else x[0]
    total = ops.sum(x, axis=others)
    if len(axes) > 1:
        total = counted_axes.flatten(total, axes)
    if len(others) == 1:
        return total
    return total / _product_of_sizes(x, others[1:])


def _product_of_sizes(x, axes):
    """The product of the sizes of some axes of a tensor."""
    sizes = [x.shape[i] for i in axes]
    if None in sizes:
        shape = ops.shape(x)
        sizes = [ops.cast(shape[i], "float32") for i in axes]
    product = 1.0
    for size in sizes:
        product = product * size
    return product


def _firing_level(activation):
    """The activation of a unit whose pre-activation is zero."""
    if activation is None or isinstance(activation, keras.layers.Layer):
        return 0.0  # As of all activation layers of Keras.
    with backend.compute_now():
        value = activation(ops.zeros((1, 1)))
        return float(ops.convert_to_numpy(value).item())
