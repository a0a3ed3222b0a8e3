"""Who reads the units of each plastic layer, and may they be replaced."""

import dataclasses
import warnings
import weakref

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity.graph import rules
from keras_plasticity.graph import trace
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.feature_map import FeatureMap

_OUTPUTS = "outputs of the model"
_UNREAD = "read by no layer"

# Connections that a user has stated, by producer.
_stated = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class UnitParameter:
    """A parameter between a unit and its consumer, such as a gamma.

    Attributes:
        variable: `keras.Variable`.
        initializer: Its Keras initializer.
        axis: Integer, the axis of the variable that counts features.
        feature_map: `FeatureMap` from these to units.
    """

    variable: keras.Variable
    initializer: object
    axis: int
    feature_map: FeatureMap


@dataclasses.dataclass
class Connections:
    """What becomes of the units of one plastic layer.

    Attributes:
        layer: The plastic layer.
        consumers: Dict from each plastic layer that reads its units to a
            `FeatureMap`, in the order of the model.
        parameters: List of `UnitParameter`s on the way.
        through: List of the layers and operations on the way.
        left_alone: String, why none of its units can be replaced, which is
            no error; `None` if they can.
        problem: String, why they could not be followed; `None` if they could.
    """

    layer: PlasticLayer
    consumers: dict
    parameters: list
    through: list
    left_alone: str | None = None
    problem: str | None = None


def find_connections(
    layers, model=None, inputs=None, variables=()
) -> list[Connections]:
    """Finds who reads the units of plastic layers.

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
        ValueError: If the model cannot be traced.
    """
    found = {id(layer): Connections(layer, {}, [], []) for layer in layers}
    stated = [layer for layer in layers if layer in _stated]
    for layer in stated:
        found[id(layer)].consumers.update(_stated[layer])
    if len(stated) < len(layers):
        try:
            if model is None:
                traced = trace.trace_around(layers, variables)
            else:
                traced = trace.trace_model(model, inputs)
        except ValueError:
            # What a user has stated stands in for what cannot be traced.
            if not stated:
                raise
            traced = trace.Trace([], set())
        order = _follow_units(traced, found, skip=set(map(id, stated)))
        found = {**{key: found[key] for key in order}, **found}
    return list(found.values())


def connect(layer, consumer, unit_of_feature=None):
    """States that a plastic layer's units are read by another.

    For a model whose `call` cannot be traced with symbolic inputs. What is
    stated of a layer replaces what would be found: every consumer of it has to
    be named. A statement is not saved with the model.

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
    model.compile(optimizer=ContinualBackprop(keras.optimizers.SGD(0.01)))
    ```
    """
    for each in (layer, consumer):
        if not isinstance(each, PlasticLayer) or not each.built:
            raise ValueError(
                "`connect` takes two built layers of "
                f"`keras_plasticity.layers`. Received: {each!r}"
            )
    units = layer.unit_view().size
    features = consumer.feature_view().size
    if unit_of_feature is None:
        unit_of_feature = np.arange(units)
    unit_of_feature = np.asarray(unit_of_feature)
    if unit_of_feature.shape != (features,):
        raise ValueError(
            f"Layer '{consumer.name}' reads {features} features, so "
            f"`unit_of_feature` must have the shape ({features},). Received: "
            f"shape {unit_of_feature.shape} (by default one feature for each "
            f"of the {units} units of layer '{layer.name}')"
        )
    feature_map = FeatureMap(unit_of_feature, units)
    _stated.setdefault(layer, {})[consumer] = feature_map


def find_model(layers, variables, optimizer=None):
    """The model that plastic layers are part of, if it was seen to call them.

    Args:
        layers: List of built plastic layers.
        variables: List of variables, all of which the model must have.
        optimizer: Optimizer. A model compiled with it is preferred; else, of
            several models that share the variables, the one called last.

    Returns:
        `keras.Model` or other layer; `None` if none was seen.
    """
    wanted = {id(v) for v in variables}
    callers = {id(c): c for layer in layers for c in layer.statistics.callers}
    callers = [
        caller
        for caller in callers.values()
        if wanted <= {id(v) for v in caller.variables}
    ]
    for caller in callers:
        if optimizer is not None and _uses(caller, optimizer):
            return caller
    parts = {
        id(part)
        for caller in callers
        for part in keras_compat.sublayers(caller)
    }
    outermost = [caller for caller in callers if id(caller) not in parts]
    return outermost[-1] if outermost else None


def _uses(model, optimizer):
    each = getattr(model, "optimizer", None)
    while each is not None:
        if each is optimizer:
            return True
        each = getattr(each, "inner_optimizer", None)
    return False


def _follow_units(traced, found, skip):
    """Fills in `found` by following units along the calls of a model.

    Returns:
        The keys of `found` that the model calls, in order.
    """
    # For each value, which layers' units it shows, and where; and of which it
    # is made in a way that is not known, with the reason.
    shown = {}
    unclear = {}
    calls = {}
    for call in traced.calls:
        reader = call.operation
        if call.problem is not None:
            _note_hidden(found, reader, f"cannot be traced: {call.problem}")
        elif isinstance(reader, keras.layers.TimeDistributed):
            _note_hidden(found, reader, "calls it once for each time step")
        is_plastic = isinstance(reader, PlasticLayer)
        for key in {key for v in call.inputs for key in shown.get(v, {})}:
            connections = found[key]
            units = {
                v: shown[v][key] for v in call.inputs if key in shown.get(v, {})
            }
            try:
                if is_plastic:
                    _connect(connections, reader, call, units)
                    continue
                passed = rules.pass_on(call, units)
                _note_parameters(connections, call, units)
            except rules.LeftAlone as reason:
                connections.left_alone = connections.left_alone or str(reason)
                continue
            except rules.Refusal as reason:
                _note_unclear(connections, key, call, str(reason), unclear)
                continue
            connections.through.append(call.operation)
            for value, each in passed.items():
                shown.setdefault(value, {})[key] = each
        for value in call.inputs:
            for key, reason in unclear.get(value, {}).items():
                _note_unclear(found[key], key, call, reason, unclear)
        if is_plastic and id(reader) in found:
            calls[id(reader)] = calls.get(id(reader), 0) + 1
            if id(reader) not in skip:
                (output,) = call.outputs
                units = np.arange(reader.unit_view().size)
                axis = reader.unit_axis(output)
                shown.setdefault(output, {})[id(reader)] = rules.Units(
                    axis, units
                )
    for value in traced.outputs:
        for key in {**shown.get(value, {}), **unclear.get(value, {})}:
            found[key].left_alone = _OUTPUTS
    for key, connections in found.items():
        _judge(connections, calls, key in skip)
    return calls


def _note_unclear(connections, key, call, reason, unclear):
    """Units meet something unknown.

    That is a problem as soon as anything with weights reads the result, but
    not where it is only returned: a softmax at the end of a model.
    """
    if rules.has_weights(call):
        connections.problem = connections.problem or reason
        return
    for value in call.outputs:
        unclear.setdefault(value, {}).setdefault(key, reason)


def _note_hidden(found, layer, reason):
    """Notes the layers inside one that cannot be looked into."""
    for part in keras_compat.sublayers(layer):
        if id(part) in found:
            found[
                id(part)
            ].problem = f"it is inside {rules.describe(layer)}, which {reason}"


def _connect(connections, reader, call, units):
    (value,) = units
    if reader.feature_axis(value) != units[value].axis:
        raise rules.Refusal(
            f"{rules.describe(reader)} reads another axis than that of the "
            "units"
        )
    if reader in connections.consumers:
        return  # Called twice, which is judged at the end.
    connections.consumers[reader] = _feature_map(
        connections, reader, units[value]
    )


def _feature_map(connections, reader, units):
    try:
        return FeatureMap(units.unit, connections.layer.unit_view().size)
    except ValueError as error:
        raise rules.Refusal(
            f"{rules.describe(reader)} does not read every unit alike"
        ) from error


def _note_parameters(connections, call, units):
    if not rules.is_unit_parameter_layer(call.operation):
        return
    (value,) = units
    feature_map = _feature_map(connections, call.operation, units[value])
    for variable, initializer, axis in rules.unit_parameters(
        call.operation, units[value], len(value.shape)
    ):
        connections.parameters.append(
            UnitParameter(variable, initializer, axis, feature_map)
        )


def _judge(connections, calls, is_stated):
    """Draws the conclusion from all that was found of one layer."""
    layer = connections.layer
    times = {
        each: calls.get(id(each), 0) for each in [layer, *connections.consumers]
    }
    shared = [each for each, count in times.items() if count > 1]
    if shared and not is_stated:
        connections.problem = (
            f"plastic layer '{shared[0].name}' is called {times[shared[0]]} "
            "times in the model. Which of its calls a statistic stems from "
            "could not be told"
        )
    elif times[layer] == 0 and not is_stated:
        connections.problem = (
            connections.problem or "the model does not call it"
        )
    elif connections.consumers and rules.mixes_units(
        getattr(layer, "activation", None)
    ):
        activation = layer.activation
        name = getattr(activation, "__name__", str(activation))
        connections.problem = (
            f"its activation `{name}` mixes units, so that none of them can be "
            "replaced alone"
        )
    elif not connections.consumers and connections.problem is None:
        connections.left_alone = connections.left_alone or _UNREAD
    if not layer.replaceable:
        reason = connections.left_alone or connections.problem
        connections.left_alone = reason or "replaceable=False"


def check(found):
    """Says which units could not be followed, or will not be replaced.

    Args:
        found: List of `Connections`.

    Raises:
        ValueError: If units could not be followed: with the layer, the
            problem and the remedy.
    """
    left_alone = []
    for connections in found:
        layer = connections.layer
        if not layer.replaceable:
            continue
        if connections.problem is not None:
            raise ValueError(
                f"The units of plastic layer '{layer.name}' cannot be followed "
                f"to the layers that read them: {connections.problem}. Use "
                f"`keras.layers.{type(layer).__name__}` for '{layer.name}', or "
                "give it `replaceable=False` to leave its units alone. "
                "`keras_plasticity.inspect(model)` shows all layers."
            )
        if connections.left_alone not in (None, _OUTPUTS, _UNREAD):
            left_alone.append(f"'{layer.name}': {connections.left_alone}")
    if left_alone:
        more = len(left_alone) - 3
        shown = left_alone[:3] + ([f"and {more} more"] if more > 0 else [])
        warnings.warn(
            f"The units of {len(left_alone)} plastic layers will not be "
            f"replaced ({'; '.join(shown)}). `keras_plasticity.inspect(model)` "
            "shows all; `replaceable=False` says it is meant."
        )
