"""Producer-consumer connections of plastic layers, found in the model graph."""

import dataclasses
import warnings
import weakref

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.graph import rules
from keras_plasticity.graph import time_steps
from keras_plasticity.graph import trace
from keras_plasticity.graph.tied_weights import TiedWeights
from keras_plasticity.graph.trace import callers_of
from keras_plasticity.graph.units import name_of
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.feature_map import FeatureMap

_OUTPUTS = "outputs of the model"
_UNREAD = "read by no layer"
_NOT_CALLED = "the model does not call it"
_NOT_CONNECTED = (
    "no model's graph shows who reads them, and "
    "`keras_plasticity.connect(layer, consumer)` was not called for it"
)

# Connections that a user has stated, by producer.
_stated = weakref.WeakKeyDictionary()
# Weak references to the models last compiled with optimizers, by optimizer.
_compiled = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class UnitParameter:
    """A parameter between a unit and its consumer, such as a gamma.

    Attributes:
        variable: `keras.Variable`.
        initializer: Its Keras initializer.
        axes: Tuple of the axes of the variable that count features.
        feature_map: `FeatureMap` from these to units.
    """

    variable: keras.Variable
    initializer: object
    axes: tuple
    feature_map: FeatureMap


@dataclasses.dataclass
class Connections:
    """The consumers of one plastic layer, and whether its units are replaced.

    Attributes:
        layer: The plastic layer.
        consumers: Dict from each plastic layer that reads its units to a
            `FeatureMap`, in the order of the model; before these the layer's
            own readers.
        parameters: List of the `UnitParameter`s in between.
        through: List of the layers and operations in between.
        skip_reason: String, why its units will not be replaced, which is no
            error; `None` if they can be.
        error: String, why they could not be followed; `None` if they could.
        possible_consumers: List of layers of other models that may read what
            is taken for outputs.
        is_shared: Boolean, whether the error is that it, or one of the
            consumers, is called more than once.
    """

    layer: PlasticLayer
    consumers: dict
    parameters: list
    through: list
    skip_reason: str | None = None
    error: str | None = None
    possible_consumers: list = dataclasses.field(default_factory=list)
    is_shared: bool = False


def find_connections(
    layers, model=None, inputs=None, variables=()
) -> list[Connections]:
    """Finds the consumers of plastic layers.

    Args:
        layers: List of the built plastic layers of one model.
        model: The `keras.Model` they are part of. Found from the layers' own
            graph by default, which not every model has.
        inputs: See `trace_model`.
        variables: List of variables that the model must have.

    Returns:
        List of `Connections`, one for each layer, in the order in which the
        model calls them.

    Raises:
        NotCalledError: If the model has to be called first.
        ValueError: If the model cannot be traced.
    """
    found = {
        id(layer): Connections(layer, _own_readers(layer), [], [])
        for layer in layers
    }
    stated = {id(layer) for layer in layers if layer in _stated}
    for key in stated:
        found[key].consumers.update(_stated[found[key].layer])
    follower = _UnitFollower(found, stated)
    try:
        if len(stated) == len(layers):
            traced = trace.Trace([], set())
        elif model is None:
            traced = trace.trace_around(layers, variables)
        else:
            traced = trace.trace_model(model, inputs)
    except ValueError:
        # What a user has stated stands in for what cannot be traced.
        if not stated:
            raise
        follower.reason_if_not_called = _NOT_CONNECTED
        in_graph = [layer for layer in layers if keras_compat.calls(layer)]
        traced = trace.trace_around(in_graph if model is None else [])
    order = follower.follow(traced)
    return list({**{key: found[key] for key in order}, **found}.values())


def _own_readers(layer):
    """Dict from each reader inside a layer to its `FeatureMap`."""
    units = layer.unit_view().size
    feature_map = FeatureMap(np.arange(units), units)
    return dict.fromkeys(layer.own_readers(), feature_map)


def connect(layer, consumer, unit_of_feature=None):
    """States that a plastic layer's units are read by another layer.

    For layers that no `keras.Model` calls (those of a `torch.nn.Module`, a
    `tf.Module` or a function), and for a model whose `call` cannot be traced
    with symbolic inputs. What is stated about a layer replaces what would be
    found, so every consumer of it has to be named (but not its own recurrent
    kernel). A consumer of which nothing
    is stated is an output of the model. Statements are not saved.

    Args:
        layer: Built plastic layer, whose units are read.
        consumer: Built plastic layer that reads them.
        unit_of_feature: Integer array of shape `(features,)`: the unit of
            `layer` that each input feature of `consumer` is, -1 for none. By
            default feature `i` is unit `i`.

    Raises:
        ValueError: If the two do not fit together.

    Example:

    ```python
    model(x)  # Builds the layers.
    keras_plasticity.connect(model.hidden, model.head)
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.01))
    optimizer.build(
        model.hidden.trainable_variables + model.head.trainable_variables
    )
    ```
    """
    for name, each in (("layer", layer), ("consumer", consumer)):
        if not isinstance(each, PlasticLayer) or not each.built:
            raise ValueError(
                "`connect` takes two built layers of "
                f"`keras_plasticity.layers`. {validation.received(name, each)}"
            )
    units = layer.unit_view().size
    if consumer.feature_view() is None:
        raise ValueError(
            "`consumer` must be a layer that reads features. "
            f"{validation.received('consumer', consumer)}"
        )
    features = consumer.feature_view().size
    rule = f"an array of integers from -1 to {units - 1}"
    if unit_of_feature is None:
        unit_of_feature = np.arange(units)
    unit_of_feature = validation.check_array(
        "unit_of_feature", unit_of_feature, rule
    )
    if unit_of_feature.shape != (features,):
        raise ValueError(
            f"Layer '{consumer.name}' reads {features} features, so "
            f"`unit_of_feature` must have the shape ({features},). Received: "
            f"shape {unit_of_feature.shape} (by default one feature for each "
            f"of the {units} units of layer '{layer.name}')"
        )
    if unit_of_feature.dtype.kind not in "iu" or not all(
        -1 <= unit < units for unit in unit_of_feature
    ):
        raise validation.error("unit_of_feature", rule, unit_of_feature)
    feature_map = FeatureMap(unit_of_feature, units)
    _stated.setdefault(layer, {})[consumer] = feature_map


def find_model(layers, variables, optimizer=None):
    """The model that plastic layers belong to, if one was seen.

    Args:
        layers: List of built plastic layers.
        variables: List of variables, all of which the model must have.
        optimizer: Optimizer. The model compiled with it is preferred, whether
            it was called or not; else, of several models that share the
            variables, the one that called the layers last.

    Returns:
        `keras.Model` or other layer; `None` if none was seen.
    """
    wanted = {id(v) for v in variables}

    def has_all(model):
        return wanted <= {id(v) for v in model.variables}

    compiled = _compiled_with(optimizer)
    if compiled is not None and has_all(compiled):
        return compiled
    callers = {id(c): c for layer in layers for c in callers_of(layer)}
    callers = [caller for caller in callers.values() if has_all(caller)]
    for caller in callers:
        if any(each is optimizer for each in _optimizers(caller)):
            return caller
    parts = {
        id(part)
        for caller in callers
        for part in keras_compat.sublayers(caller)
    }
    outermost = [caller for caller in callers if id(caller) not in parts]
    return outermost[-1] if outermost else None


def was_called(model, layers):
    """Whether a model was seen to call one of its plastic layers."""
    return any(model in callers_of(layer) for layer in layers)


def _optimizers(model):
    """Yields a model's optimizer, the one inside it, and so on."""
    each = getattr(model, "optimizer", None)
    while each is not None:
        yield each
        each = getattr(each, "inner_optimizer", None)


def _compiled_with(optimizer):
    """The model last compiled with an optimizer; `None` if there is none."""
    reference = None if optimizer is None else _compiled.get(optimizer)
    return None if reference is None else reference()


def _note_compiled(model):
    for each in _optimizers(model):
        _compiled[each] = weakref.ref(model)


keras_compat.after_compile(_note_compiled)


class _UnitFollower:
    """Follows the units of plastic layers along the calls of a model.

    A layer's key is its `id`.

    Args:
        found: Dict from key to the layer's `Connections`, which are filled in.
        stated: Set of the keys of layers whose consumers a user has stated.

    Attributes:
        reason_if_not_called: String, why nothing is known of a layer that is
            not called.
    """

    def __init__(self, found, stated):
        self.reason_if_not_called = _NOT_CALLED
        self._found = found
        self._stated = stated
        # The keys of those that a user has named as consumers.
        self._connected = {
            id(consumer) for key in stated for consumer in found[key].consumers
        }
        # What each value carries: dict from `Value` to a dict from key to the
        # `Units` it shows, or to the reason why they cannot be followed.
        self._units = {}
        self._lost = {}
        # How often each plastic layer is called, in the order of first calls.
        self._num_calls = {}
        self._tied = TiedWeights([each.layer for each in found.values()])

    def follow(self, traced):
        """Fills in the connections of all layers.

        Args:
            traced: `trace.Trace` of the model.

        Returns:
            List of the keys of the layers that the model calls, in order.
        """
        for call in traced.calls:
            self._note_hidden_layers(call)
            self._tied.note_uses(call)
            for key, units in self._arriving(call).items():
                self._pass_through(call, key, units)
            for key, reason in self._lost_before(call):
                self._lose(call, key, reason)
            self._add_units_of(call)
        for value in traced.outputs:
            for key in [
                *self._units.get(value, {}),
                *self._lost.get(value, {}),
            ]:
                self._found[key].skip_reason = _OUTPUTS
                self._found[
                    key
                ].possible_consumers += traced.possible_consumers.get(value, ())
        self._skip_products()
        for key, connections in self._found.items():
            is_called = key in self._stated or key in self._num_calls
            if not is_called and key not in self._connected:
                connections.error = (
                    connections.error or self.reason_if_not_called
                )
            tied = self._tied.use_of(connections.layer, connections.consumers)
            if tied is not None and connections.skip_reason is None:
                connections.error = connections.error or tied
            _judge(connections, self._num_calls, key in self._stated)
        return list(self._num_calls)

    def _skip_products(self):
        """Skips units that are read as a feature together with others.

        An outer product of the units of two layers has a feature for each pair
        of them: only those of one layer can have it for their own.
        """
        readers = {}
        for connections in self._found.values():
            if not _may_be_replaced(connections):
                continue
            for consumer, feature_map in connections.consumers.items():
                if self._num_calls.get(id(consumer)) != 1:
                    continue
                is_read = feature_map.unit_of_feature >= 0
                for other, is_read_too in readers.get(consumer, ()):
                    if np.any(is_read & is_read_too):
                        connections.skip_reason = (
                            "multiplied with the units of layer "
                            f"'{name_of(other)}', which are replaced, before "
                            f"layer '{name_of(consumer)}' reads them"
                        )
            if _may_be_replaced(connections):
                for consumer, feature_map in connections.consumers.items():
                    is_read = feature_map.unit_of_feature >= 0
                    readers.setdefault(consumer, []).append(
                        (connections.layer, is_read)
                    )

    def _note_hidden_layers(self, call):
        """Notes the layers inside one that cannot be looked into."""
        if call.error is not None:
            reason = f"cannot be traced: {call.error}"
        elif not isinstance(call.operation, keras.layers.TimeDistributed):
            return
        elif time_steps.applied_layer(call) is not None:
            return
        else:
            reason = "calls it once for each time step"
        outer = rules.describe(call.operation)
        for part in keras_compat.sublayers(call.operation):
            connections = self._found.get(id(part))
            if connections is not None:
                connections.error = f"it is inside {outer}, which {reason}"

    def _arriving(self, call):
        """Dict from key to a dict from each input to the `Units` it shows."""
        arriving = {}
        for value in call.inputs:
            for key, units in self._units.get(value, {}).items():
                arriving.setdefault(key, {})[value] = units
        return arriving

    def _pass_through(self, call, key, units):
        """Notes what a call makes of the units of one layer."""
        connections = self._found[key]
        try:
            if time_steps.applied_layer(call) is not None:
                _add_consumer(connections, call, units)
                return
            outputs = rules.propagate(call, units)
            _add_parameters(connections, call, units)
        except rules.Skip as reason:
            connections.skip_reason = connections.skip_reason or str(reason)
            return
        except rules.Refusal as reason:
            self._lose(call, key, str(reason))
            return
        connections.through.append(call.operation)
        for value, each in outputs.items():
            self._units.setdefault(value, {})[key] = each

    def _lost_before(self, call):
        """Pairs of key and reason of the units lost on the way to a call."""
        return [
            pair
            for value in call.inputs
            for pair in self._lost.get(value, {}).items()
        ]

    def _lose(self, call, key, reason):
        """Units cannot be followed through a call.

        That is an error as soon as anything with weights reads the result, but
        not where it is only returned: a softmax at the end of a model.
        """
        if rules.has_weights(call):
            connections = self._found[key]
            connections.error = connections.error or reason
            return
        for value in call.outputs:
            self._lost.setdefault(value, {}).setdefault(key, reason)

    def _add_units_of(self, call):
        """Counts the call of a plastic layer; its output shows its units."""
        layer = time_steps.applied_layer(call)
        key = id(layer)
        if key not in self._found:
            return
        self._num_calls[key] = self._num_calls.get(key, 0) + 1
        if key in self._stated:
            return
        for output in call.outputs:  # A recurrent layer may return states.
            self._units.setdefault(output, {})[key] = rules.Units.of_outputs(
                time_steps.axes_of_call(call, layer.unit_axes, output),
                output.shape,
                layer.unit_view().size,
            )


def _may_be_replaced(connections):
    return connections.layer.replaceable and (
        connections.error is connections.skip_reason is None
    )


def _add_consumer(connections, call, units):
    consumer = time_steps.applied_layer(call)
    if consumer.feature_view() is None:
        raise rules.Refusal(f"{rules.describe(consumer)} takes indices")
    rules.check_arguments(call, units)
    (value,) = units
    axes = time_steps.axes_of_call(call, consumer.feature_axes, value)
    read = units[value].over(axes, value.shape)
    if read is None:
        raise rules.Refusal(
            f"{rules.describe(consumer)} reads another axis than that of the "
            "units"
        )
    if consumer in connections.consumers:
        return  # Called twice, which is judged at the end.
    connections.consumers[consumer] = _feature_map(
        connections, consumer, read, axes
    )


def _add_parameters(connections, call, units):
    if not rules.is_unit_parameter_layer(call.operation):
        return
    (value,) = units
    each = units[value]
    feature_map = _feature_map(connections, call.operation, each, each.axes)
    for variable, initializer, axes in rules.unit_parameters(
        call.operation, each, len(value.shape)
    ):
        connections.parameters.append(
            UnitParameter(variable, initializer, axes, feature_map)
        )


def _feature_map(connections, layer, units, axes):
    try:
        return FeatureMap(
            units.in_order(axes),
            connections.layer.unit_view().size,
            units.differs,
        )
    except ValueError as error:
        raise rules.Refusal(
            f"{rules.describe(layer)} does not read every unit alike"
        ) from error


def _judge(connections, num_calls, is_stated):
    """Decides whether a layer's units can be replaced."""
    layer = connections.layer
    shared = _shared_layer(connections, num_calls)
    if shared is not None and not is_stated:
        connections.is_shared = True
        connections.error = (
            f"plastic layer '{name_of(shared)}' is called "
            f"{num_calls[id(shared)]} "
            "times in the model. Which of its calls a statistic stems from "
            "could not be told"
        )
    elif len(connections.consumers) > len(layer.own_readers()):
        connections.error = _activation_error(layer) or connections.error
    elif connections.error is None:
        connections.skip_reason = connections.skip_reason or _UNREAD
    if not layer.replaceable:
        connections.skip_reason = (
            connections.skip_reason or connections.error or "replaceable=False"
        )


def _shared_layer(connections, num_calls):
    """A layer or consumer that is called more than once; `None` if none is."""
    for layer in [connections.layer, *connections.consumers]:
        if num_calls.get(id(layer), 0) > 1:
            return layer
    return None


def _activation_error(layer):
    """Why an activation keeps units from being replaced; `None` if none."""
    for kind in ("activation", "recurrent_activation"):
        activation = getattr(layer, kind, None)
        if rules.mixes_units(activation):
            name = getattr(activation, "__name__", str(activation))
            return (
                f"its {kind.replace('_', ' ')} `{name}` mixes units, so that "
                "none of them can be replaced alone"
            )
    return None


def check(found):
    """Raises if units could not be followed; warns if some are not replaced.

    Args:
        found: List of `Connections`.

    Raises:
        ValueError: If units could not be followed. It names the layer, the
            reason and the remedy.
    """
    skipped = []
    for connections in found:
        layer = connections.layer
        if not layer.replaceable:
            continue
        if connections.error is not None:
            raise ValueError(
                f"The units of plastic layer '{name_of(layer)}' cannot be "
                "followed to the layers that read them: "
                f"{connections.error}. {_remedy(layer)} to leave its units "
                "alone. `keras_plasticity.inspect(model)` shows all layers."
            )
        if connections.possible_consumers:
            _warn_of_possible_consumers(connections)
        if connections.skip_reason not in (None, _OUTPUTS, _UNREAD):
            skipped.append(f"'{name_of(layer)}': {connections.skip_reason}")
    if skipped:
        more = len(skipped) - 3
        shown = skipped[:3] + ([f"and {more} more"] if more > 0 else [])
        warnings.warn(
            f"The units of {len(skipped)} plastic layers will not be "
            f"replaced ({'; '.join(shown)}). `keras_plasticity.inspect(model)` "
            "shows all; `replaceable=False` says it is meant."
        )


def _remedy(layer):
    attention, _, projection = name_of(layer).rpartition("/")
    if attention:
        return f"Give '{attention}' `replaceable=False`"
    return (
        f"Use `keras.layers.{type(layer).__name__}` for '{layer.name}', or "
        "give it `replaceable=False`"
    )


def _warn_of_possible_consumers(connections):
    name = connections.layer.name
    names = dict.fromkeys(x.name for x in connections.possible_consumers)
    readers = " and ".join(f"'{each}'" for each in names)
    warnings.warn(
        f"The units of layer '{name}' will not be replaced: they are taken for "
        "outputs, as no model was seen to call both this layer and "
        f"{readers}. Where {readers} of another model reads the units, state "
        "it by `keras_plasticity.connect(layer, consumer)`, or let one "
        "`keras.Model` call both models. `replaceable=False` for "
        f"'{name}' says that they are outputs."
    )
