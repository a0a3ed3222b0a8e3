"""Propagation rules: where the output of an operation carries a layer's units.

A `Units` says along which axis of a tensor the units of a layer lie, and in
which order. A rule takes a call and, for one layer, the `Units` of each input,
and returns those of each output, or raises `Refusal` or `Skip`. An operation
without a rule is refused, never guessed.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import layers


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Where the units of a layer lie in a tensor.

    Attributes:
        axis: Integer, not negative.
        unit: Integer array, the unit of each index of that axis; -1 for none.
        differs: Boolean, whether some unit is seen as several features that
            are computed in different ways, `relu(x)` and `relu(-x)`, each of
            which has a mean of its own.
    """

    axis: int
    unit: np.ndarray
    differs: bool = False

    def same_as(self, other):
        return (
            other is not None
            and self.axis == other.axis
            and np.array_equal(self.unit, other.unit)
        )

    def along(self, axis, size):
        """The same units, along another axis if it counts them as well.

        It does where every element is of one unit.

        Args:
            axis: Integer, not negative.
            size: Integer, the length of that axis; `None` if unknown.

        Returns:
            `Units`.
        """
        first = self.unit[0]
        if size is None or first < 0 or np.any(self.unit != first):
            return self
        return Units(axis, np.full(size, first), self.differs)


class Refusal(Exception):
    """The units cannot be followed: an error, with the reason."""


class Skip(Exception):
    """The units can be followed, but none can be replaced alone: a reason."""


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
    kind = type(call.operation)
    plastic_class = getattr(layers, kind.__name__, None)
    if plastic_class not in (None, kind) and issubclass(plastic_class, kind):
        raise Refusal(
            f"{describe(call.operation)} is not plastic, and the contribution "
            "of a unit is measured by the layer that reads it. Use "
            f"`keras_plasticity.layers.{kind.__name__}` for it too (as the "
            "last layer of a model, it only observes)"
        )
    if rule is None:
        raise Refusal(
            f"{describe(call.operation)} is not known to keep units apart"
        )
    return rule(call, units)


def describe(operation):
    kind = type(operation).__name__
    return f"'{operation.name}' (`{kind}`)"


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
        List of tuples `(variable, initializer, axis)`.
    """
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
        units = Units(units.axis - 1, units.unit)
        rank -= 1
    if isinstance(operation, keras.layers.PReLU):
        axis = units.axis - 1  # There is no batch axis.
        if operation.alpha.shape[axis] != len(units.unit):
            return []  # One slope for all units.
        return [(operation.alpha, operation.alpha_initializer, axis)]
    if isinstance(operation, layers.AdaLin):
        if operation.axis % rank != units.axis:
            return []  # One slope for all units.
        return [(operation.alpha, operation.alpha_initializer, 0)]
    ones = keras.initializers.Ones()
    zeros = keras.initializers.Zeros()
    result = []
    for name, default in (("gamma", ones), ("scale", ones), ("beta", zeros)):
        variable = getattr(operation, name, None)
        if not isinstance(variable, keras.Variable):
            continue  # None, or the flag `scale=True`.
        initializer = getattr(operation, f"{name}_initializer", default)
        axis = 0
        if len(variable.shape) > 1:
            axes = [a % rank for a in operation.axis]
            axis = axes.index(units.axis)
        result.append((variable, initializer, axis))
    return result


# The rules; the tables below say which operations each of them is for.


def _elementwise(call, units):
    """Each element of the output depends on the same element of the input."""
    (value,) = units
    _check_shape(call, value)
    return {output: units[value] for output in call.outputs}


def _activation(call, units):
    activation = getattr(call.operation, "activation", None)
    if mixes_units(activation):
        name = getattr(activation, "__name__", str(activation))
        raise Refusal(
            f"the activation `{name}` of {describe(call.operation)} mixes units"
        )
    return _elementwise(call, units)


def _normalization(call, units):
    (value,) = units
    axis = getattr(call.operation, "axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    axes = [a % len(value.shape) for a in axes]
    if units[value].axis not in axes:
        raise Refusal(
            f"{describe(call.operation)} has no parameters along the axis of "
            f"the units. Received: axis={axis}"
        )
    return _elementwise(call, units)


def _channels(call, units):
    """Positions are pooled, padded, cropped or repeated; channels stay."""
    (value,) = units
    rank = len(value.shape)
    default = "channels_last"
    first = getattr(call.operation, "data_format", default) == "channels_first"
    axis = 1 if first else rank - 1
    if units[value].axis != axis:
        raise Refusal(f"{describe(call.operation)} moves the axis of the units")
    (output,) = call.outputs
    axis = 1 if first else len(output.shape) - 1
    return {output: dataclasses.replace(units[value], axis=axis)}


def _reduction(call, units):
    """A mean or the like over some axes."""
    (value,) = units
    rank = len(value.shape)
    axes = getattr(call.operation, "axis", None)
    if axes is None:
        axes = range(rank)
    axes = [axes] if isinstance(axes, int) else axes
    axes = [axis % rank for axis in axes]
    axis = units[value].axis
    if axis in axes:
        raise Refusal(f"{describe(call.operation)} adds units up")
    if not call.operation.keepdims:
        axis -= sum(a < axis for a in axes)
    (output,) = call.outputs
    return {output: dataclasses.replace(units[value], axis=axis)}


def _movement(call, units):
    """Elements are moved, copied or dropped, and keep their values.

    So the operation itself tells where they go: it is run on an array that
    holds, for each element, 1 + the index of its unit.
    """
    if any(value not in units for value in call.inputs):
        raise Skip(f"merged with others by {describe(call.operation)}")
    labels = {value: _labels(value, units[value]) for value in call.inputs}
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
        axis = _axis_of_units(label)
        if axis is None or output.shape[axis] is None:
            raise Refusal(f"{describe(call.operation)} takes units apart")
        unit = np.moveaxis(label, axis, 0).reshape(label.shape[axis], -1)
        result[output] = Units(axis, unit[:, 0] - 1, differs)
    return result


def _labels(value, units):
    """Array of the shape of a value: for each element, 1 + its unit."""
    shape = [1 if value.shape[0] is None else value.shape[0]]
    shape += [2 if size is None else size for size in value.shape[1:]]
    along = [1] * len(shape)
    along[units.axis] = -1
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


def _axis_of_units(label):
    """The one axis along which labels differ."""
    for axis in reversed(range(1, label.ndim)):
        if np.all(label == label.take([0], axis=axis)):
            continue
        others = tuple(i for i in range(label.ndim) if i != axis)
        first = label[
            tuple(
                slice(0, 1) if i in others else slice(None)
                for i in range(label.ndim)
            )
        ]
        return axis if np.all(label == first) else None
    if label.ndim < 2 or np.any(label != label.flat[0]):
        return None  # The axis is where the batch was.
    # A single unit: any axis may count it, rather one of length 1.
    return next(
        (i for i in reversed(range(1, label.ndim)) if label.shape[i] == 1),
        label.ndim - 1,
    )


def _concatenate(call, units):
    axis = call.operation.axis
    (output,) = call.outputs
    axis = axis % len(output.shape)
    if len({each.axis for each in units.values()}) > 1:
        # Parts of one unit each, perhaps.
        units = {
            value: each.along(axis, value.shape[axis])
            for value, each in units.items()
        }
    if all(axis == each.axis for each in units.values()):
        parts = [
            units[value].unit
            if value in units
            else np.full(value.shape[axis], -1, "int32")
            for value in call.inputs
        ]
        seen = [set(each.unit[each.unit >= 0]) for each in units.values()]
        differs = any(each.differs for each in units.values()) or (
            len(set.union(*seen)) < sum(map(len, seen))
        )
        return {output: Units(axis, np.concatenate(parts), differs)}
    return _merge(call, units)


def _concatenated_activation(call, units):
    """Two activations of the same features, side by side."""
    (value,) = units
    (output,) = call.outputs
    each = units[value]
    if call.operation.axis % len(value.shape) != each.axis:
        return {output: each}  # Twice as many positions.
    return {output: Units(each.axis, np.tile(each.unit, 2), differs=True)}


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
        _check_shape(call, value)
    if output.shape[first.axis] != len(first.unit):
        raise Refusal(f"{describe(call.operation)} repeats a unit")
    differs = any(each.differs for each in units.values())
    return {output: dataclasses.replace(first, differs=differs)}


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
    if rule not in (_elementwise, _activation, _normalization):
        raise Refusal(
            f"{describe(call.operation)} of a `{type(inner).__name__}` is not "
            "known to keep units apart"
        )
    if units[value].axis != len(value.shape) - 1:
        raise Refusal(f"{describe(call.operation)} moves the axis of the units")
    if mixes_units(getattr(inner, "activation", None)):
        raise Refusal(f"{describe(call.operation)} mixes units")
    return _elementwise(call, units)


def _nothing(call, units):
    """The output does not depend on the values of the input."""
    return {}


def _check_shape(call, value):
    """Refuses broadcasting, which could move the axis of the units."""
    for output in call.outputs:
        if len(output.shape) != len(value.shape):
            raise Refusal(f"{describe(call.operation)} changes the axes")


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
    layers.OnlineNormalization,
)


def _layers(*names):
    return [getattr(keras.layers, n) for n in names if hasattr(keras.layers, n)]


def _for_dimensions(name, dimensions=(1, 2, 3)):
    return _layers(*(f"{name}{d}D" for d in dimensions))


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
        _elementwise,
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
        _elementwise,
    ),
    **dict.fromkeys(
        """ExpandDims Flip GetItem Moveaxis Repeat Reshape Slice Split
        Squeeze Stack Swapaxes Tile Transpose Unstack BroadcastTo""".split(),
        _movement,
    ),
    **dict.fromkeys("Amax Amin Max Mean Min Sum".split(), _reduction),
    **dict.fromkeys(
        """Add Divide Equal Fmax Fmin Greater GreaterEqual Less LessEqual
        LogicalAnd LogicalOr Maximum Minimum NotEqual Power Subtract TrueDivide
        Where""".split(),
        _merge,
    ),
    "Concatenate": _concatenate,
    "Multiply": _product,
    "ZerosLike": _nothing,
    "OnesLike": _nothing,
}


def _find_rule(operation):
    if type(operation) in _LAYER_RULES:
        return _LAYER_RULES[type(operation)]
    if keras_compat.is_stock_operation(operation):
        return _OPERATION_RULES.get(type(operation).__name__)
    return None
