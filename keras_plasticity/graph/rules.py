"""Propagation rules: where the output of an operation carries a layer's units.

A `Units` says along which axes of a tensor the units of a layer lie, and in
which order. A rule takes a call and, for one layer, the `Units` of each input,
and returns those of each output, or raises `Refusal` or `Skip`. An operation
without a rule is refused, never guessed.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import layers
from keras_plasticity.graph import contractions
from keras_plasticity.graph import own_rules
from keras_plasticity.graph.own_rules import check_axes
from keras_plasticity.graph.own_rules import keep_units
from keras_plasticity.graph.units import Refusal
from keras_plasticity.graph.units import Skip
from keras_plasticity.graph.units import Units
from keras_plasticity.graph.units import describe


def mixes_units(activation):
    """Whether an activation's output for a unit depends on other units."""
    if activation is None or activation in _KNOWN_ELEMENTWISE:
        return False
    if activation in _KNOWN_MIXING:
        return True
    # A user's function is tried out. Row `i` of the second batch differs
    # from the first batch in unit `i` alone.
    before = np.linspace(-2.0, 2.5, 4, dtype="float32")[None].repeat(4, 0)
    after = before + 0.7 * np.eye(4, dtype="float32")
    try:
        with backend.compute_now():
            before, after = (
                ops.convert_to_numpy(activation(ops.convert_to_tensor(x)))
                for x in (before, after)
            )
    except Exception:  # Whatever a user's code may raise.
        return True
    change = after - before
    if change.shape != (4, 4):
        return True
    return bool(np.any(np.abs(change[~np.eye(4, dtype=bool)]) > 1e-6))


def propagate(call, units):
    """Propagates the units of one layer through a call.

    Args:
        call: `Call`.
        units: Dict from `Value` to `Units`, for each input that shows any.

    Returns:
        Dict from `Value` to `Units`, for each output that shows any.

    Raises:
        Refusal: If no rule says what becomes of the units.
        Skip: If the units cannot be told apart from others.
    """
    if call.error is not None:
        raise Refusal(
            f"'{call.operation.name}' (`{type(call.operation).__name__}`) "
            f"cannot be traced with symbolic inputs: {call.error}"
        )
    rule = _find_rule(call.operation)
    plastic_name = _PLASTIC_NAMES.get(type(call.operation))
    if plastic_name is not None:
        raise Refusal(
            f"{describe(call.operation)} is not plastic, and the contribution "
            "of a unit is measured by the layer that reads it. Use "
            f"`keras_plasticity.layers.{plastic_name}` for it too (as the "
            "last layer of a model, it only observes)"
        )
    if rule is None:
        raise Refusal(
            f"{describe(call.operation)} is not known to keep units apart"
        )
    result = rule(call, units)
    if own_rules.has_rule(call.operation):
        own_rules.check_result(call, result)
    return result


def check_arguments(call, units):
    """Refuses units that a plastic layer takes as another argument.

    Args:
        call: `Call` of a plastic layer.
        units: Dict from `Value` to `Units`, for each input that shows any.

    Raises:
        Skip: If they are the state that a recurrent layer begins with, and
            which it carries on.
        Refusal: If they are anything else but its inputs.
    """
    args, kwargs = call.args, dict(call.kwargs)
    if args:
        first, *args = args
    else:
        first = kwargs.pop("sequences", None) or kwargs.pop("inputs", None)
    states = args[:1] or kwargs.pop("initial_state", None)
    if not units.keys().isdisjoint(keras.tree.flatten(states)):
        raise Skip(f"carried on as the state of {describe(call.operation)}")
    if set(units) != set(keras.tree.flatten(first)):
        raise Refusal(
            f"{describe(call.operation)} takes units as another argument than "
            "its inputs"
        )


def has_weights(call):
    """Whether a call multiplies its inputs by weights, or by an array."""
    if getattr(call.operation, "variables", ()):
        return True
    flat = keras.tree.flatten((call.args, call.kwargs))
    return any(
        len(getattr(x, "shape", ())) > 1
        for x in flat
        if not isinstance(x, type(call.outputs[0]))
    )


def is_unit_parameter_layer(operation):
    """Whether a layer between units and consumer has parameters per unit."""
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    return type(operation) in (
        *_NORMALIZATIONS,
        keras.layers.PReLU,
        layers.AdaLin,
    )


def unit_parameters(operation, units, rank):
    """The parameters of a layer that belong to each unit.

    Args:
        operation: A layer with `is_unit_parameter_layer`.
        units: `Units` of its input.
        rank: Integer, the number of axes of its input.

    Returns:
        List of tuples `(variable, initializer, axes)`, the axes of the variable
        in the order of those of the units.
    """
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
        units = Units(tuple(axis - 1 for axis in units.axes), units.unit)
        rank -= 1
    if isinstance(operation, keras.layers.PReLU):
        # There is no batch axis.
        axes = tuple(axis - 1 for axis in units.axes)
        if tuple(operation.alpha.shape[axis] for axis in axes) != (
            units.unit.shape
        ):
            return []  # One slope for all units.
        return [(operation.alpha, operation.alpha_initializer, axes)]
    if isinstance(operation, layers.AdaLin):
        if units.axes != (operation.axis % rank,):
            return []  # One slope for all units.
        return [(operation.alpha, operation.alpha_initializer, (0,))]
    ones = keras.initializers.Ones()
    zeros = keras.initializers.Zeros()
    result = []
    for name, default in (("gamma", ones), ("scale", ones), ("beta", zeros)):
        variable = getattr(operation, name, None)
        if not isinstance(variable, keras.Variable):
            continue  # None, or the flag `scale=True`.
        initializer = getattr(operation, f"{name}_initializer", default)
        axes = (0,)
        if len(variable.shape) > 1:
            of_variable = [a % rank for a in operation.axis]
            axes = tuple(of_variable.index(axis) for axis in units.axes)
        result.append((variable, initializer, axes))
    return result


# The rules; the tables below say which operations each of them is for.


def _activation(call, units):
    activation = getattr(call.operation, "activation", None)
    if mixes_units(activation):
        name = getattr(activation, "__name__", str(activation))
        raise Refusal(
            f"the activation `{name}` of {describe(call.operation)} mixes units"
        )
    return keep_units(call, units)


def _normalization(call, units):
    (value,) = units
    axis = getattr(call.operation, "axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    axes = [a % len(value.shape) for a in axes]
    if not set(units[value].axes) <= set(axes):
        raise Refusal(
            f"{describe(call.operation)} has no parameters along the axis of "
            f"the units. Received: axis={axis}"
        )
    return keep_units(call, units)


def _channels(call, units):
    """Positions are pooled, padded, cropped or repeated; channels stay."""
    (value,) = units
    rank = len(value.shape)
    default = "channels_last"
    first = getattr(call.operation, "data_format", default) == "channels_first"
    axis = 1 if first else rank - 1
    if units[value].axes != (axis,):
        raise Refusal(f"{describe(call.operation)} moves the axis of the units")
    (output,) = call.outputs
    axis = 1 if first else len(output.shape) - 1
    return {output: dataclasses.replace(units[value], axes=(axis,))}


def _reduction(call, units):
    """A mean or the like over some axes."""
    (value,) = units
    rank = len(value.shape)
    axes = getattr(call.operation, "axis", None)
    if axes is None:
        axes = range(rank)
    axes = [axes] if isinstance(axes, int) else axes
    axes = [axis % rank for axis in axes]
    kept = tuple(axis for axis in units[value].axes if axis not in axes)
    each = units[value].over(kept, value.shape) if kept else None
    if each is None:
        raise Refusal(f"{describe(call.operation)} adds units up")
    if not call.operation.keepdims:
        kept = tuple(axis - sum(a < axis for a in axes) for axis in kept)
    (output,) = call.outputs
    return {output: dataclasses.replace(each, axes=kept)}


def _movement(call, units):
    """Elements are moved, copied or dropped, and keep their values.

    So the operation itself tells where they go: it is run on an array that
    holds, for each element, 1 + the index of its unit.
    """
    if any(value not in units for value in call.inputs):
        raise Skip(f"merged with others by {describe(call.operation)}")
    labels = {
        value: _labels(value, units[value], _unknown_length(call, value))
        for value in call.inputs
    }
    try:
        moved = _run_on_labels(call, labels)
    except Exception as error:  # A size that only the data would tell.
        raise Refusal(
            f"{describe(call.operation)} could not be tried out: {error}"
        ) from error
    differs = len(labels) > 1 or any(each.differs for each in units.values())
    result = {}
    for output, label in zip(call.outputs, moved):
        if np.all(label == 0):
            continue
        axes = _axes_of_units(label)
        if 0 in axes or any(output.shape[axis] is None for axis in axes):
            raise Refusal(f"{describe(call.operation)} takes units apart")
        first = tuple(
            slice(None) if axis in axes else 0 for axis in range(label.ndim)
        )
        result[output] = Units(axes, label[first] - 1, differs)
    return result


def _unknown_length(call, value):
    """What to take for the length of axes that is not known."""
    shapes = [value.shape[1:], call.outputs[0].shape[1:]]
    if [shape.count(None) for shape in shapes] == [1, 0]:
        known = math.prod(size for size in shapes[0] if size is not None)
        length, rest = divmod(math.prod(shapes[1]), known)
        if rest == 0 and length > 0:
            return length  # Of a `Reshape`.
    return 2


def _labels(value, units, length):
    """Array of the shape of a value: for each element, 1 + its unit."""
    shape = [1 if value.shape[0] is None else value.shape[0]]
    shape += [length if size is None else size for size in value.shape[1:]]
    along = [n if i in units.axes else 1 for i, n in enumerate(shape)]
    unit = (units.unit + 1).astype("float32").reshape(along)
    return np.broadcast_to(unit, shape).copy()


def _run_on_labels(call, labels):
    """Runs a call's operation on labels; returns those of each output."""

    def fill(x):
        if not isinstance(x, type(call.outputs[0])):
            return x
        return ops.convert_to_tensor(labels[x], dtype="float32")

    with backend.compute_now():
        args, kwargs = keras.tree.map_structure(fill, (call.args, call.kwargs))
        moved = call.operation.call(*args, **kwargs)
    return [
        np.rint(ops.convert_to_numpy(label)).astype("int32")
        for label in keras.tree.flatten(moved)
    ]


def _axes_of_units(label):
    """The axes along which labels differ."""
    axes = tuple(
        axis
        for axis in range(label.ndim)
        if np.any(label != label.take([0], axis=axis))
    )
    if axes or label.ndim == 1:
        return axes or (0,)
    # A single unit: any axis may count it, rather one of length 1.
    ones = [i for i in range(1, label.ndim) if label.shape[i] == 1]
    return (ones[-1] if ones else label.ndim - 1,)


def _concatenate(call, units):
    axis = call.operation.axis
    (output,) = call.outputs
    axis = axis % len(output.shape)
    if len({each.axes for each in units.values()}) > 1:
        # Parts of one unit each, perhaps.
        axes = tuple(sorted({axis for u in units.values() for axis in u.axes}))
        for kept in ((axis,), axes):
            over = {
                value: each.over(kept, value.shape)
                for value, each in units.items()
            }
            if None not in over.values():
                units = over
                break
    first = next(iter(units.values()))
    if axis in first.axes and all(
        first.axes == each.axes for each in units.values()
    ):
        parts = [
            units[value].unit
            if value in units
            else np.full([value.shape[i] for i in first.axes], -1)
            for value in call.inputs
        ]
        seen = [set(each.unit[each.unit >= 0]) for each in units.values()]
        differs = any(each.differs for each in units.values()) or (
            len(set.union(*seen)) < sum(map(len, seen))
        )
        unit = np.concatenate(parts, axis=first.axes.index(axis))
        return {output: Units(first.axes, unit, differs)}
    return _merge(call, units)


def _concatenated_activation(call, units):
    """Two activations of the same features, side by side."""
    (value,) = units
    (output,) = call.outputs
    each = units[value]
    axis = call.operation.axis % len(value.shape)
    if axis not in each.axes:
        return {output: each}  # Twice as many positions.
    twice = np.concatenate([each.unit] * 2, axis=each.axes.index(axis))
    return {output: Units(each.axes, twice, differs=True)}


def _cells(call, units):
    raise Refusal(
        f"{describe(call.operation)} calls cells, which cannot be followed. "
        "Use `keras_plasticity.layers.LSTM`, `GRU` or `SimpleRNN`, one for "
        "each cell, with `return_sequences=True` for all but the last"
    )


def _both_directions(call, units):
    kind = type(call.operation.forward_layer).__name__
    raise Refusal(
        f"the layers in {describe(call.operation)} are not plastic. Use "
        f"`keras.layers.Bidirectional(keras_plasticity.layers.{kind}(...))`"
    )


def _moments_of_the_past(call, units):
    raise Refusal(
        f"{describe(call.operation)} normalizes by the moments of all "
        "examples seen so far, which a new unit would take over from the old "
        "one. It is meant for the inputs of a model; for hidden units use "
        "`keras_plasticity.layers.OnlineNormalization`"
    )


def _merge(call, units):
    """Several inputs are merged element by element: a sum, a maximum.

    Where all inputs show the same unit, as in `x * sigmoid(x)`, so does the
    output. Where another layer's output joins, the unit cannot be removed
    alone.
    """
    first = next(iter(units.values()))
    (output,) = call.outputs
    for value in call.inputs:
        each = units.get(value)
        if each is None or not first.same_as(each):
            raise Skip(f"merged with others by {describe(call.operation)}")
    for value in call.inputs:
        check_axes(call, value)
    if tuple(output.shape[axis] for axis in first.axes) != first.unit.shape:
        raise Refusal(f"{describe(call.operation)} repeats a unit")
    differs = any(each.differs for each in units.values())
    return {output: dataclasses.replace(first, differs=differs)}


def _where(call, units):
    """Units where a condition holds, and a constant elsewhere.

    A condition that other layers compute is a mask, as in an attention.
    """
    condition, *branches = call.args
    kind = type(call.outputs[0])  # Others are numbers and arrays.
    constants = [x for x in branches if type(x) is not kind or x.is_constant]
    if condition in units or len(constants) != 1:
        return _merge(call, units)
    (value,) = units
    (output,) = call.outputs
    if not _sizes_agree(value, output):
        raise Refusal(f"{describe(call.operation)} repeats a unit")
    return {output: units[value]}


def _softmax(call, units):
    """A softmax over positions."""
    (value,) = units
    rank = len(value.shape)
    axis = call.operation.axis
    axes = [axis] if isinstance(axis, int) else axis or range(rank)
    if not {a % rank for a in axes}.isdisjoint(units[value].axes):
        raise Refusal(
            f"{describe(call.operation)} is not known to keep units apart: it "
            "divides each of them by a sum over all"
        )
    return keep_units(call, units)


def _product(call, units):
    """Gated units can still be replaced; the units of the gate cannot.

    A product is zero without the unit as it is without the gate, so removing
    the product removes the unit. Of two factors, the one with the shape of the
    product carries the units (the first, if both have it); the other one is
    the gate.
    """
    (output,) = call.outputs
    inputs = call.inputs
    if len(set(inputs)) == len(inputs) == 2 and len(units) == 1:
        (value,) = units
        (other,) = [v for v in inputs if v is not value]
        is_unit = _sizes_agree(value, output) and (
            not _sizes_agree(other, output) or value is inputs[0]
        )
        if not is_unit:
            raise Skip(f"used as a gate by {describe(call.operation)}")
        return {output: units[value]}
    return _merge(call, units)


def _sizes_agree(value, output):
    return value.shape[1:] == output.shape[1:]


def _time_distributed(call, units):
    inner = call.operation.layer
    rule = _find_rule(inner)
    (value,) = units
    plastic_name = _PLASTIC_NAMES.get(type(inner))
    if plastic_name is not None:
        raise Refusal(
            f"the layer in {describe(call.operation)} is not plastic. Put "
            f"`keras_plasticity.layers.{plastic_name}` into it"
        )
    if rule not in (keep_units, _activation, _normalization):
        raise Refusal(
            f"{describe(call.operation)} of a `{type(inner).__name__}` is not "
            "known to keep units apart"
        )
    if units[value].axes != (len(value.shape) - 1,):
        raise Refusal(f"{describe(call.operation)} moves the axis of the units")
    if mixes_units(getattr(inner, "activation", None)):
        raise Refusal(f"{describe(call.operation)} mixes units")
    return keep_units(call, units)


def _nothing(call, units):
    """The output does not depend on the values of the input."""
    return {}


_KNOWN_MIXING = (
    keras.activations.glu,
    keras.activations.log_softmax,
    keras.activations.softmax,
    keras.activations.sparsemax,
)
_KNOWN_ELEMENTWISE = tuple(
    getattr(keras.activations, name)
    for name in dir(keras.activations)
    if callable(getattr(keras.activations, name))
    and name not in ("deserialize", "get", "serialize")
    and getattr(keras.activations, name) not in _KNOWN_MIXING
)
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    layers.BatchNormalization,
    layers.OnlineNormalization,
)


def _layers(*names):
    return [getattr(keras.layers, n) for n in names if hasattr(keras.layers, n)]


def _for_dimensions(name, dimensions=(1, 2, 3)):
    return _layers(*(f"{name}{d}D" for d in dimensions))


# The names of the plastic layers by the layers of Keras that they replace.
_PLASTIC_NAMES = {
    getattr(keras.layers, name): name
    for name in layers.__all__
    if hasattr(keras.layers, name)
    # Not a batch normalization, which has no units of its own.
    and hasattr(getattr(layers, name), "replaceable")
}
_LAYER_RULES = {
    **dict.fromkeys(
        _layers(
            "ActivityRegularization",
            "AlphaDropout",
            "Dropout",
            "ELU",
            "GaussianDropout",
            "GaussianNoise",
            "Identity",
            "LeakyReLU",
            "PReLU",
            "ReLU",
            "Rescaling",
        )
        + _for_dimensions("SpatialDropout")
        + [
            layers.AdaLin,
            layers.Rational,
            layers.RecentInputs,
            layers.SmoothLeaky,
        ],
        keep_units,
    ),
    keras.layers.Activation: _activation,
    **dict.fromkeys(_NORMALIZATIONS, _normalization),
    **dict.fromkeys(
        _for_dimensions("AveragePooling")
        + _for_dimensions("MaxPooling")
        + _for_dimensions("GlobalAveragePooling")
        + _for_dimensions("GlobalMaxPooling")
        + _for_dimensions("AdaptiveAveragePooling")
        + _for_dimensions("AdaptiveMaxPooling")
        + _for_dimensions("Cropping")
        + _for_dimensions("UpSampling")
        + _for_dimensions("ZeroPadding"),
        _channels,
    ),
    **dict.fromkeys(
        _layers("Flatten", "Permute", "RepeatVector", "Reshape"), _movement
    ),
    keras.layers.Concatenate: _concatenate,
    **dict.fromkeys(
        [layers.ConcatenatedELU, layers.CReLU, layers.DeepFourier],
        _concatenated_activation,
    ),
    layers.InputNormalization: _moments_of_the_past,
    **dict.fromkeys(
        _layers("Add", "Average", "Maximum", "Minimum", "Subtract"), _merge
    ),
    keras.layers.Multiply: _product,
    keras.layers.TimeDistributed: _time_distributed,
    keras.layers.Softmax: _softmax,
    **dict.fromkeys(
        _layers("AdditiveAttention", "Attention"), contractions.attention_layer
    ),
    keras.layers.RNN: _cells,
    keras.layers.Bidirectional: _both_directions,
}

# The operations of `keras.ops` have no public classes, only names.
_OPERATION_RULES = {
    **dict.fromkeys(
        """Abs Absolute Arctan Cast Celu Clip Copy Elu Erf Exp Expm1 Gelu
        HardShrink HardSigmoid HardSilu HardTanh Identity LeakyRelu Log Log1p
        LogSigmoid LogicalNot Negative Reciprocal Relu Relu6 Rsqrt SaturateCast
        Selu Sigmoid Sign Silu Sin Cos SoftShrink Softplus Softsign SparsePlus
        SparseSigmoid Sqrt Square Squareplus StopGradient Tanh TanhShrink
        Threshold""".split(),
        keep_units,
    ),
    **dict.fromkeys(
        """ExpandDims Flip GetItem Moveaxis Repeat Reshape Slice Split
        Squeeze Stack Swapaxes Tile Transpose Unstack BroadcastTo""".split(),
        _movement,
    ),
    **dict.fromkeys("Amax Amin Max Mean Min Sum".split(), _reduction),
    **dict.fromkeys(
        """Add Divide Equal Fmax Fmin Greater GreaterEqual Less LessEqual
        LogicalAnd LogicalOr Maximum Minimum NotEqual Power Subtract
        TrueDivide""".split(),
        _merge,
    ),
    "Concatenate": _concatenate,
    "DotProductAttention": contractions.dot_product_attention,
    "Einsum": contractions.einsum,
    "Matmul": contractions.matmul,
    "Multiply": _product,
    **dict.fromkeys(["LogSoftmax", "Softmax"], _softmax),
    "Where": _where,
    "ZerosLike": _nothing,
    "OnesLike": _nothing,
}


def _find_rule(operation):
    if own_rules.has_rule(operation):
        return own_rules.find_rule(operation)
    if type(operation) in _LAYER_RULES:
        return _LAYER_RULES[type(operation)]
    if keras_compat.is_stock_operation(operation):
        return _OPERATION_RULES.get(type(operation).__name__)
    return None
