"""Finds the activations of a model's layers, and computes them."""

import collections
import dataclasses

import keras

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.graph import trace
from keras_plasticity.layers import activations
from keras_plasticity.layers.batch_normalization import BatchNormalization
from keras_plasticity.layers.injectable import Injectable
from keras_plasticity.layers.online_normalization import OnlineNormalization

# What may stand between a layer and its non-linearity.
_BEFORE_ACTIVATION = (
    keras.layers.Add,
    keras.layers.AlphaDropout,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.GroupNormalization,
    keras.layers.Identity,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    BatchNormalization,
    OnlineNormalization,
)
_ACTIVATION_LAYERS = {
    keras.layers.ELU: "elu",
    keras.layers.LeakyReLU: "leaky_relu",
    keras.layers.PReLU: "prelu",
    keras.layers.ReLU: "relu",
    keras.layers.Softmax: "softmax",
    activations.AdaLin: "adalin",
    activations.ConcatenatedELU: "concatenated_elu",
    activations.CReLU: "crelu",
    activations.DeepFourier: "deep_fourier",
    activations.Rational: "rational",
    activations.SmoothLeaky: "smooth_leaky",
}
# By the names of their operations: `keras.ops.relu` makes a `Relu`.
_ACTIVATION_OPERATIONS = {
    name.replace("_", ""): name
    for name in dir(keras.activations)
    if not name.startswith("_")
    and name not in ("deserialize", "get", "linear", "serialize")
}


@dataclasses.dataclass
class Activation:
    """The activations of one layer.

    Attributes:
        name: String, the layer's name.
        value: The `trace.Value` that holds them.
        unit_axis: Integer, the axis that counts the units.
        function: String, the name of the non-linearity that made them; `None`
            if there is none.
    """

    name: str
    value: trace.Value
    unit_axis: int
    function: str | None


def layer_names(model) -> dict:
    """Unique names of a model's sublayers.

    Args:
        model: A built `keras.Model`.

    Returns:
        Dict from the `id` of each sublayer at any depth to its name or, where
        several have the same, to its path.
    """
    layers = keras_compat.sublayers(model)
    count = collections.Counter(layer.name for layer in layers)
    return {
        id(layer): layer.name if count[layer.name] == 1 else layer.path
        for layer in layers
    }


def find_activations(model, traced, names=None) -> list[Activation]:
    """Finds the activations of a model's layers.

    The activations of a layer with a kernel are its outputs after its
    non-linearity, which may be a separate call, behind a normalization, a
    dropout or a sum. Without a non-linearity they are the layer's outputs.
    Activations after a sum of several layers are those of the layer called
    last. Of a layer that is called more than once, the first call counts.

    Args:
        model: A built `keras.Model`; `None` if it is not known.
        traced: Its `trace.Trace`, with whole leaves.
        names: List of the names of layers. By default all layers with a
            kernel whose outputs lead to another such layer.

    Returns:
        List of `Activation`s, in the order of the calls.

    Raises:
        ValueError: If there is no layer of a name.
    """
    calls = _first_calls(model, traced)
    if names is None:
        frozen = set() if model is None else _frozen(model)
        chosen = {
            name: call
            for name, call in _hidden_layers(calls, traced).items()
            if id(call.operation) not in frozen
        }
        # Of several layers that meet in a sum, the last call has the value.
        by_value = {}
        for found in _find(chosen, traced):
            by_value.pop(found.value, None)
            by_value[found.value] = found
        return list(by_value.values())
    unknown = [name for name in names if name not in calls]
    if unknown:
        raise ValueError(
            "`layers` must be names of layers that the model calls. Received: "
            f"{unknown}. Known: {list(calls)}"
        )
    chosen = {name: call for name, call in calls.items() if name in set(names)}
    return _find(chosen, traced)


def _first_calls(model, traced):
    """Dict from the name of each layer that is called to its first call."""
    names = {} if model is None else layer_names(model)
    calls = {}
    for call in traced.calls:
        if isinstance(call.operation, keras.Layer):
            layer = call.operation
            calls.setdefault(names.get(id(layer), layer.name), call)
    return calls


def _hidden_layers(calls, traced):
    """Of some calls by name, those of hidden layers with a kernel."""
    hidden = _outputs_of_hidden_layers(traced.calls)
    return {
        name: call
        for name, call in calls.items()
        if has_kernel(call.operation) and not hidden.isdisjoint(call.outputs)
    }


def _find(calls, traced):
    """List of the `Activation`s of some calls by name."""
    consumers = collections.defaultdict(list)
    producers = {}
    for call in traced.calls:
        for value in call.inputs:
            consumers[value].append(call)
        for value in call.outputs:
            producers[value] = call
    found = []
    for name, call in calls.items():
        value, function = _after_activation(call, consumers, traced.outputs)
        axis = _unit_axis(value, producers)
        found.append(Activation(name, value, axis, function))
    return found


def run(traced, inputs, wanted, take, state_mapping=()):
    """Computes values of a trace, as a model does in inference.

    The model's state does not change. A layer that the model itself calls with
    `training=True` is called with `training=False`, too.

    Args:
        traced: A `trace.Trace`.
        inputs: List of arrays, the model's inputs.
        wanted: Set of `trace.Value`s.
        take: Function that is called with each of them and its tensor.
        state_mapping: List of pairs of a variable and the value that it has
            here. Defaults to the variables' own values.
    """
    scope = keras.StatelessScope(state_mapping=state_mapping)
    with scope, backend.no_gradient():
        tensors = {
            value: keras.ops.convert_to_tensor(array)
            for value, array in zip(traced.inputs, inputs)
        }
        compute(calls_up_to(traced.calls, wanted), tensors, wanted, take)


def compute(calls, tensors, wanted, take):
    """Makes the calls of a trace, as a model does in inference.

    Args:
        calls: List of `trace.Call`s.
        tensors: Dict from each `trace.Value` that is known to its tensor.
        wanted: Set of `trace.Value`s.
        take: Function that is called with each of them and its tensor.
    """
    tensors = dict(tensors)
    uses = collections.Counter(v for call in calls for v in set(call.inputs))
    for call in calls:
        args, kwargs = keras.tree.map_structure(
            lambda x: tensors[x] if isinstance(x, trace.Value) else x,
            (call.args, call.kwargs),
        )
        if "training" in kwargs:
            kwargs["training"] = False
        outputs = call.operation(*args, **kwargs)
        for value, tensor in zip(call.outputs, keras.tree.flatten(outputs)):
            if value in wanted:
                take(value, tensor)
            tensors[value] = tensor
        for value in set(call.inputs):
            uses[value] -= 1
            if not uses[value]:
                del tensors[value]  # It may be large.


def has_kernel(layer) -> bool:
    """Whether a layer, or a sublayer of it, has a kernel."""
    return bool(kernels(layer))


def kernels(layer) -> list:
    """The kernels of a layer, or of its sublayers, as variables.

    Without those that are frozen in an `Injectable`.
    """
    frozen = _frozen(layer) if isinstance(layer, keras.Layer) else ()
    return [
        variable
        for variable in getattr(layer, "variables", ())
        if variable.name.endswith("kernel")
        and len(variable.shape) > 1
        and id(variable) not in frozen
    ]


def _frozen(layer):
    """The ids of frozen layers in an `Injectable`, and of their variables."""
    return {
        id(each)
        for part in keras_compat.in_order(layer)
        if isinstance(part, Injectable)
        for frozen in (part.old, part.new)
        for each in (*keras_compat.in_order(frozen), *frozen.variables)
    }


def _outputs_of_hidden_layers(calls):
    """The values that lead to a layer with a kernel."""
    values = set()
    for call in reversed(calls):
        if has_kernel(call.operation) or not values.isdisjoint(call.outputs):
            values.update(call.inputs)
    return values


def _after_activation(call, consumers, outputs):
    """The value after a layer's non-linearity, and the name of the latter."""
    first = value = call.outputs[0]
    name = _activation_name(call.operation)
    if name is not None or not has_kernel(call.operation):
        return value, name
    while len(consumers[value]) == 1 and value not in outputs:
        (consumer,) = consumers[value]
        if has_kernel(consumer.operation):
            break  # Its non-linearity is its own.
        name = _activation_name(consumer.operation)
        if name is not None:
            return consumer.outputs[0], name
        if not _may_precede_activation(consumer.operation):
            break
        value = consumer.outputs[0]
    return first, None


def _may_precede_activation(operation):
    is_sum = keras_compat.is_stock_operation(operation) and (
        type(operation).__name__ == "Add"
    )
    return is_sum or isinstance(operation, _BEFORE_ACTIVATION)


def _activation_name(operation):
    """The name of the non-linearity at an operation's end, if it has one."""
    if type(operation) in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[type(operation)]
    if keras_compat.is_stock_operation(operation):
        return _ACTIVATION_OPERATIONS.get(type(operation).__name__.lower())
    function = getattr(operation, "activation", None)
    if function is None or function is keras.activations.linear:
        return None
    return getattr(function, "__name__", type(function).__name__)


def _unit_axis(value, producers):
    """The last axis, or the first after that of the examples.

    The nearest layer with a data format decides.
    """
    rank = len(value.shape)
    while rank > 2 and value in producers:
        call = producers[value]
        data_format = getattr(call.operation, "data_format", None)
        if data_format is not None:
            return 1 if data_format == "channels_first" else rank - 1
        if has_kernel(call.operation) or not call.inputs:
            break
        value = call.inputs[0]
        if len(value.shape) != rank:
            break
    return rank - 1


def calls_up_to(calls, wanted, known=()):
    """The calls that are needed for some values.

    Args:
        calls: List of `trace.Call`s.
        wanted: Set of `trace.Value`s.
        known: Set of `trace.Value`s that need not be computed.

    Returns:
        List of `trace.Call`s.
    """
    needed = []
    values = set(wanted) - set(known)
    for call in reversed(calls):
        if not values.isdisjoint(call.outputs):
            needed.append(call)
            values.update(set(call.inputs) - set(known))
    return needed[::-1]
