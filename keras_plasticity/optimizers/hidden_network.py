"""All hidden units that an optimizer may replace, found from the model."""

from keras_plasticity import graph
from keras_plasticity import keras_compat
from keras_plasticity.optimizers.hidden_units import HiddenUnits
from keras_plasticity.optimizers.hidden_units import each_once
from keras_plasticity.optimizers.observations import ConsumerInputs
from keras_plasticity.optimizers.optimizer_wrapper import innermost


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
        self._inputs = {}
        self._accumulated_steps = None

    def build(self, optimizer, variables, slot_table):
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
        model = graph.find_model(layers, variables, optimizer)
        if model is not None:
            # A part of it may have become plastic after it was built.
            keras_compat.track_new_variables(model)
        known = {id(v) for v in variables}
        found = graph.find_connections(layers, model, variables=variables)
        graph.check(found)
        found = [each for each in found if _is_replaceable(each, known)]
        self._inputs = {
            id(consumer): ConsumerInputs(consumer, optimizer)
            for connections in found
            for consumer in connections.consumers
        }
        for connections in found:
            units = HiddenUnits(
                optimizer, connections, self._inputs, slot_table
            )
            optimizer.add_units(units)
            self.hidden.append(units)
        inner = innermost(optimizer.inner_optimizer)
        self._accumulated_steps = inner.gradient_accumulation_steps
        if self._accumulated_steps is not None:
            for inputs in self._inputs.values():
                inputs.add_accumulators(optimizer)

    def touched_variables(self):
        """All variables that an update reads or assigns, each once."""
        variables = []
        for each in [*self.hidden, *self._inputs.values()]:
            variables += each.touched_variables()
        return each_once(variables)

    def input_statistics(self):
        """The statistics of all inputs, observed or not."""
        return [
            variable
            for inputs in self._inputs.values()
            for variable in inputs.statistics.input_variables()
        ]

    def taking_part(self, observations):
        """Those of whom something was observed.

        A layer that took no part in a step (a branch of the model that the
        loss does not reach) is left as it is.

        Returns:
            Tuple of a list of `ConsumerInputs` and a list of `HiddenUnits`.
        """
        inputs = [
            each
            for each in self._inputs.values()
            if each.is_observed(observations)
        ]
        hidden = [
            units
            for units in self.hidden
            if all(outgoing.inputs in inputs for outgoing in units.outgoing)
        ]
        return inputs, hidden

    def accumulate(self, observations, finite):
        if self._accumulated_steps is None:
            return
        for inputs in self._inputs.values():
            inputs.accumulate(observations, self._accumulated_steps, finite)

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
    return True
