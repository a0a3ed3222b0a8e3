import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity import graph
from keras_plasticity import keras_compat
from keras_plasticity.optimizers import slots
from keras_plasticity.optimizers.new_weights import part_initializer
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.optimizer_wrapper import innermost
from keras_plasticity.optimizers.optimizer_wrapper import is_number
from keras_plasticity.optimizers.optimizer_wrapper import loss_scaler
from keras_plasticity.optimizers.optimizer_wrapper import wrapped
from keras_plasticity.types import Tensor
from keras_plasticity.units.weight_view import WeightView

_UTILITIES = {
    "contribution": functional.contribution,
    "mean_corrected_contribution": functional.mean_corrected_contribution,
    "adaptation": functional.adaptation,
    "overall": functional.overall,
    "weight_magnitude": functional.weight_magnitude,
}
_UTILITY_ARGUMENTS = (
    "activation_magnitude",
    "activation_deviation",
    "outgoing_magnitude",
    "incoming_magnitude",
)
# Ages are float32, which counts exactly up to here.
_LARGEST_AGE = 2**24


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ContinualBackprop(OptimizerWrapper):
    """Optimizer wrapper that gives the least useful units a new start.

    Continual backpropagation is an ordinary optimizer step followed by
    *generate and test*: each hidden unit of the model's plastic layers has a
    utility and an age, and now and then the least useful of the mature units
    is replaced. Its incoming weights are drawn anew from the layer's
    initializers, its outgoing weights become zero, so that at first the new
    unit disturbs nothing, and its age and utility start from zero.

    After the inner optimizer's step, for each plastic layer that other
    plastic layers read:

    1. every unit ages by one, and its mean activation and utility, which are
        running means with `decay_rate`, take up this batch;
    2. a count grows by `replacement_rate` x (number of units older than
        `maturity_threshold`), without rounding;
    3. each whole unit of the count replaces the mature unit of lowest utility.

    All layers are tested before any unit is replaced; units are replaced layer
    by layer in the order of the model. Where a replaced unit reads another
    one, the weight between them is the newly drawn one.

    One update is one step that the inner optimizer makes: with gradient
    accumulation, units age once per accumulated step, on the mean of what
    was observed; a step that loss scaling skips counts for nothing.

    Layers with `trainable=False` are never changed: neither their units nor
    those that they read are replaced.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built. Learning rate, clipping, weight decay, gradient
            accumulation and moving averages are set on it.
        replacement_rate: Float in [0, 1], the fraction of mature units that
            is replaced in each update. Defaults to `1e-4`.
        maturity_threshold: Integer, the number of updates for which a new
            unit cannot be replaced. Defaults to `100`.
        decay_rate: Float in [0, 1), of the running means. Defaults to `0.99`.
        utility: How useful a unit is: `"contribution"` (default),
            `"mean_corrected_contribution"`, `"adaptation"`, `"overall"`
            (mean-corrected contribution over incoming magnitude),
            `"weight_magnitude"`, `"random"`, or a function like those of
            `keras_plasticity.functional`. A unit that several layers read has
            the mean of its utilities, weighted by their numbers of units.
        transfer_mean: Boolean, whether the mean contribution of a replaced
            unit moves into the biases of the layers that read it. Then the
            network's output changes by the unit's deviation from its mean
            only. Defaults to `False`, as the published results.
        reset_optimizer_state: Boolean, whether the entries of a replaced unit
            in the slots of the inner optimizer (momentum, velocity, ...)
            return to their initial value. Defaults to `True`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.Adam(1e-3), replacement_rate=1e-4
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    optimizer.num_replaced()  # {"dense": 17, "dense_1": 12}
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 100,
        decay_rate: float = 0.99,
        utility: str | Callable[..., Tensor] = "contribution",
        transfer_mean: bool = False,
        reset_optimizer_state: bool = True,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        _check_not_nested(inner_optimizer)
        _check_fraction("replacement_rate", replacement_rate, "[0, 1]")
        _check_fraction("decay_rate", decay_rate, "[0, 1)")
        if (
            not is_number(maturity_threshold)
            or not 0 <= maturity_threshold < _LARGEST_AGE
        ):
            raise ValueError(
                "`maturity_threshold` must be a number of updates in "
                f"[0, {_LARGEST_AGE}). "
                f"Received: maturity_threshold={maturity_threshold}"
            )
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.utility = utility
        self.transfer_mean = transfer_mean
        self.reset_optimizer_state = reset_optimizer_state
        self.seed = seed
        self._utility_function, self._utility_arguments = _get_utility(utility)
        self._seed_generator = keras.random.SeedGenerator(seed)
        self._hidden_layers = _HiddenLayers()

    def build(self, variables: list[keras.Variable]):
        """Creates the inner optimizer's variables and finds who reads whom.

        Args:
            variables: List of the trainable variables of one model.

        Raises:
            ValueError: If the model has no plastic layer, or one whose units
                cannot be followed to plastic consumers.
        """
        if self.built:
            return
        if innermost(self.inner_optimizer).built:
            raise ValueError(
                "`inner_optimizer` is already built, for this or for another "
                "model. A `ContinualBackprop` has to see its slots being made: "
                "give it a new optimizer. Received: "
                f"inner_optimizer={self.inner_optimizer}"
            )
        slot_table = slots.SlotTable()
        with slot_table.listen():
            super().build(variables)
        self._hidden_layers.build(self, variables, slot_table)

    def build_inner(self, variables):
        super().build_inner([v for v in variables if not _is_statistic(v)])

    def make_step(self, grads, variables):
        observations = {}
        inner_grads = []
        inner_variables = []
        for gradient, variable in zip(grads, variables):
            if _is_statistic(variable):
                observations[id(variable)] = gradient
            else:
                inner_grads.append(gradient)
                inner_variables.append(variable)
        self._hidden_layers.check_known(observations)
        inner_grads = backend.after_backward(inner_grads)

        if self.always_updates:
            self.apply_inner(inner_grads, inner_variables)
            with backend.no_gradient():
                self._hidden_layers.update(self, observations)
            return
        scaler = loss_scaler(self.inner_optimizer)
        finite = None if scaler is None else scaler.check_finite(inner_grads)
        is_update = self.apply_inner_and_tell(inner_grads, inner_variables)
        with backend.no_gradient():
            observations = self._hidden_layers.accumulate(observations, finite)
            backend.repeat(
                ops.cast(is_update, "int32"),
                lambda: self._hidden_layers.update(self, observations),
                self._hidden_layers.touched_variables()
                + [self._seed_generator.state],
            )
            self._hidden_layers.reset_accumulators(is_update)

    def num_replaced(self) -> dict[str, int]:
        """Number of units replaced so far.

        Returns:
            Dict from layer name to integer, for each layer with replaceable
            units, in the order of the model. Where layers in different parts
            of a model have the same name, from layer path.
        """
        names = [hidden.layer.name for hidden in self._hidden_layers]
        return {
            hidden.layer.name
            if names.count(hidden.layer.name) == 1
            else hidden.layer.path: int(
                ops.convert_to_numpy(hidden.num_replaced_variable)
            )
            for hidden in self._hidden_layers
        }

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(
            [v for v in var_list if not _is_statistic(v)]
        )

    def get_config(self) -> dict[str, Any]:
        utility = self.utility
        if not isinstance(utility, str):
            utility = keras.saving.serialize_keras_object(utility)
        return {
            **super().get_config(),
            "replacement_rate": self.replacement_rate,
            "maturity_threshold": self.maturity_threshold,
            "decay_rate": self.decay_rate,
            "utility": utility,
            "transfer_mean": self.transfer_mean,
            "reset_optimizer_state": self.reset_optimizer_state,
            "seed": self.seed,
        }


class _Reader:
    """A plastic layer that reads the units of others, and what it observes."""

    def __init__(self, consumer):
        self.statistics = consumer.statistics
        self.producers = []  # Pairs of a `_HiddenLayer` and a `FeatureMap`.
        self.accumulators = {}

    def add_producer(self, hidden, feature_map):
        self.producers.append((hidden, feature_map))
        # The layer centres its observations by them, in its forward pass.
        self.statistics.feature_maps = tuple(each for _, each in self.producers)

    @property
    def observed(self):
        return [
            self.statistics.input_mean,
            self.statistics.input_magnitude,
            self.statistics.input_deviation,
        ]

    def add_accumulators(self, optimizer):
        """Variables that hold the mean observation of an accumulated step."""
        for variable in self.observed:
            self.accumulators[id(variable)] = (
                optimizer.add_variable_from_reference(
                    variable, name="accumulator"
                )
            )

    def touched_variables(self):
        return self.observed + [
            self.statistics.input_offset,
            self.statistics.input_gain,
        ]

    def is_observed(self, observations):
        return all(observations.get(id(v)) is not None for v in self.observed)

    # Every step goes through `take_in`, `_HiddenLayer.test` and `prepare`. They
    # compute on tensors, by operators, where they can: eager backends pay many
    # times an operation's price for a variable, or for the same operation from
    # `keras.ops`.

    def take_in(self, observations, needed):
        """Stores what was observed in this step."""
        statistics = self.statistics
        mean = observations[id(statistics.input_mean)]
        statistics.input_mean.assign(mean)
        center = statistics.center(
            mean, statistics.input_offset.value, statistics.input_gain.value
        )
        # Until `prepare`, the running mean itself.
        statistics.input_offset.assign(center)
        if "activation_magnitude" in needed:
            statistics.input_magnitude.assign(
                observations[id(statistics.input_magnitude)]
            )
        if "activation_deviation" in needed:
            statistics.input_deviation.assign(
                observations[id(statistics.input_deviation)]
            )

    def prepare(self):
        """Leaves the layer what it needs to centre the next batch."""
        statistics = self.statistics
        gain = None
        for hidden, feature_map in self.producers:
            if feature_map.is_identity:
                gain = hidden.next_gain()
            else:
                other = statistics.input_gain.value if gain is None else gain
                gain = feature_map.to_features(hidden.next_gain(), other)
        statistics.input_gain.assign(gain)
        statistics.input_offset.assign(
            (1.0 - gain) * statistics.input_offset.value
        )


class _HiddenLayer:
    """One plastic layer whose units can be replaced, and who reads it."""

    def __init__(self, optimizer, connections, readers, slot_table):
        self.layer = connections.layer
        self.statistics = self.layer.statistics
        self.decay_rate = optimizer.decay_rate
        self.unit_view = self.layer.unit_view()
        self.bias_view = self.layer.bias_view()
        self.parameters = connections.parameters
        # For each consumer: its `_Reader`, the `FeatureMap`, the outgoing
        # weights, and the consumer itself.
        self.outgoing = []
        for consumer, feature_map in connections.consumers.items():
            reader = readers[id(consumer)]
            reader.add_producer(self, feature_map)
            self.outgoing.append(
                (reader, feature_map, consumer.feature_view(), consumer)
            )
        # How many weights leave a unit for each consumer.
        self.widths = [
            feature_map.features
            / feature_map.units
            * math.prod(view.part_shape)
            for _, feature_map, view, _ in self.outgoing
        ]
        self.digits = functional.count_digits(
            optimizer.replacement_rate, self.statistics.units
        )
        path = self.layer.path.replace("/", "_")
        self.count = optimizer.add_variable(
            shape=(max(1, len(self.digits[1])),),
            dtype="int32",
            name=f"{path}_count",
        )
        self.num_replaced_variable = optimizer.add_variable(
            shape=(), dtype="int32", name=f"{path}_num_replaced"
        )
        seed_generator = optimizer._seed_generator
        self.draw_kernel = part_initializer(
            self.layer.unit_initializer(), self.unit_view, seed_generator
        )
        if self.bias_view is not None:
            self.draw_bias = part_initializer(
                self.layer.bias_initializer, self.bias_view, seed_generator
            )
        self.slots = slot_table if optimizer.reset_optimizer_state else None

    def touched_variables(self):
        return [
            self.count,
            self.num_replaced_variable,
            *self.replaced_variables(),
        ]

    def replaced_variables(self):
        """The variables that `replace_one` reads or assigns, each once."""
        weights = [self.unit_view.variable]
        if self.bias_view is not None:
            weights.append(self.bias_view.variable)
        weights += [view.variable for _, _, view, _ in self.outgoing]
        weights += [parameter.variable for parameter in self.parameters]
        variables = [
            self.statistics.utility,
            self.statistics.age,
            self.statistics.mean_activation,
        ]
        variables += weights
        for reader, _, _, consumer in self.outgoing:
            variables.append(reader.statistics.input_offset)
            if consumer.bias is not None:
                variables.append(consumer.bias)
            if hasattr(consumer, "pointwise_kernel"):
                variables.append(consumer.pointwise_kernel)
        if self.slots is not None:
            for weight in weights:
                variables += [s.variable for s in self.slots.of(weight)]
        return _each_once(variables)

    def test(self, optimizer):
        """Ages all units and takes this batch into their statistics."""
        statistics = self.statistics
        age = statistics.age.value + 1.0
        gain = functional.gain(age, self.decay_rate)
        needed = optimizer._utility_arguments
        if "incoming_magnitude" in needed:
            incoming_magnitude = self.unit_view.mean_magnitude()
        utilities = []
        means = []
        for reader, feature_map, view, _ in self.outgoing:
            reads = reader.statistics
            means.append(feature_map.to_units(reads.input_offset.value))
            arguments = {}
            if "incoming_magnitude" in needed:
                arguments["incoming_magnitude"] = feature_map.to_features(
                    incoming_magnitude, 1.0
                )
            if "outgoing_magnitude" in needed:
                arguments["outgoing_magnitude"] = view.mean_magnitude()
            if "activation_magnitude" in needed:
                arguments["activation_magnitude"] = reads.input_magnitude.value
            if "activation_deviation" in needed:
                arguments["activation_deviation"] = reads.input_deviation.value
            if arguments:
                utilities.append(
                    feature_map.to_units(
                        optimizer._utility_function(**arguments)
                    )
                )
        if optimizer._utility_function is None:
            utility = keras.random.uniform(
                (statistics.units,), seed=optimizer._seed_generator
            )
        else:
            utility = functional.running_mean(
                statistics.utility.value,
                _weighted_mean(utilities, self.widths),
                gain,
            )
        statistics.age.assign(age)
        statistics.mean_activation.assign(
            _weighted_mean(means, [1] * len(means))
        )
        statistics.utility.assign(utility)

    def generate(self, optimizer):
        """Replaces as many units as are due."""
        if optimizer.replacement_rate == 0:
            return
        age = self.statistics.age.value
        mature = ops.cast(age > optimizer.maturity_threshold, "int32")
        due, count = functional.advance_count(
            self.count.value, ops.sum(mature), self.digits
        )
        self.count.assign(count)
        self.num_replaced_variable.assign_add(due)
        backend.repeat(
            due,
            lambda: self.replace_one(optimizer),
            self.replaced_variables() + [optimizer._seed_generator.state],
        )

    def replace_one(self, optimizer):
        """Gives the least useful mature unit a new start."""
        statistics = self.statistics
        unit = functional.least_useful_unit(
            ops.convert_to_tensor(statistics.utility),
            ops.convert_to_tensor(statistics.age),
            optimizer.maturity_threshold,
        )
        if optimizer.transfer_mean:
            for reader, feature_map, _, consumer in self.outgoing:
                for feature in feature_map.features_of(unit):
                    mean = ops.take(reader.statistics.input_offset, feature)
                    consumer.add_constant(feature, mean)
        self._assign(self.unit_view, unit, self.draw_kernel)
        if self.bias_view is not None:
            self._assign(self.bias_view, unit, self.draw_bias)
        for parameter in self.parameters:
            view = WeightView(
                parameter.variable,
                tuple(parameter.variable.shape),
                (parameter.axis,),
            )
            for each, index in parameter.feature_map.places(view, unit):
                self._assign(each, index, parameter.initializer)
        for reader, feature_map, view, _ in self.outgoing:
            for each, index in feature_map.places(view, unit):
                self._assign(each, index, ops.zeros)
            _set_zero(reader.statistics.input_offset, unit, feature_map)
        for variable in (
            statistics.utility,
            statistics.age,
            statistics.mean_activation,
        ):
            _set_zero(variable, unit)

    def _assign(self, view, index, draw):
        value = draw(view.part_shape, view.variable.dtype)
        view.assign(index, value)
        if self.slots is not None:
            for slot in self.slots.of(view.variable):
                slot.reset(view, index, value)

    def next_gain(self):
        return functional.gain(self.statistics.age.value + 1.0, self.decay_rate)


def _set_zero(variable, unit, feature_map=None):
    view = WeightView(variable, tuple(variable.shape), (0,))
    places = [(view, unit)]
    if feature_map is not None:
        places = feature_map.places(view, unit)
    for each, index in places:
        each.assign(index, ops.zeros(each.part_shape))


class _HiddenLayers:
    """All hidden layers of the model that an optimizer was built on.

    An object of its own, and not a list on the optimizer: a Keras optimizer
    takes every variable it finds in its attributes for one of its own, and a
    JAX step would be handed the model's weights twice.
    """

    def __init__(self):
        self._layers = []
        self._readers = {}
        self._statistics = set()
        self._steps = None

    def __iter__(self):
        return iter(self._layers)

    @property
    def accumulates(self):
        """Whether the inner optimizer accumulates gradients."""
        return self._steps is not None

    def build(self, optimizer, variables, slot_table):
        self._statistics = {id(v) for v in variables if _is_statistic(v)}
        layers = _each_once(
            v.plastic_layer() for v in variables if _is_statistic(v)
        )
        if not layers:
            raise ValueError(
                "There is no plastic layer among the model's trainable "
                "variables, so `ContinualBackprop` would have nothing to do. "
                "Build the model from `keras_plasticity.layers`, or use the "
                "inner optimizer alone. Received the variables: "
                f"{[v.path for v in variables]}"
            )
        inner = innermost(optimizer.inner_optimizer)
        self._steps = inner.gradient_accumulation_steps
        model = graph.find_model(layers, variables, optimizer)
        if model is not None:
            # A part of it may have become plastic after it was built.
            keras_compat.track_new_variables(model)
        known = {id(v) for v in variables}
        found = graph.find_connections(layers, model, variables=variables)
        graph.check(found)
        for connections in found:
            self._add(optimizer, connections, known, slot_table)
        if self._steps is not None:
            for reader in self._readers.values():
                reader.add_accumulators(optimizer)

    def _add(self, optimizer, connections, known, slot_table):
        layer = connections.layer
        if connections.skip_reason is not None:
            return
        consumers = list(connections.consumers)
        if not all(each.trainable for each in [layer, *consumers]):
            return  # See the class docstring.
        strangers = [
            consumer
            for consumer in consumers
            if id(consumer.feature_view().variable) not in known
        ]
        for stranger in strangers:
            # A model may have a part that this optimizer does not train.
            del connections.consumers[stranger]
        if not connections.consumers:
            raise ValueError(
                f"The units of layer '{layer.name}' are read by layer "
                f"'{strangers[0].name}', whose weights are not among the "
                "variables of this optimizer. Build it on "
                "`model.trainable_variables`, all of them."
            )
        connections.parameters = [
            p for p in connections.parameters if id(p.variable) in known
        ]
        for consumer in connections.consumers:
            if optimizer.transfer_mean:
                consumer.check_takes_constants(layer)
            self._readers.setdefault(id(consumer), _Reader(consumer))
        self._layers.append(
            _HiddenLayer(optimizer, connections, self._readers, slot_table)
        )

    def check_known(self, observations):
        for key in observations:
            if key not in self._statistics:
                raise ValueError(
                    "This `ContinualBackprop` was built on another model. Use "
                    "a new optimizer for each model."
                )

    def touched_variables(self):
        """All variables that `update` reads or assigns, each once."""
        variables = []
        for each in [*self._layers, *self._readers.values()]:
            variables += each.touched_variables()
        return _each_once(variables)

    def update(self, optimizer, observations):
        # A layer that took no part in this step (a branch of the model that
        # the loss does not reach) has nothing observed, and is left as it is.
        readers = [
            reader
            for reader in self._readers.values()
            if reader.is_observed(observations)
        ]
        layers = [
            layer
            for layer in self._layers
            if all(reader in readers for reader, _, _, _ in layer.outgoing)
        ]
        for reader in readers:
            reader.take_in(observations, optimizer._utility_arguments)
        for layer in layers:
            layer.test(optimizer)
        for layer in layers:
            layer.generate(optimizer)
        for reader in readers:
            reader.prepare()

    def accumulate(self, observations, finite):
        """Returns the mean observations of the accumulated step so far."""
        if not self.accumulates:
            return observations
        result = dict(observations)
        for reader in self._readers.values():
            for key, accumulator in reader.accumulators.items():
                if observations.get(key) is None:
                    continue
                observed = observations[key] / self._steps
                if finite is not None:
                    observed = ops.where(finite, observed, 0.0)
                accumulator.assign_add(observed)
                result[key] = ops.copy(ops.convert_to_tensor(accumulator))
        return result

    def reset_accumulators(self, is_update):
        for reader in self._readers.values():
            for accumulator in reader.accumulators.values():
                accumulator.assign(
                    ops.where(
                        is_update, 0.0, ops.convert_to_tensor(accumulator)
                    )
                )


def _each_once(objects):
    return list({id(each): each for each in objects}.values())


def _weighted_mean(values, weights):
    if len(values) == 1:
        return values[0]
    total = sum(weights)
    return sum(v * (w / total) for v, w in zip(values, weights))


def _is_statistic(variable):
    return hasattr(variable, "plastic_layer")


def _get_utility(utility):
    """The function of a utility, and the names of its arguments.

    The function is `None` for `"random"`, which is no mean of anything.
    """
    if utility == "random":
        return None, ()
    function = _UTILITIES.get(utility) if isinstance(utility, str) else utility
    if not callable(function):
        known = ", ".join(repr(name) for name in [*_UTILITIES, "random"])
        raise ValueError(
            f"`utility` must be one of {known}, or a function like those of "
            f"`keras_plasticity.functional`. Received: utility={utility!r}"
        )
    arguments = tuple(inspect.signature(function).parameters)
    if not arguments or not set(arguments) <= set(_UTILITY_ARGUMENTS):
        raise ValueError(
            "A `utility` function must take one or more of the arguments "
            f"{', '.join(_UTILITY_ARGUMENTS)}, by these names. "
            f"Received: utility={utility} with the arguments {arguments}"
        )
    return function, arguments


def _check_fraction(name, value, interval):
    includes_one = interval.endswith("]")
    if (
        not is_number(value)
        or not 0 <= value <= 1
        or (value == 1 and not includes_one)
    ):
        raise ValueError(
            f"`{name}` must be a number in {interval}. Received: {name}={value}"
        )


def _check_not_nested(inner_optimizer):
    for optimizer in wrapped(inner_optimizer):
        if isinstance(optimizer, ContinualBackprop):
            raise ValueError(
                "`inner_optimizer` must not itself be or hold a "
                "`ContinualBackprop`: units would be replaced twice. "
                f"Received: inner_optimizer={optimizer!r}"
            )
