"""What a layer observes of the units it reads, on its way to the optimizer."""

from keras import ops


class ConsumerInputs:
    """The inputs of a plastic layer that reads the units of others.

    Every step goes through `store` and `set_next_center`. They compute on
    tensors, by operators, where they can: eager backends pay many times an
    operation's price for a variable, or for the same operation from
    `keras.ops`.

    Args:
        consumer: The plastic layer.
        optimizer: The `UnitResetOptimizer`.

    Attributes:
        statistics: The consumer's `UnitStatistics`.
    """

    def __init__(self, consumer, optimizer):
        self.statistics = statistics = consumer.statistics
        self._observed = statistics.observe_only(optimizer.observed)
        self._tracks_mean = "activation_mean" in optimizer.observed
        self._decay_rate = optimizer.decay_rate
        self._producers = []  # Pairs of `HiddenUnits` and a `FeatureMap`.
        self._accumulators = {}

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
        for variable in self._observed:
            self._accumulators[id(variable)] = (
                optimizer.add_variable_from_reference(
                    variable, name="accumulator"
                )
            )

    def touched_variables(self):
        """The variables that an update reads or assigns."""
        statistics = self.statistics
        return self._observed + [statistics.input_offset, statistics.input_gain]

    def is_observed(self, observations):
        """Whether the consumer took part in a step."""
        return observations.get(id(self.statistics.input_mean)) is not None

    def store(self, observations):
        """Stores what was observed in this update.

        Args:
            observations: Dict from the id of a statistic to its new value.
        """
        statistics = self.statistics
        for variable in self._observed:
            variable.assign(observations[id(variable)])
        if self._tracks_mean:
            # Until `set_next_center`, the running mean itself.
            statistics.input_offset.assign(
                statistics.center(
                    observations[id(statistics.input_mean)],
                    statistics.input_offset.value,
                    statistics.input_gain.value,
                )
            )

    def set_next_center(self):
        """Tells the consumer how to centre the next batch."""
        if not self._tracks_mean:
            return
        statistics = self.statistics
        gain = None
        for units, feature_map in self._producers:
            step_size = units.next_step_size(self._decay_rate)
            if feature_map.is_identity:
                gain = step_size
            else:
                other = statistics.input_gain.value if gain is None else gain
                gain = feature_map.to_features(step_size, other)
        statistics.input_gain.assign(gain)
        statistics.input_offset.assign(
            (1.0 - gain) * statistics.input_offset.value
        )

    def accumulate(self, observations, steps, finite):
        """Adds the observations of one of several accumulated steps.

        Args:
            observations: Dict, changed in place: from now on it holds what
                was observed since the last update.
            steps: Integer, the number of steps in an update.
            finite: Boolean scalar tensor, whether the step's gradients are
                finite; `None` if they are not checked.
        """
        for variable in self._observed:
            observed = observations.get(id(variable))
            if observed is None:
                continue
            if variable is not self.statistics.num_examples:
                observed = observed / steps
            if finite is not None:
                observed = ops.where(finite, observed, 0.0)
            accumulator = self._accumulators[id(variable)]
            accumulator.assign_add(observed)
            observations[id(variable)] = ops.copy(
                ops.convert_to_tensor(accumulator)
            )

    def reset_accumulators(self, is_update):
        """Empties the accumulators after an update."""
        for accumulator in self._accumulators.values():
            accumulator.assign(
                ops.where(is_update, 0.0, ops.convert_to_tensor(accumulator))
            )
