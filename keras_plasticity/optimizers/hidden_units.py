"""The replaceable units of one layer, and all that belongs to them."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_plasticity import validation
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.optimizers.new_weights import InitialPart
from keras_plasticity.optimizers.new_weights import PartInitializer
from keras_plasticity.optimizers.observations import ConsumerInputs
from keras_plasticity.types import Tensor
from keras_plasticity.units.feature_map import FeatureMap
from keras_plasticity.units.weight_view import WeightView

# What a method can observe of the gradients of a unit's own weights.
GRADIENT_OBSERVATIONS = (
    "gradient_magnitude",
    "gradient_norm",
    "bias_gradient_magnitude",
)


class Outgoing(NamedTuple):
    """The connection from a layer's units to one layer that consumes them.

    Attributes:
        consumer: The plastic layer that reads the units.
        inputs: `ConsumerInputs`, what the consumer observes of its inputs.
        feature_map: `FeatureMap` from the consumer's input features to units.
        view: `WeightView` of the consumer's weights, which counts features.
    """

    consumer: PlasticLayer
    inputs: ConsumerInputs
    feature_map: FeatureMap
    view: WeightView

    @property
    def weights_per_unit(self):
        """How many of the consumer's weights belong to one unit."""
        features_per_unit = self.feature_map.features / self.feature_map.units
        return features_per_unit * math.prod(self.view.part_shape)


class HiddenUnits:
    """The units of one plastic layer that an optimizer may replace.

    A `UnitResetOptimizer` makes one for each layer whose units are read by
    other plastic layers, and hands it to its methods. All quantities are
    tensors or variables of shape `(size,)`, one entry for each unit.

    Attributes:
        layer: The plastic layer.
        size: Integer, the number of units.
        outgoing: List of `Outgoing`, one for each layer that reads the units.
        age: `keras.Variable`, float32: updates since each unit was created.
        utility: `keras.Variable`, float32: what `layer.utility` shows.
        mean_activation: `keras.Variable`, float32.
        num_updates: `keras.Variable`, int32 scalar: updates that the units
            took part in, the present one included. After 2**31 - 1 it goes on
            with -2**31.
        num_replaced: `keras.Variable`, int32 scalar: units replaced so far.
        variables: List of all variables that belong to the units, those of
            `add_variable` included.
        may_change: Boolean, whether the units may be replaced in this step.
        gradient_weights: List of the layer's own weights whose gradients are
            observed.
    """

    if TYPE_CHECKING:  # A method keeps variables of its own as attributes.

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(self, optimizer, connections, inputs_of, slots):
        statistics = connections.layer.statistics
        self.layer = connections.layer
        self.size = statistics.units
        self.age = statistics.age
        self.utility = statistics.utility
        self.mean_activation = statistics.mean_activation
        self.outgoing = []
        for consumer, feature_map in connections.consumers.items():
            inputs = inputs_of[id(consumer)]
            inputs.add_producer(self, feature_map)
            self.outgoing.append(
                Outgoing(consumer, inputs, feature_map, consumer.feature_view())
            )
        self._optimizer = optimizer
        self._slots = slots
        self._slots_to_reset = optimizer.slots_to_reset
        seed_generator = optimizer._seed_generator

        def part_initializer(initializer, variable):
            shape = tuple(variable.shape)
            return PartInitializer(initializer, shape, seed_generator)

        # Pairs of a `WeightView` and what draws its weights.
        self._incoming = [
            (view, part_initializer(initializer, view.variable))
            for view, initializer in self.layer.incoming_weights()
        ]
        self._bias_view = self.layer.bias_view()
        if self._bias_view is not None:
            self._draw_bias = part_initializer(
                self.layer.unit_bias_initializer(), self._bias_view.variable
            )
        self._state_views = self.layer.state_views()
        self._draws_outgoing = [
            part_initializer(
                outgoing.consumer.feature_initializer(), outgoing.view.variable
            )
            if optimizer.draws_outgoing
            else None
            for outgoing in self.outgoing
        ]
        # Such as the gamma and beta of a normalization layer.
        self._all_parameters = [
            (
                WeightView.of(parameter.variable, *parameter.axes),
                parameter.feature_map,
                part_initializer(parameter.initializer, parameter.variable),
            )
            for parameter in connections.parameters
        ]
        self._parameters = self._all_parameters
        self._initial_values = {}
        self._gradients = {}
        self.gradient_weights = self._find_gradient_weights(optimizer.observed)
        self.may_change = True
        # At least for how many units due at once a step is compiled, see
        # `UnitResetOptimizer._make_room_for`.
        self._room = 0
        # What a replacement changes of the layer and of those who read it.
        self._weights = [view.variable for view, _ in self._incoming]
        if self._bias_view is not None:
            self._weights.append(self._bias_view.variable)
        self._weights += [outgoing.view.variable for outgoing in self.outgoing]
        self._path = self.layer.path.replace("/", "_")
        # Variables that begin again with a new unit, and how.
        self._restarting = [
            (variable, ops.zeros)
            for variable in (self.utility, self.age, self.mean_activation)
        ]
        self.variables = [variable for variable, _ in self._restarting]
        self.num_updates = self.add_variable("num_updates", (), "int32")
        self.num_replaced = self.add_variable("num_replaced", (), "int32")

    def _find_gradient_weights(self, observed):
        weights = []
        if "gradient_magnitude" in observed or "gradient_norm" in observed:
            weights += [view.variable for view, _ in self._incoming]
        if (
            "bias_gradient_magnitude" in observed
            and self._bias_view is not None
        ):
            weights.append(self._bias_view.variable)
        return weights

    def add_variable(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        dtype: str = "float32",
        initializer: str | float | keras.initializers.Initializer = "zeros",
        restarts: bool = False,
    ) -> keras.Variable:
        """Adds a variable of the optimizer that belongs to these units.

        Args:
            name: String, unique among the variables of these units.
            shape: Tuple of integers. Defaults to `(size,)`.
            dtype: String. Defaults to `"float32"`.
            initializer: Keras initializer, its name, or a number. Defaults to
                `"zeros"`.
            restarts: Boolean, whether the entry of a replaced unit returns to
                its initial value. The first axis has to count units then.
                Defaults to `False`.

        Returns:
            `keras.Variable`, saved and restored with the optimizer.
        """
        name = validation.check_string("name", name)
        dtype = validation.check_dtype("dtype", dtype)
        restarts = validation.check_boolean("restarts", restarts)
        if validation.is_number(initializer):
            initializer = keras.initializers.Constant(float(initializer))
        initializer = validation.check_deserialized(
            "initializer",
            initializer,
            keras.initializers.get,
            "a Keras initializer, its name, or a number",
        )
        if shape is not None:
            rule = "`None`, or a tuple of integers that are not negative"
            shape = validation.check_list("shape", shape, rule=rule)
            if not all(validation.is_integer(n) and n >= 0 for n in shape):
                raise validation.error("shape", rule, shape)
        variable = self._optimizer.add_variable(
            shape=(self.size,) if shape is None else tuple(shape),
            dtype=dtype,
            initializer=initializer,
            name=f"{self._path}_{name}",
        )
        self.variables.append(variable)
        if restarts:
            self._restarting.append((variable, initializer))
        return variable

    def incoming_magnitude(self) -> Tensor:
        """Mean absolute incoming weight of each unit."""
        return self._mean_over_incoming(lambda view: view.mean_magnitude())

    def gradient_magnitude(self) -> Tensor:
        """Mean absolute gradient of each unit's incoming weights.

        The gradient is the one that this update was made with, before the
        inner optimizer clipped it or added anything to it: with gradient
        accumulation the mean over all steps, and without a loss scale. It is
        zero for weights that the loss does not depend on.
        `"gradient_magnitude"` has to be observed.
        """
        return self._mean_over_incoming(
            lambda view: view.mean_magnitude(
                self._gradient_of(view, "gradient_magnitude")
            )
        )

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the gradient of each unit's incoming weights.

        `"gradient_norm"` has to be observed; see `gradient_magnitude`.
        """

        def mean_square(view):
            gradient = self._gradient_of(view, "gradient_norm")
            square = ops.square(ops.cast(gradient, "float32"))
            return view.mean_magnitude(square)

        number = sum(math.prod(view.part_shape) for view, _ in self._incoming)
        return ops.sqrt(number * self._mean_over_incoming(mean_square))

    def _mean_over_incoming(self, function):
        """Mean over all incoming weights of the means of each kernel.

        Args:
            function: Function of a `WeightView` that returns the mean over the
                weights of each unit there.
        """
        views = [view for view, _ in self._incoming]
        if len(views) == 1:
            return function(views[0])
        sizes = [math.prod(view.part_shape) for view in views]
        total = sum(sizes)
        return sum(
            function(view) * (n / total) for view, n in zip(views, sizes)
        )

    def bias_gradient_magnitude(self) -> Tensor:
        """Absolute gradient of each unit's bias; zero without a bias.

        `"bias_gradient_magnitude"` has to be observed; see
        `gradient_magnitude`.
        """
        view, name = self._bias_view, "bias_gradient_magnitude"
        if view is None:
            self._check_is_observed(name)
            return ops.zeros((self.size,))
        return view.mean_magnitude(self._gradient_of(view, name))

    def _gradient_of(self, view, name):
        self._check_is_observed(name)
        gradient = self._gradients.get(id(view.variable))
        if gradient is None:
            return ops.zeros(view.variable.shape)
        return gradient

    def _check_is_observed(self, name):
        if name not in self._optimizer.observed:
            raise ValueError(
                f"`{name}` is known in an update of an optimizer that observes "
                f"it. Received: `observed` of "
                f"`{type(self._optimizer).__name__}` is "
                f"{self._optimizer.observed!r}"
            )

    def take_in_gradients(self, gradients: dict[int, Tensor | None]):
        """Takes in the gradients of an update.

        Args:
            gradients: Dict from the id of a weight to its gradient, `None` if
                it took no part. Empty after the update.
        """
        self._gradients = {
            id(weight): gradients.get(id(weight))
            for weight in self.gradient_weights
        }

    def activation_magnitude(self) -> Tensor:
        """Mean |activation| of each unit in this update.

        The mean is over the examples, over all positions, and over the layers
        that read the unit. `"activation_magnitude"` has to be observed.
        """
        return self.mean_over_consumers(
            lambda outgoing: outgoing.inputs.means["activation_magnitude"]
        )

    def fired(self) -> Tensor:
        """Whether each unit fired in this update: a boolean tensor.

        A unit fires if it is active (its pre-activation is positive) for at
        least one example, at one position, as one of the layers that read it
        receives it. Of a unit with two features, as of
        `keras_plasticity.layers.CReLU`, one of them has to be positive.
        `"firing"` has to be observed.
        """
        firing = self.mean_over_consumers(
            lambda outgoing: outgoing.inputs.means["firing"]
        )
        return firing > 0.0

    def num_examples(self) -> Tensor:
        """Number of examples in this update: a float32 tensor of shape `(1,)`.

        `"num_examples"` has to be observed.
        """
        return self._mean(lambda outgoing: outgoing.inputs.num_examples)

    @property
    def took_part(self) -> bool | Tensor:
        """Whether a layer that reads the units observed them in this update.

        It is a boolean, or a boolean scalar tensor. Other updates pass them by.
        """
        result = False
        for outgoing in self.outgoing:
            took_part = outgoing.inputs.took_part
            if took_part is True or result is True:
                return True
            if result is False:
                result = took_part
            elif took_part is not False:
                result = ops.logical_or(result, took_part)
        return result

    def mean_over_consumers(
        self, function: Callable[[Outgoing], Tensor], by_weights: bool = False
    ) -> Tensor:
        """Mean of what the layers that read the units say of them.

        Layers that took no part in this update (the head of another task) say
        nothing.

        Args:
            function: Function of an `Outgoing` that returns a tensor of shape
                `(features,)`, one entry for each input feature.
            by_weights: Boolean, whether a layer's word counts by the number of
                weights that leave a unit for it. Defaults to `False`: by the
                number of layers.

        Returns:
            Tensor of shape `(size,)`.
        """
        return self._mean(
            lambda outgoing: outgoing.feature_map.to_units(function(outgoing)),
            by_weights,
        )

    def _mean(self, function, by_weights=False):
        """Mean of a function of each `Outgoing` that takes part."""
        speakers = [
            outgoing
            for outgoing in self.outgoing
            if outgoing.inputs.took_part is not False
        ]
        values = [function(outgoing) for outgoing in speakers]
        if len(values) == 1:
            return values[0]
        weights = [
            outgoing.weights_per_unit if by_weights else 1.0
            for outgoing in speakers
        ]
        took_part = [outgoing.inputs.took_part for outgoing in speakers]
        if all(took is True for took in took_part):
            total = sum(weights)
            return sum(v * (w / total) for v, w in zip(values, weights))
        weights = [
            ops.where(took, weight, 0.0)
            for took, weight in zip(took_part, weights)
        ]
        total = sum(weights)
        # What a layer says that took no part may be no number.
        return sum(
            ops.where(took, v, 0.0) * (w / total)
            for took, v, w in zip(took_part, values, weights)
        )

    def begin_step(self, trained: set[int]):
        """Notes what is trained in this step.

        Args:
            trained: Set of the ids of variables. A layer that was frozen, or
                whose units a frozen layer reads, is never changed.
        """
        self.may_change = all(id(weight) in trained for weight in self._weights)
        self._parameters = [
            parameter
            for parameter in self._all_parameters
            if id(parameter[0].variable) in trained
        ]

    def touched_variables(self):
        """The variables that replacing a unit reads or assigns, each once."""
        weights = [*self._weights]
        weights += [view.variable for view, _, _ in self._parameters]
        variables = self.variables + weights
        variables += self._initial_values.values()
        variables += [view.variable for view in self._state_views]
        for outgoing in self.outgoing:
            variables += outgoing.inputs.center_variables()
            variables += outgoing.consumer.fold_variables()
        if self._slots is not None:
            for weight in weights:
                variables += [s.variable for s in self._slots.of(weight)]
        return each_once(variables)

    def replace(self, unit: Tensor):
        """Gives one unit a new start.

        Its incoming weights, its bias and the parameters of normalization on
        its way are drawn again by their initializers, then its outgoing weights
        become zero (or are drawn, with `draws_outgoing` of the optimizer), and
        its statistics and the state of a stateful layer begin anew. So a unit
        that reads itself does not when it is new.

        Args:
            unit: Integer scalar tensor, the unit's index.
        """
        for view, draw in self._incoming:
            self._draw("incoming", view, unit, draw)
        if self._bias_view is not None:
            self._draw("bias", self._bias_view, unit, self._draw_bias)
        for view, feature_map, draw in self._parameters:
            for each, index in feature_map.slices(view, unit):
                self._draw("bias", each, index, draw)
        for outgoing, draw in zip(self.outgoing, self._draws_outgoing):
            for view, index in outgoing.feature_map.slices(outgoing.view, unit):
                if draw is None:
                    value = ops.zeros(view.part_shape, view.variable.dtype)
                else:
                    value = draw(view, index)
                self._assign("outgoing", view, index, value)
            # Of the first value to come, the mean is that value. (Where units
            # are replaced after a step, nothing else says so.)
            for variable in outgoing.inputs.center_variables():
                center = WeightView.of(variable, 0)
                for view, index in outgoing.feature_map.slices(center, unit):
                    view.assign(index, ops.zeros(view.part_shape))
        for view in self._state_views:
            zeros = ops.zeros(view.part_shape, view.variable.dtype)
            view.assign(unit, zeros)
        for variable, initializer in self._restarting:
            view = WeightView.of(variable, 0)
            value = initializer(view.part_shape, dtype=variable.dtype)
            view.assign(unit, value)

    def keep_initial_biases(self):
        """Notes the biases as they are now, for `reset_partially`.

        The parameters of normalization on the way of the units count as
        biases. To be called when the optimizer is built, in `add_state`.
        """
        views = [view for view, _, _ in self._all_parameters]
        if self._bias_view is not None:
            views.append(self._bias_view)
        for view in views:
            self._keep_initial(view)

    def keep_initial_weights(self):
        """Has new units begin with what the weights are now.

        Incoming weights, biases and the parameters of normalization on the way
        of the units are noted. A replaced unit has its own of them again, where
        others would be drawn. To be called when the optimizer is built, in
        `add_state`.
        """
        self._incoming = [
            (view, self._keep_initial(view)) for view, _ in self._incoming
        ]
        if self._bias_view is not None:
            self._draw_bias = self._keep_initial(self._bias_view)
        self._all_parameters = [
            (view, feature_map, self._keep_initial(view))
            for view, feature_map, _ in self._all_parameters
        ]
        self._parameters = self._all_parameters

    def _keep_initial(self, view):
        """Notes a weight as it is now; returns what it "draws" from then on."""
        key = id(view.variable)
        if key not in self._initial_values:
            copy = self._optimizer.add_copy(view.variable, "initial")
            self._initial_values[key] = copy
        return InitialPart(self._initial_values[key])

    def reset_partially(self, share: Tensor, move_slots: bool = False):
        """Moves all units a part of the way to a new start, each its own.

        Where `replace` gives one unit new weights, this mixes new ones into
        the weights of all of them:

        - incoming weights: `w <- (1 - share) * w + share * draw`, with a draw
            from the layer's initializer;
        - outgoing weights, after these: `w <- (1 - share) * w`, in all layers
            that read the units;
        - biases, and gamma and beta of normalization on the way: `b <-
            (1 - share) * b + share * initial`, if the method has called
            `keep_initial_biases`, and else they stay as they are.

        The statistics of the units stay as they are.

        Args:
            share: Tensor of shape `(size,)`, in [0, 1]. A unit of 0 stays as
                it is, one of 1 has a new start.
            move_slots: Boolean, whether the slots of the inner optimizer move,
                too, of all weights that do: momenta towards zero, others, such
                as Adam's second moment, towards the mean of the units whose
                share is below a half. Defaults to `False`.
        """
        moves = [
            ("incoming", view, share, draw.draw_whole(view.variable.dtype))
            for view, draw in self._incoming
        ]
        biases = []
        if self._bias_view is not None:
            biases.append((self._bias_view, share))
        for view, feature_map, _ in self._parameters:
            none = ops.zeros((feature_map.features,))
            biases.append((view, feature_map.to_features(share, none)))
        for view, share_of_biases in biases:
            initial = self._initial_values.get(id(view.variable))
            if initial is not None:
                initial = ops.convert_to_tensor(initial)
                moves.append(("bias", view, share_of_biases, initial))
        for outgoing in self.outgoing:
            none = ops.zeros((outgoing.feature_map.features,))
            share_of_features = outgoing.feature_map.to_features(share, none)
            moves.append(("outgoing", outgoing.view, share_of_features, None))
        for kind, view, share_of_each, target in moves:
            view.move(share_of_each, target)
            if move_slots:
                for slot in self._slots_of(kind, view):
                    slot.move(view, share_of_each)

    def _draw(self, kind, view, index, draw):
        self._assign(kind, view, index, draw(view, index))

    def _assign(self, kind, view, index, value):
        view.assign(index, value)
        for slot in self._slots_of(kind, view):
            slot.reset(view, index, value)

    def _slots_of(self, kind, view):
        """The slots that begin anew with a weight of this kind."""
        if self._slots is None or kind not in self._slots_to_reset:
            return []
        return self._slots.of(view.variable)


def each_once(objects):
    return list({id(each): each for each in objects}.values())
