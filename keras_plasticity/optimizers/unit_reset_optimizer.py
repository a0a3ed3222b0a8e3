import contextlib
import warnings
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.optimizers import slots
from keras_plasticity.optimizers.hidden_network import HiddenNetwork
from keras_plasticity.optimizers.hidden_network import is_unit_statistic
from keras_plasticity.optimizers.hidden_units import GRADIENT_OBSERVATIONS
from keras_plasticity.optimizers.hidden_units import HiddenUnits
from keras_plasticity.optimizers.hidden_units import each_once
from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.inner_optimizers import loss_scaler
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.settings import all_hyperparameters
from keras_plasticity.optimizers.update_gradients import UpdateGradients
from keras_plasticity.types import Tensor
from keras_plasticity.units.unit_statistics import OBSERVATIONS
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_inputs
from keras_plasticity.validation import check_model
from keras_plasticity.validation import check_seed

# With more units of a layer due at most, to ask how many are is cheaper.
_MOST_LOOKED_AT = 4


@keras.saving.register_keras_serializable(package="keras_plasticity")
class UnitResetOptimizer(OptimizerWrapper):
    """Base class of optimizers that give some hidden units a new start.

    After each update by the inner optimizer, for each layer whose units other
    plastic layers read, a method decides which units to replace. All that
    methods have in common is done here: who reads whom is found from the
    model, the layers are told what to observe, replaced units get new incoming
    weights from the layer's own initializers, zero outgoing weights, and fresh
    entries in the inner optimizer's slots.

    A method names the observations it needs in `observed`, and overrides

    - `add_state(units)`: adds variables, when the optimizer is built;
    - `update_statistics(units)`: takes in an update's observations;
    - either, in `update_statistics`, calls `self.mark(units, mask)` with the
        units to be replaced in this update,
    - or overrides `num_due(units)` and `choose(units)`: how many units are due
        now, and the index of the next one of them.

    Statistics of all layers are updated before any unit is replaced. Then
    units are replaced layer by layer, in the order of the model.

    One update is one step that the inner optimizer makes: with gradient
    accumulation, units age once per accumulated step, on what was observed
    since the last one; a step that loss scaling skips counts for nothing.
    Layers with `trainable=False` are never changed: neither their units nor
    those that they read are replaced.

    All methods are traced and compiled: they compute with `keras.ops` on the
    values of variables, and assign to variables.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        reset_optimizer_state: Boolean, whether the entries of a replaced unit
            in the slots of the inner optimizer (momentum, velocity, ...)
            return to their initial values. Defaults to `True`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Attributes:
        observed: Tuple of strings, what the method needs to know of the units
            in each update: any of `"activation_mean"`,
            `"activation_magnitude"`, `"activation_deviation"` (from the
            running mean), `"firing"` and `"num_examples"`, as the layers that
            read the units receive them; and `"gradient_magnitude"`,
            `"gradient_norm"` and `"bias_gradient_magnitude"`, of the units'
            own weights. See `keras_plasticity.optimizers.HiddenUnits`.
        decay_rate: Float in [0, 1), of the running mean activation. Of use
            with `"activation_mean"` or `"activation_deviation"`.
        replaces_last_layer_first: Boolean, which decides about a weight from
            one replaced unit to another. By default (`False`) it is a new
            draw; where the last layer's units are replaced first, it is zero.
        draws_outgoing: Boolean, whether the outgoing weights of a replaced
            unit are drawn, too, by the initializers of the layers that read
            it. Defaults to `False`: they are zero.
        slots_to_reset: Tuple of strings, whose slots return to their initial
            values: any of `"incoming"`, `"outgoing"` (weights) and `"bias"`
            (which gamma and beta of a normalization layer count as). Defaults
            to all three.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class ReplaceSilent(keras_plasticity.optimizers.UnitResetOptimizer):
        # Replaces units that have not fired for `patience` updates.

        observed = ("firing",)

        def __init__(self, inner_optimizer, patience=1000, **kwargs):
            super().__init__(inner_optimizer, **kwargs)
            self.patience = patience

        def add_state(self, units):
            units.silence = units.add_variable("silence", restarts=True)

        def update_statistics(self, units):
            silence = ops.where(units.fired(), 0.0, units.silence.value + 1.0)
            units.silence.assign(silence)
            self.mark(units, silence >= self.patience)

        def get_config(self):
            return {**super().get_config(), "patience": self.patience}
    ```
    """

    observed: tuple[str, ...] = ()
    decay_rate = 0.99
    replaces_last_layer_first = False
    draws_outgoing = False
    slots_to_reset: tuple[str, ...] = ("incoming", "bias", "outgoing")

    # Whether the units of a layer are replaced before the statistics of the
    # next layer are updated.
    _goes_layer_by_layer = False

    # Whether the units due are counted for all layers at once, by `_nums_due`,
    # once the statistics of all are updated.
    _counts_together = False

    # Hyper-parameters that `choose` reads: a loop on JAX carries what it reads,
    # and is faster the less it is.
    _chosen_by: tuple[str, ...] = ()

    reset_optimizer_state = Setting(check_boolean)
    seed = Setting(check_seed)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        reset_optimizer_state: bool = True,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        _check_not_nested(self, inner_optimizer)
        self.reset_optimizer_state = reset_optimizer_state
        self.seed = seed
        self._seed_generator = self.add_seed_generator(seed)
        self._network = HiddenNetwork()
        self._update_gradients = UpdateGradients()
        self._has_warned = False
        self._numbers_due = None
        self._network_variables: list[keras.Variable] = []

    @property
    def hidden(self) -> list[HiddenUnits]:
        """The `HiddenUnits` of all layers, in the order of the model."""
        return self._network.hidden

    def add_units(self, units: HiddenUnits):
        """Called for the units of each layer when the optimizer is built.

        Args:
            units: `HiddenUnits`.
        """
        if type(self).choose is UnitResetOptimizer.choose:
            units.marks = units.add_variable(
                "marks", dtype="int32", restarts=True
            )
        self.add_state(units)

    def add_state(self, units: HiddenUnits):
        """Adds the method's variables for the units of one layer.

        Args:
            units: `HiddenUnits`. A variable of `units.add_variable` may be
                kept as an attribute of `units`.
        """

    def _add_network_state(self):
        """Adds variables that all layers share, after those of each.

        The layers are in `self.hidden`. Variables that an update reads or
        assigns go to `self._network_variables`, too.
        """

    def update_statistics(self, units: HiddenUnits):
        """Takes in what was observed of the units of one layer in an update.

        Their age has been counted up already.

        Args:
            units: `HiddenUnits`.
        """
        raise NotImplementedError

    def mark(self, units: HiddenUnits, mask: Tensor):
        """Says which units are to be replaced in this update.

        Args:
            units: `HiddenUnits`.
            mask: Boolean tensor of shape `(units.size,)`.
        """
        units.marks.assign(ops.cast(mask, "int32"))

    def num_due(self, units: HiddenUnits) -> Tensor:
        """Number of units to be replaced in this update.

        Args:
            units: `HiddenUnits`.

        Returns:
            Int32 scalar tensor, or the integer 0 if there can never be any. By
            default the number of units marked.
        """
        return ops.sum(units.marks.value)

    def most_due(self, units: HiddenUnits) -> int | None:
        """The most units that `num_due` can return, if there is a bound.

        An accelerator is fastest where it need not ask how many units are due.
        With a small bound, so many are looked at in every update, and those
        that are not due stay as they are. Without one, it asks once an update.

        Args:
            units: `HiddenUnits`.

        Returns:
            Integer, known before the step is compiled; `None` (by default)
            where there is no such bound.
        """
        return None

    def _room(self, units: HiddenUnits) -> int | None:
        """For how many units due at once a step is compiled.

        Args:
            units: `HiddenUnits`.

        Returns:
            Integer; `None` for any number.
        """
        most = self.most_due(units)
        if most is None or units._room is None:
            return None
        return max(most, units._room)

    def _make_room_for(self, other: "UnitResetOptimizer") -> bool:
        """Lets steps that are compiled from now on serve another optimizer.

        Args:
            other: Optimizer of the same class, of a model of the same
                architecture, with settings and a state of its own.

        Returns:
            Boolean, whether that takes more room than there was.
        """
        grows = False
        for units, others in zip(self.hidden, other.hidden):
            room, needed = units._room, other._room(others)
            if room is not None:
                units._room = None if needed is None else max(room, needed)
            grows = grows or units._room != room
        return grows

    def choose(self, units: HiddenUnits) -> Tensor:
        """The next unit to be replaced, of those that are due.

        It is called once for each unit due, after the one before was replaced.

        Args:
            units: `HiddenUnits`.

        Returns:
            Integer scalar tensor. By default the first unit marked.
        """
        return ops.argmax(ops.convert_to_tensor(units.marks))

    def step_size(self, age: Tensor) -> Tensor:
        """Step size of the running mean activation at an age.

        Args:
            age: Float tensor, at least 1.

        Returns:
            Tensor of the same shape. By default from `decay_rate`.
        """
        return functional.step_size(age, self.decay_rate)

    def before_replacement(self, units: HiddenUnits, unit: Tensor):
        """Called before a unit loses its weights.

        Args:
            units: `HiddenUnits`.
            unit: Integer scalar tensor, the unit's index.
        """

    def build(self, variables: list[keras.Variable]):
        """Creates the inner optimizer's variables and finds who reads whom.

        Where nothing tells who reads whom, because the model was neither
        called nor compiled with this optimizer, the optimizer remains unbuilt,
        with the state that it was given. The first step builds it, or raises.

        Args:
            variables: List of the trainable variables of one model.

        Raises:
            ValueError: If the model has no plastic layer, or one whose units
                cannot be followed to plastic consumers.
        """
        if self.built:
            return
        self._network.check(variables)
        slot_table = slots.SlotTable()
        with slot_table.listen():
            super().build(variables)
        if not self.reset_optimizer_state:
            slot_table = None
        self._network.build(self, slot_table)
        self._add_network_state()
        self._update_gradients.build(
            self, self._network.weights_with_gradients()
        )

    def _prepare_build(self, variables):
        if self.built:
            return
        self._check_attributes()
        if innermost(self.inner_optimizer).built:
            raise ValueError(
                "`inner_optimizer` is already built, for this or for another "
                f"model. A `{type(self).__name__}` has to see its slots being "
                "made: give it a new optimizer. Received: "
                f"inner_optimizer={self.inner_optimizer}"
            )
        self._network.find(self, variables)

    def _check_attributes(self):
        """Checks what a subclass says of itself."""
        for name, known in (
            ("observed", OBSERVATIONS + GRADIENT_OBSERVATIONS),
            ("slots_to_reset", UnitResetOptimizer.slots_to_reset),
        ):
            value = getattr(self, name)
            if isinstance(value, str) or not set(value) <= set(known):
                raise ValueError(
                    f"`{name}` of `{type(self).__name__}` must be a tuple of "
                    f"any of {', '.join(map(repr, known))}. "
                    f"Received: {name}={value!r}"
                )
        if (
            "activation_deviation" in self.observed
            and "activation_mean" not in self.observed
        ):
            raise ValueError(
                "'activation_deviation' is the deviation from the running mean "
                "activation, so `observed` must have 'activation_mean' too. "
                f"Received: observed={self.observed!r}"
            )

    def build_inner(self, variables):
        super().build_inner([v for v in variables if not is_unit_statistic(v)])

    @property
    def variables(self) -> list[keras.Variable]:
        # The base class asks before there is a network.
        network = getattr(self, "_network", None)
        kept = [] if network is None else network.unit_variables()
        return super().variables + kept

    def make_step(self, grads, variables):
        self._network.begin_step(variables)
        observations = {}
        inner_grads = []
        inner_variables = []
        for gradient, variable in zip(grads, variables):
            if is_unit_statistic(variable):
                observations[id(variable)] = gradient
            else:
                inner_grads.append(gradient)
                inner_variables.append(variable)
        inner_grads = backend.after_backward(inner_grads)
        gradients = self._observed_gradients(inner_grads, inner_variables)

        if self.always_updates:
            self.apply_inner(inner_grads, inner_variables)
            with backend.no_gradient():
                self._update(observations, gradients)
            return
        scaler = loss_scaler(self.inner_optimizer)
        finite = None if scaler is None else scaler.check_finite(inner_grads)
        is_update = self.apply_inner_and_tell(inner_grads, inner_variables)
        with backend.no_gradient():
            self._network.accumulate(observations, finite)
            backend.run_if(
                is_update,
                lambda: self._update(observations, gradients),
                self._network.touched_variables()
                + self._network_variables
                + [self._seed_generator.state]
                + self.hyperparameter_variables(),
            )
            self._network.reset_accumulators(is_update)
            self._update_gradients.end_step(is_update)

    def _observed_gradients(self, grads, variables):
        """The gradients that the method observes, by the id of the weight."""
        weights = self._network.weights_with_gradients()
        if not weights:
            return {}
        gradient_of = dict(zip(map(id, variables), grads))
        gradients = self._update_gradients.take_in(
            self.inner_optimizer,
            weights,
            [gradient_of.get(id(weight)) for weight in weights],
            grads,
        )
        return dict(zip(map(id, weights), gradients))

    def _update(self, observations, gradients):
        """All that follows an update of the weights."""
        # Not before the update: `tf.distribute` traces the replicas in turns,
        # which change there.
        self._network.take_in_gradients(gradients)
        hidden = self._network.take_in(observations)
        for units in hidden:
            units.due = backend.keep_if(
                units.took_part,
                lambda units=units: self._update_units(units),
                units.variables,
            )
            if self._goes_layer_by_layer:
                self._replace([units])
        if not self._goes_layer_by_layer:
            if self._counts_together:
                took_part = [units.took_part for units in hidden]
                self._note_due(hidden, took_part)
            self._replace(hidden)
        self._network.set_next_centers()
        self._network.take_in_gradients({})

    def _update_units(self, units):
        """One update of the units of a layer; returns how many are due."""
        units.age.assign(units.age.value + 1.0)
        units.num_updates.assign_add(1)
        self.update_statistics(units)
        return 0 if self._counts_together else self.num_due(units)

    def _note_due(self, hidden, took_part):
        """Counts how many units of each layer are due."""
        if not hidden:
            return
        nums_due = self._nums_due(hidden, took_part)
        for units, due in zip(hidden, nums_due):
            units.due = due

    def _nums_due(self, hidden, took_part):
        """How many units of each of some layers are due.

        Args:
            hidden: List of `HiddenUnits`.
            took_part: List of whether each took part in this update: booleans
                or boolean tensors. A method with `_counts_together` obeys it.

        Returns:
            List of what `num_due` returns.
        """
        del took_part
        return [self.num_due(units) for units in hidden]

    def observe(self, model: keras.Model, x: Any) -> list[HiddenUnits]:
        """Observes a batch of examples outside of training.

        Args:
            model: The `keras.Model` that the optimizer was built on.
            x: Inputs of the model.

        Returns:
            List of the `HiddenUnits` of which something was observed.

        Raises:
            ValueError: If the optimizer is not built yet.
        """
        check_model("model", model)
        x = check_inputs("x", x)
        self._deferred_build.build_again()
        self._deferred_build.check()
        if not self.built:
            raise ValueError(
                f"This `{type(self).__name__}` is not built yet, so it does "
                "not know the model's units. Train first, or call "
                "`optimizer.build(model.trainable_variables)`."
            )

        def sum_of_outputs():
            outputs = keras.tree.flatten(model(x, training=False))
            return sum(ops.sum(ops.cast(y, "float32")) for y in outputs)

        self._network.begin_step(model.trainable_variables)
        carriers = self._network.carriers()
        with self._network.observe_inference():
            observations = backend.gradients(sum_of_outputs, carriers)
        return self._network.take_in(dict(zip(map(id, carriers), observations)))

    def replace_due(self, hidden: list[HiddenUnits]):
        """Replaces the units that are due.

        Args:
            hidden: List of `HiddenUnits`, in the order of the model.
        """
        self._note_due(hidden, [True] * len(hidden))
        self._replace(hidden)

    @contextlib.contextmanager
    def _replacement_put_off(self):
        """Context in which a step only says how many units are due.

        Not for methods that go layer by layer.

        Yields:
            List, in which a step leaves the number of units that are due in
            each of `self.hidden`: for `_replace_counted`.
        """
        numbers = []
        # Not by `setattr`, with which Keras puts another list in its place.
        vars(self)["_numbers_due"] = numbers
        try:
            yield numbers
        finally:
            self._numbers_due = None

    def _replace_counted(self, numbers: list[int]):
        """Replaces units, after a step that has put it off.

        Args:
            numbers: List with an integer for each of `self.hidden`.
        """
        for units, number in zip(self.hidden, numbers):
            units.due = number
        self._replace(self.hidden)

    def _replace(self, hidden):
        if self._numbers_due is not None:
            due = {id(units): units.due for units in hidden}
            self._numbers_due[:] = [due.get(id(u), 0) for u in self.hidden]
            return
        hidden = [
            units
            for units in hidden
            if not (isinstance(units.due, int) and units.due == 0)
        ]
        if self.replaces_last_layer_first:
            hidden = hidden[::-1]
        if not hidden:
            return
        avoids_branches = backend.avoids_branches()
        if not avoids_branches and len(hidden) == 1:
            self._replace_all(hidden)
            return
        bounds = [self._room(units) for units in hidden]
        if avoids_branches and all(
            most is not None and most <= _MOST_LOOKED_AT for most in bounds
        ):
            for units, most in zip(hidden, bounds):
                self._look_at(units, most)
            return
        # One question for all layers.
        is_any_due = sum(units.due for units in hidden) > 0
        variables = each_once(
            [v for units in hidden for v in units.touched_variables()]
            + self._read_variables()
        )
        if avoids_branches:
            backend.run_if(
                is_any_due, lambda: self._replace_all(hidden), variables
            )
            return
        # A loop costs time even where it makes no iteration, and a branch
        # would be computed for each of several learners side by side.
        backend.repeat(
            ops.cast(is_any_due, "int32"),
            lambda: self._replace_all(hidden),
            variables,
        )

    def _read_variables(self):
        """The variables that replacing any unit may read."""
        settings = all_hyperparameters(type(self))
        read = [
            variable
            for name in self._chosen_by
            for variable in settings[name].read_variables(self)
        ]
        return each_once([self._seed_generator.state, *read])

    def _replace_next(self, units):
        """Replaces the next unit of a layer."""
        unit = self.choose(units)
        self.before_replacement(units, unit)
        units.replace(unit)
        # Here, and not all at once: a step in which none is due is spared.
        units.num_replaced.assign_add(1)

    def _replace_all(self, hidden):
        """Replaces as many units as are due, by loops."""
        for units in hidden:
            backend.repeat(
                units.due,
                lambda units=units: self._replace_next(units),
                units.touched_variables() + self._read_variables(),
            )

    def _look_at(self, units, most):
        """Replaces as many units as are due, of which there are few at most."""
        for number in range(most):
            backend.only_if(
                units.due > number,
                lambda: self._replace_next(units),
                units.touched_variables() + self._read_variables(),
            )

    def _warn_of_not_finite(self):
        if self._has_warned:
            return
        names = self._network.not_finite()
        if names:
            self._has_warned = True
            warnings.warn(
                "Layers received activations that were infinite or not a "
                "number; these were left out of the statistics of the units "
                f"that they read. Received by: {', '.join(names)}. Look at "
                "the data, the learning rate, and the loss.",
                stacklevel=3,
            )

    def num_replaced(self) -> dict[str, int]:
        """Number of units replaced so far.

        Returns:
            Dict from layer name to integer, for each layer with replaceable
            units, in the order of the model. Where layers in different parts
            of a model have the same name, from layer path. Empty as long as
            the optimizer is not built.
        """
        self._deferred_build.build_again()
        self._warn_of_not_finite()
        names = [units.layer.name for units in self.hidden]
        return {
            units.layer.name
            if names.count(units.layer.name) == 1
            else units.layer.path: int(ops.convert_to_numpy(units.num_replaced))
            for units in self.hidden
        }

    def finalize_variable_values(self, var_list):
        self._warn_of_not_finite()
        super().finalize_variable_values(
            [v for v in var_list if not is_unit_statistic(v)]
        )

    def get_config(self) -> dict[str, Any]:
        names = ("reset_optimizer_state", "seed")
        return {**super().get_config(), **self.settings(*names)}


def reset_optimizer(model):
    """The `UnitResetOptimizer` among a model's optimizers; `None` without."""
    for optimizer in wrapped(model.optimizer):
        if isinstance(optimizer, UnitResetOptimizer):
            return optimizer
    return None


def _check_not_nested(outer, inner_optimizer):
    for optimizer in wrapped(inner_optimizer):
        if isinstance(optimizer, UnitResetOptimizer):
            raise ValueError(
                f"`inner_optimizer` of a `{type(outer).__name__}` must not "
                f"itself be or hold a `{type(optimizer).__name__}`: units "
                "would be replaced twice, and both would keep their books in "
                f"the same statistics. Received: inner_optimizer={optimizer!r}"
            )
