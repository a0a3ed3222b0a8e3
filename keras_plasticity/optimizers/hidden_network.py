"""All hidden units that an optimizer may replace, found from the model."""

import contextlib

from keras_plasticity import backend
from keras_plasticity import graph
from keras_plasticity import keras_compat
from keras_plasticity.optimizers.hidden_units import HiddenUnits
from keras_plasticity.optimizers.hidden_units import each_once
from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.observations import ConsumerInputs


class HiddenNetwork:
    """The hidden units of a model, and the inputs of those who read them.

    An object of its own, and not two lists on the optimizer: a Keras optimizer
    takes every variable it finds in its attributes for one of its own, and a
    JAX step would be handed the model's weights twice.

    Attributes:
        hidden: List of `HiddenUnits`, in the order of the model.
    """

    def __init__(self):
        self.hidden = []
        self._model = None
        self._connections = []
        self._layers = []
        self._inputs = {}
        self._trained = None
        self._accumulates = False

    def find(self, optimizer, variables):
        """Finds who reads the units of which layer. Nothing is created.

        Args:
            optimizer: The `OptimizerWrapper`.
            variables: List of the trainable variables of one model.

        Raises:
            NotCalledError: If the model has to be called first.
            ValueError: If it has no plastic layer, or cannot be traced.
        """
        layers = each_once(
            v.plastic_layer() for v in variables if is_unit_statistic(v)
        )
        if not layers:
            raise ValueError(
                "There is no plastic layer among the model's trainable "
                f"variables, so `{type(optimizer).__name__}` would have "
                "nothing to do. Build the model from "
                "`keras_plasticity.layers`, or use the inner optimizer alone. "
                f"Received the variables: {[v.path for v in variables]}"
            )
        self._layers = layers
        self._model = graph.find_model(layers, variables, optimizer)
        try:
            self._connections = graph.find_connections(
                layers, self._model, variables=variables
            )
        except graph.NotTraceableError as error:
            if graph.was_called(self._model, layers):
                raise
            # It was loaded: its user may still state who reads whom.
            raise graph.NotCalledError(str(error)) from error

    def check(self, variables):
        """Leaves what was found of the units that can be replaced.

        Args:
            variables: List of the trainable variables of the model.

        Raises:
            ValueError: If units could not be followed to those who read them.
        """
        graph.check(self._connections)
        known = {id(v) for v in variables}
        self._connections = [
            each for each in self._connections if _is_replaceable(each, known)
        ]

    def take_connections(self, optimizer):
        """What was found of the units that can be replaced, and forgets it.

        Args:
            optimizer: The `OptimizerWrapper`, which is built on the layers.

        Returns:
            List of `Connections`, in the order of the model.
        """
        if self._model is not None:
            # A part of it may have become plastic after it was built.
            keras_compat.track_new_variables(self._model)
        for layer in self._layers:
            layer.note_optimizer(optimizer)
        connections = self._connections
        # The optimizer shall not keep the model alive.
        self._model = None
        self._connections = []
        self._layers = []
        return connections

    def build(self, optimizer, slot_table):
        """Creates all that belongs to the units that were found.

        Args:
            optimizer: The `UnitResetOptimizer`.
            slot_table: `SlotTable`; `None` if slots are not reset.
        """
        layers = self._layers
        found = self.take_connections(optimizer)
        consumers = each_once(
            consumer
            for connections in found
            for consumer in connections.consumers
        )
        for layer in layers:
            if layer not in consumers:
                # It reads no units that may be replaced.
                layer.statistics.observe_only(())
        self._inputs = {
            id(consumer): ConsumerInputs(consumer, optimizer)
            for consumer in consumers
        }
        for connections in found:
            units = HiddenUnits(
                optimizer, connections, self._inputs, slot_table
            )
            optimizer.add_units(units)
            self.hidden.append(units)
        inner = innermost(optimizer.inner_optimizer)
        self._accumulates = inner.gradient_accumulation_steps is not None
        if self._accumulates:
            for inputs in self._inputs.values():
                inputs.add_accumulators(optimizer)

    def begin_step(self, variables):
        """Notes what is trained in this step.

        Args:
            variables: List of variables.
        """
        trained = {id(v) for v in variables}
        if trained == self._trained:
            return
        self._trained = trained
        for each in [*self.hidden, *self._inputs.values()]:
            each.begin_step(trained)

    def weights_with_gradients(self):
        """The weights whose gradients the optimizer observes, each once."""
        return each_once(
            weight for units in self.hidden for weight in units.gradient_weights
        )

    def take_in_gradients(self, gradients):
        """Tells the units of the gradients of an update.

        Args:
            gradients: Dict from the id of a weight to its gradient, `None` if
                it took no part.
        """
        for units in self.hidden:
            units.take_in_gradients(gradients)

    def touched_variables(self):
        """All variables that an update reads or assigns, each once."""
        variables = []
        for each in [*self.hidden, *self._inputs.values()]:
            if each.may_change:
                variables += each.touched_variables()
        return each_once(variables)

    def unit_variables(self):
        """The variables of layers that the optimizer keeps among its own."""
        return [
            variable
            for units in self.hidden
            for variable in units.layer.statistics.unit_variables()
        ]

    def carriers(self):
        """The weights in which observations of all inputs travel."""
        return [
            variable
            for inputs in self._inputs.values()
            for variable in inputs.statistics.carriers()
        ]

    @contextlib.contextmanager
    def observe_inference(self):
        """Context in which calls with `training=False` are observed."""
        statistics = [inputs.statistics for inputs in self._inputs.values()]
        try:
            for each in statistics:
                each.observes_inference = True
            yield
        finally:
            for each in statistics:
                each.observes_inference = False

    def take_in(self, observations):
        """Takes in what was observed, and tells who took part.

        A layer that took no part in a step (a branch of the model that the
        loss does not reach, a batch without examples) is left as it is.

        Args:
            observations: Dict from the id of a weight to what has travelled.

        Returns:
            List of the `HiddenUnits` that may have taken part.
        """
        inputs = list(self._inputs.values())
        counts = [each.count_of(observations) for each in inputs]
        known = backend.are_positive([c for c in counts if c is not None])
        known = iter(known)
        for each, count in zip(inputs, counts):
            is_some = False if count is None else next(known)
            each.take_in(observations, is_some)
        return [
            units
            for units in self.hidden
            if units.may_change and units.took_part is not False
        ]

    def set_next_centers(self):
        for inputs in self._inputs.values():
            inputs.set_next_center()
            inputs.forget()

    def not_finite(self):
        """Names of the consumers that received values that were not finite."""
        return [
            inputs.name
            for inputs in self._inputs.values()
            if not inputs.was_all_finite()
        ]

    def accumulate(self, observations, finite):
        if not self._accumulates:
            return
        for inputs in self._inputs.values():
            inputs.accumulate(observations, finite)

    def reset_accumulators(self, is_update):
        for inputs in self._inputs.values():
            inputs.reset_accumulators(is_update)


def is_unit_statistic(variable):
    """Whether a variable is a statistic of a plastic layer."""
    return hasattr(variable, "plastic_layer")


def _is_replaceable(connections, known):
    """Whether the units of a layer can be replaced by this optimizer.

    Args:
        connections: `Connections`, from which consumers and parameters that
            the optimizer does not train are removed.
        known: Set of the ids of the optimizer's variables.
    """
    layer = connections.layer
    consumers = list(connections.consumers)
    if connections.skip_reason is not None:
        return False
    if not all(each.trainable for each in [layer, *consumers]):
        return False
    strangers = [
        consumer
        for consumer in consumers
        if id(consumer.feature_view().variable) not in known
    ]
    for stranger in strangers:
        # A model may have a part that this optimizer does not train.
        del connections.consumers[stranger]
    own = [reader.name for reader in layer.own_readers()]
    if strangers and all(each.name in own for each in connections.consumers):
        raise ValueError(
            f"The units of layer '{layer.name}' are read by layer "
            f"'{strangers[0].name}', whose weights are not among the "
            "variables of this optimizer. Build it on "
            "`model.trainable_variables`, all of them."
        )
    connections.parameters = [
        p for p in connections.parameters if id(p.variable) in known
    ]
    return True
