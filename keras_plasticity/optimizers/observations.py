"""What a layer observes of the units it reads, on its way to the optimizer."""

import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.units.backward_pass import UNIT
from keras_plasticity.units.unit_statistics import OBSERVATIONS


class ConsumerInputs:
    """The inputs of a plastic layer that reads the units of others.

    Every step goes through `take_in` and `set_next_center`. They compute on
    tensors, by operators, where they can: eager backends pay many times an
    operation's price for a variable, or for the same operation from
    `keras.ops`.

    Args:
        consumer: The plastic layer.
        optimizer: The `UnitResetOptimizer`.

    Attributes:
        name: String, the consumer's name.
        statistics: The consumer's `UnitStatistics`.
        took_part: Whether the consumer observed any examples in this update:
            a boolean, or a boolean scalar tensor.
        means: Dict from observation to its mean over the examples, a tensor
            of shape `(features,)`. Of use within an update, where the consumer
            took part.
        num_examples: Tensor of shape `(1,)`, their number.
        may_change: Boolean, whether the consumer is trained in this step.
    """

    def __init__(self, consumer, optimizer):
        self.name = consumer.name
        self.statistics = statistics = consumer.statistics
        # The others are no observations of inputs.
        observed = [name for name in optimizer.observed if name in OBSERVATIONS]
        statistics.observe_only(observed)
        self._count = statistics.count
        self._sums = statistics.sums(
            [name for name in observed if name != "num_examples"]
        )
        self._tracks_mean = "activation_mean" in optimizer.observed
        self._optimizer = optimizer
        self._producers = []  # Pairs of `HiddenUnits` and a `FeatureMap`.
        self._accumulators = {}
        # Not a number where an observation was none.
        self._check = optimizer.add_variable(
            shape=(statistics.features,),
            dtype="float32",
            initializer="zeros",
            name=f"{consumer.path.replace('/', '_')}_check",
        )
        self.may_change = True
        self.forget()

    def forget(self):
        """Forgets what was observed in the last update."""
        self.took_part = False
        self.means = {}
        self.num_examples = None

    def add_producer(self, units, feature_map):
        """Notes units that are read.

        Args:
            units: `HiddenUnits`.
            feature_map: `FeatureMap` from the consumer's features to them.
        """
        self._producers.append((units, feature_map))
        self.statistics.add_feature_map(feature_map, units.layer.activation)

    def add_accumulators(self, optimizer):
        """Adds variables for the observations of an accumulated step."""
        for variable in [self._count, *self._sums.values()]:
            self._accumulators[id(variable)] = (
                optimizer.add_variable_from_reference(
                    variable, name="accumulator"
                )
            )

    def begin_step(self, trained):
        """Notes what is trained in this step.

        Args:
            trained: Set of the ids of variables.
        """
        self.may_change = id(self._count) in trained

    def touched_variables(self):
        """The variables that an update reads or assigns."""
        statistics = self.statistics
        return [statistics.running_mean, statistics.shrinkage, self._check]

    def count_of(self, observations):
        """The number of examples observed, in its unit; `None` without any.

        Args:
            observations: Dict from the id of a weight to what has travelled.
        """
        count = observations.get(id(self._count))
        return None if count is None else count[0]

    def take_in(self, observations, took_part):
        """Takes in what was observed in this update.

        Args:
            observations: Dict from the id of a weight to what has travelled.
            took_part: See the attribute.
        """
        self.took_part = took_part
        if took_part is False:
            return
        count = observations[id(self._count)]
        # Both have the same factor, whatever it is.
        self.means = {
            name: observations[id(variable)] / count[0]
            for name, variable in self._sums.items()
        }
        self.num_examples = count[:1] / count[1]
        backend.keep_if(took_part, self._update, self.touched_variables())

    def _update(self):
        if self.means:
            # All of them are of the same activations: one is enough.
            self._note_not_finite(next(iter(self.means.values())))
        if self._tracks_mean:
            statistics = self.statistics
            running_mean = statistics.center(
                self.means["activation_mean"],
                statistics.running_mean.value,
                statistics.shrinkage.value,
            )
            statistics.running_mean.assign(UNIT * running_mean)
        return 0

    def _note_not_finite(self, value):
        # Zero times infinity is not a number, and remains so.
        self._check.assign(self._check.value + 0.0 * value)

    def was_all_finite(self):
        """Whether all activations were finite so far: a boolean."""
        if not keras_compat.has_value(self._check):
            return True  # `fit` has failed on JAX.
        check = ops.convert_to_numpy(self._check)
        return bool(np.isfinite(check).all())

    def center_variables(self):
        """The variables that say how the consumer centres the next batch."""
        if not self._tracks_mean:
            return []
        return [self.statistics.running_mean, self.statistics.shrinkage]

    def running_mean(self):
        """The running mean of each feature, after `take_in`."""
        return self.statistics.running_mean.value / UNIT

    def set_next_center(self):
        """Tells the consumer how to centre the next batch."""
        if self._tracks_mean:
            backend.keep_if(
                self.took_part,
                self._set_shrinkage,
                [self.statistics.shrinkage],
            )

    def _set_shrinkage(self):
        variable = self.statistics.shrinkage
        shrinkage = None
        for units, feature_map in self._producers:
            step_size = self._optimizer.step_size(units.age.value + 1.0)
            new = UNIT * (1.0 - step_size)
            if not feature_map.is_identity:
                other = variable.value if shrinkage is None else shrinkage
                new = feature_map.to_features(new, other)
            shrinkage = new
        variable.assign(shrinkage)
        return 0

    def accumulate(self, observations, finite):
        """Adds the observations of one of several accumulated steps.

        Args:
            observations: Dict, changed in place: from now on it holds what
                was observed since the last update.
            finite: Boolean scalar tensor, whether the step's gradients are
                finite; `None` if they are not checked.
        """
        count = observations.get(id(self._count))
        if count is not None:
            # The mean over calls, without the factor of this step.
            factor = count[1] / UNIT
            observed = {
                key: observations[key] / factor for key in self._accumulators
            }
            for variable in self._sums.values():
                value = observed[id(variable)] / UNIT
                self._note_not_finite(value)
                is_finite = ops.all(ops.isfinite(value))
                finite = is_finite if finite is None else finite & is_finite
            for key, accumulator in self._accumulators.items():
                value = observed[key]
                if finite is not None:
                    value = ops.where(finite, value, 0.0)
                accumulator.assign_add(value)
        for key, accumulator in self._accumulators.items():
            observations[key] = ops.copy(ops.convert_to_tensor(accumulator))
        # All steps of an update are one call.
        count = observations[id(self._count)]
        observations[id(self._count)] = ops.minimum(count, [float("inf"), UNIT])

    def reset_accumulators(self, is_update):
        """Empties the accumulators after an update."""
        for accumulator in self._accumulators.values():
            accumulator.assign(
                ops.where(is_update, 0.0, ops.convert_to_tensor(accumulator))
            )
