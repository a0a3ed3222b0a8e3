import copy
import inspect
import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity import graph
from keras_plasticity.optimizers import slots
from keras_plasticity.optimizers.new_weights import part_initializer
from keras_plasticity.types import Tensor

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
class ContinualBackprop(keras.optimizers.Optimizer):
    """Optimizer wrapper that gives the least useful units a new start.

    Continual backpropagation is an ordinary optimizer step followed by
    *generate and test*: each hidden unit of the model's plastic layers has a
    utility and an age, and now and then the least useful of the mature units
    is replaced. Its incoming weights are drawn anew from the layer's
    initializers, its outgoing weights become zero, so that nothing disturbs
    what the network computes, and its age and utility start from zero.

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
        if kwargs:
            names = ", ".join(f"`{key}`" for key in kwargs)
            raise ValueError(
                f"`ContinualBackprop` does not take {names}. Set arguments of "
                "an optimizer on the `inner_optimizer` instead. Received: "
                + ", ".join(f"{key}={value}" for key, value in kwargs.items())
            )
        _check_inner_optimizer(inner_optimizer)
        _check_fraction("replacement_rate", replacement_rate, "[0, 1]")
        _check_fraction("decay_rate", decay_rate, "[0, 1)")
        if (
            not _is_number(maturity_threshold)
            or not 0 <= maturity_threshold < _LARGEST_AGE
        ):
            raise ValueError(
                "`maturity_threshold` must be a number of updates in "
                f"[0, {_LARGEST_AGE}). "
                f"Received: maturity_threshold={maturity_threshold}"
            )
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
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
        inner = slots.innermost(self.inner_optimizer)
        if inner.built:
            raise ValueError(
                "`inner_optimizer` is already built, for this or for another "
                "model. A `ContinualBackprop` has to see its slots being made: "
                "give it a new optimizer. Received: "
                f"inner_optimizer={self.inner_optimizer}"
            )
        ordinary = [v for v in variables if not _is_statistic(v)]
        slot_table = slots.SlotTable()
        with slot_table.listen(inner):
            self.inner_optimizer.build(ordinary)
        super().build(variables)
        self._hidden_layers.build(self, variables, slot_table)

    @property
    def variables(self) -> list[keras.Variable]:
        return (
            self._variables
            + [self._seed_generator.state]
            + self.inner_optimizer.variables
        )

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ):
        """Makes one step of the inner optimizer, then generates and tests.

        Args:
            grads: List of gradients, one for each variable.
            trainable_variables: List of the model's trainable variables.
                Defaults to those that the optimizer was built with.

        Raises:
            ValueError: If a variable belongs to another model.
        """
        if len(grads) == 0:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "When passing `grads` without `trainable_variables`, the "
                    "optimizer must already be built. Call "
                    "`optimizer.build(model.trainable_variables)` first."
                )
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        if len(grads) != len(trainable_variables):
            raise ValueError(
                "There must be one gradient for each variable. Received: "
                f"{len(grads)} gradients, {len(trainable_variables)} variables."
            )
        observations = {}
        inner_grads = []
        inner_variables = []
        for gradient, variable in zip(grads, trainable_variables):
            if _is_statistic(variable):
                observations[id(variable)] = gradient
            else:
                inner_grads.append(gradient)
                inner_variables.append(variable)
        self._hidden_layers.check_known(observations)
        inner_grads = backend.after_backward(inner_grads)

        inner = self.inner_optimizer
        if not self._hidden_layers.accumulates and not _may_skip(inner):
            inner.apply(inner_grads, inner_variables)
            with backend.no_gradient():
                self._hidden_layers.update(self, observations)
            return
        # The inner optimizer decides whether this step is an update. Its
        # public count of updates, and nothing else, tells.
        steps_before = ops.copy(ops.convert_to_tensor(inner.iterations))
        finite = _all_finite(inner, inner_grads)
        _apply_conditionally(inner, inner_grads, inner_variables)
        is_update = ops.not_equal(inner.iterations, steps_before)
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
            units, in the order of the model.
        """
        return {
            layer.producer.name: int(
                ops.convert_to_numpy(layer.num_replaced_variable)
            )
            for layer in self._hidden_layers
        }

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(
            [v for v in var_list if not _is_statistic(v)]
        )

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self):
        # The base class sets this before there is an inner optimizer.
        inner = getattr(self, "inner_optimizer", None)
        return getattr(inner, "loss_scale_factor", None)

    @loss_scale_factor.setter
    def loss_scale_factor(self, value):
        inner = getattr(self, "inner_optimizer", None)
        if inner is not None:
            inner.loss_scale_factor = value

    def get_config(self) -> dict[str, Any]:
        utility = self.utility
        if not isinstance(utility, str):
            utility = keras.saving.serialize_keras_object(utility)
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "replacement_rate": self.replacement_rate,
            "maturity_threshold": self.maturity_threshold,
            "decay_rate": self.decay_rate,
            "utility": utility,
            "transfer_mean": self.transfer_mean,
            "reset_optimizer_state": self.reset_optimizer_state,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Deeply: Keras' LossScaleOptimizer empties the config it is given.
        config = copy.deepcopy(config)
        for key in ("inner_optimizer", "utility"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        return cls(**config)


class _HiddenLayer:
    """One plastic layer whose units can be replaced, and who reads it."""

    def __init__(self, optimizer, producer, consumers, slot_table):
        self.producer = producer
        self.consumers = consumers
        self.digits = functional.count_digits(
            optimizer.replacement_rate, producer.statistics.units
        )
        path = producer.path.replace("/", "_")
        self.count = optimizer.add_variable(
            shape=(max(1, len(self.digits[1])),),
            dtype="int32",
            name=f"{path}_count",
        )
        self.num_replaced_variable = optimizer.add_variable(
            shape=(), dtype="int32", name=f"{path}_num_replaced"
        )
        self.accumulators = {}
        kernel = producer.kernel
        seed_generator = optimizer._seed_generator
        self.draw_kernel = part_initializer(
            producer.kernel_initializer, kernel.shape, seed_generator
        )
        self.draw_bias = part_initializer(
            producer.bias_initializer, kernel.shape[-1:], seed_generator
        )
        self.slots = slot_table if optimizer.reset_optimizer_state else None

    def add_accumulators(self, optimizer):
        """Variables that hold the mean observation of an accumulated step."""
        for consumer in self.consumers:
            for variable in _observed(consumer.statistics):
                self.accumulators[id(variable)] = (
                    optimizer.add_variable_from_reference(
                        variable, name="accumulator"
                    )
                )

    def touched_variables(self):
        statistics = self.producer.statistics
        variables = [
            self.count,
            self.num_replaced_variable,
            statistics.utility,
            statistics.age,
            statistics.mean_activation,
        ]
        for consumer in self.consumers:
            variables += _observed(consumer.statistics)
            variables += [
                consumer.statistics.input_offset,
                consumer.statistics.input_gain,
            ]
        return variables + self.replaced_variables()

    def replaced_variables(self):
        """The variables that `replace_one` reads or assigns."""
        statistics = self.producer.statistics
        weights = [self.producer.kernel]
        if self.producer.bias is not None:
            weights.append(self.producer.bias)
        weights += [consumer.kernel for consumer in self.consumers]
        variables = [
            statistics.utility,
            statistics.age,
            statistics.mean_activation,
        ]
        variables += weights
        for consumer in self.consumers:
            if consumer.bias is not None:
                variables.append(consumer.bias)
            variables.append(consumer.statistics.input_offset)
        if self.slots is not None:
            for weight in weights:
                variables += [s.variable for s in self.slots.of(weight)]
        return variables

    # Every step goes through the next three methods. They compute on tensors,
    # by operators, where they can: eager backends pay many times an operation's
    # price for a variable, or for the same operation from `keras.ops`.

    def test(self, optimizer, observations):
        """Ages all units and takes this batch into their statistics."""
        statistics = self.producer.statistics
        age = statistics.age.value + 1.0
        gain = functional.gain(age, optimizer.decay_rate)
        needed = optimizer._utility_arguments
        arguments = {}
        if "incoming_magnitude" in needed:
            arguments["incoming_magnitude"] = functional.mean_magnitude(
                self.producer.kernel.value, axis=-1
            )
        utilities = []
        means = []
        for consumer in self.consumers:
            reads = consumer.statistics
            mean = observations[id(reads.input_mean)]
            reads.input_mean.assign(mean)
            center = reads.input_offset.value + reads.input_gain.value * mean
            # Until `prepare_next_step`, the running mean itself.
            reads.input_offset.assign(center)
            means.append(center)
            if "outgoing_magnitude" in needed:
                arguments["outgoing_magnitude"] = functional.mean_magnitude(
                    consumer.kernel.value, axis=-2
                )
            if "activation_magnitude" in needed:
                magnitude = observations[id(reads.input_magnitude)]
                reads.input_magnitude.assign(magnitude)
                arguments["activation_magnitude"] = magnitude
            if "activation_deviation" in needed:
                deviation = observations[id(reads.input_deviation)]
                reads.input_deviation.assign(deviation)
                arguments["activation_deviation"] = deviation
            if optimizer._utility_function is not None:
                utilities.append(optimizer._utility_function(**arguments))
        if optimizer._utility_function is None:
            utility = keras.random.uniform(
                (statistics.units,), seed=optimizer._seed_generator
            )
        else:
            widths = [c.kernel.shape[-1] for c in self.consumers]
            utility = functional.running_mean(
                statistics.utility.value,
                _weighted_mean(utilities, widths),
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
        age = self.producer.statistics.age.value
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
        statistics = self.producer.statistics
        unit = functional.least_useful_unit(
            ops.convert_to_tensor(statistics.utility),
            ops.convert_to_tensor(statistics.age),
            optimizer.maturity_threshold,
        )
        for consumer in self.consumers:
            if optimizer.transfer_mean:
                mean = ops.take(consumer.statistics.input_offset, unit)
                outgoing = ops.take(consumer.kernel, unit, axis=0)
                consumer.bias.assign_add(
                    ops.cast(mean, outgoing.dtype) * outgoing
                )
        kernel = self.producer.kernel
        self._assign(kernel, -1, unit, self.draw_kernel(kernel.dtype))
        bias = self.producer.bias
        if bias is not None:
            self._assign(bias, -1, unit, self.draw_bias(bias.dtype))
        for consumer in self.consumers:
            kernel = consumer.kernel
            row = (kernel.shape[-1],)
            self._assign(kernel, -2, unit, ops.zeros(row, kernel.dtype))
            backend.assign_index(consumer.statistics.input_offset, 0, unit, 0.0)
        backend.assign_index(statistics.utility, 0, unit, 0.0)
        backend.assign_index(statistics.age, 0, unit, 0.0)
        backend.assign_index(statistics.mean_activation, 0, unit, 0.0)

    def _assign(self, variable, axis, unit, value):
        axis = axis % len(variable.shape)
        backend.assign_index(variable, axis, unit, value)
        if self.slots is not None:
            for slot in self.slots.of(variable):
                slot.reset(axis, unit, value)

    def prepare_next_step(self, optimizer):
        """Leaves the consumers what they need to centre the next batch."""
        age = self.producer.statistics.age.value + 1.0
        gain = functional.gain(age, optimizer.decay_rate)
        for consumer in self.consumers:
            reads = consumer.statistics
            reads.input_gain.assign(gain)
            reads.input_offset.assign((1.0 - gain) * reads.input_offset.value)


class _HiddenLayers:
    """All hidden layers of the model that an optimizer was built on.

    An object of its own, and not a list on the optimizer: a Keras optimizer
    takes every variable it finds in its attributes for one of its own, and a
    JAX step would be handed the model's weights twice.
    """

    def __init__(self):
        self._layers = []
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
        known = {id(v) for v in variables}
        plastic_layers = []
        for variable in variables:
            if _is_statistic(variable):
                layer = variable.plastic_layer()
                if layer not in plastic_layers:
                    plastic_layers.append(layer)
        if not plastic_layers:
            raise ValueError(
                "There is no plastic layer among the model's trainable "
                "variables, so `ContinualBackprop` would have nothing to do. "
                "Build the model from `keras_plasticity.layers`, or use the "
                "inner optimizer alone. Received the variables: "
                f"{[v.path for v in variables]}"
            )
        inner = slots.innermost(optimizer.inner_optimizer)
        self._steps = inner.gradient_accumulation_steps
        for layer in plastic_layers:
            consumers = graph.find_consumers(layer)
            if not consumers:
                continue
            if not all(each.trainable for each in [layer, *consumers]):
                continue  # See the class docstring.
            strangers = [c for c in consumers if id(c.kernel) not in known]
            consumers = [c for c in consumers if c not in strangers]
            if not consumers:
                raise ValueError(
                    f"The units of layer '{layer.name}' are read by layer "
                    f"'{strangers[0].name}', whose weights are not among the "
                    "variables of this optimizer. Build it on "
                    "`model.trainable_variables`, all of them."
                )
            for consumer in consumers:
                if optimizer.transfer_mean and consumer.bias is None:
                    raise ValueError(
                        "`transfer_mean=True` moves the mean contribution of "
                        f"the units of layer '{layer.name}' into the bias of "
                        f"layer '{consumer.name}', which has none. Give it "
                        "`use_bias=True`, or set `transfer_mean=False`."
                    )
            hidden = _HiddenLayer(optimizer, layer, consumers, slot_table)
            if self._steps is not None:
                hidden.add_accumulators(optimizer)
            self._layers.append(hidden)

    def check_known(self, observations):
        for key in observations:
            if key not in self._statistics:
                raise ValueError(
                    "This `ContinualBackprop` was built on another model. Use "
                    "a new optimizer for each model."
                )

    def touched_variables(self):
        """All variables that `update` reads or assigns, each once."""
        variables = {}
        for layer in self._layers:
            for variable in layer.touched_variables():
                variables[id(variable)] = variable
        return list(variables.values())

    def update(self, optimizer, observations):
        # A layer that took no part in this step (a branch of the model that
        # the loss does not reach) has nothing observed, and is left as it is.
        layers = [
            layer
            for layer in self._layers
            if all(
                observations.get(id(v)) is not None
                for c in layer.consumers
                for v in _observed(c.statistics)
            )
        ]
        for layer in layers:
            layer.test(optimizer, observations)
        for layer in layers:
            layer.generate(optimizer)
        for layer in layers:
            layer.prepare_next_step(optimizer)

    def accumulate(self, observations, finite):
        """Returns the mean observations of the accumulated step so far."""
        if not self.accumulates:
            return observations
        result = dict(observations)
        for layer in self._layers:
            for key, accumulator in layer.accumulators.items():
                if observations.get(key) is None:
                    continue
                observed = observations[key] / self._steps
                if finite is not None:
                    observed = ops.where(finite, observed, 0.0)
                accumulator.assign_add(observed)
                result[key] = ops.copy(ops.convert_to_tensor(accumulator))
        return result

    def reset_accumulators(self, is_update):
        for layer in self._layers:
            for accumulator in layer.accumulators.values():
                accumulator.assign(
                    ops.where(
                        is_update, 0.0, ops.convert_to_tensor(accumulator)
                    )
                )


def _weighted_mean(values, weights):
    if len(values) == 1:
        return values[0]
    total = sum(weights)
    return sum(v * (w / total) for v, w in zip(values, weights))


def _is_statistic(variable):
    return hasattr(variable, "plastic_layer")


def _observed(statistics):
    """The statistics that the forward pass observes."""
    return [
        statistics.input_mean,
        statistics.input_magnitude,
        statistics.input_deviation,
    ]


def _may_skip(optimizer):
    """Whether a step of the optimizer may leave the weights as they are."""
    while optimizer is not None:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return True
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return False


def _apply_conditionally(optimizer, grads, variables):
    """Applies an optimizer that may leave the weights as they are."""
    if keras.backend.backend() != "jax" or not _may_skip(optimizer):
        optimizer.apply(grads, variables)
        return
    # Loss scaling assigns variables within a condition, which JAX can only
    # trace in the stateless form.
    variables, optimizer_variables = list(variables), optimizer.variables
    new_values, new_optimizer_values = optimizer.stateless_apply(
        [ops.convert_to_tensor(v) for v in optimizer_variables],
        grads,
        [ops.convert_to_tensor(v) for v in variables],
    )
    for variable, value in zip(variables, new_values):
        variable.assign(value)
    for variable, value in zip(optimizer_variables, new_optimizer_values):
        variable.assign(value)


def _all_finite(optimizer, grads):
    """Whether loss scaling will let this step pass; `None` without any."""
    while optimizer is not None:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return optimizer.check_finite(grads)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return None


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


def _is_number(value):
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _check_fraction(name, value, interval):
    includes_one = interval.endswith("]")
    if (
        not _is_number(value)
        or not 0 <= value <= 1
        or (value == 1 and not includes_one)
    ):
        raise ValueError(
            f"`{name}` must be a number in {interval}. Received: {name}={value}"
        )


def _check_inner_optimizer(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a `keras.optimizers.Optimizer`. "
            f"Received: inner_optimizer={optimizer!r}"
        )
    while optimizer is not None:
        if isinstance(optimizer, ContinualBackprop):
            raise ValueError(
                "`inner_optimizer` must not itself be or hold a "
                "`ContinualBackprop`: units would be replaced twice. "
                f"Received: inner_optimizer={optimizer!r}"
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
