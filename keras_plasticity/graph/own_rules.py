"""Propagation rules that users register, and the one that most of them are."""

from collections.abc import Callable

import keras

from keras_plasticity import layers
from keras_plasticity import validation
from keras_plasticity.graph.units import Refusal
from keras_plasticity.graph.units import Units
from keras_plasticity.graph.units import describe

# By class.
_REGISTERED = {}


def register_rule(layer_class: type, rule: Callable):
    """States what a layer of your own makes of the units that it reads.

    A layer's `call` is traced to see which operations the units go through.
    That is not possible where it looks at values, or computes outside of
    `keras.ops`. Then the rule says it. It holds for layers of exactly this
    class, wherever they stand between a plastic layer and those that read it.

    A rule must be exact: of each unit, its output says all there is to say,
    so that the unit's outgoing weights are those of the layer that reads the
    output. Elements that depend on several units have no place in it.

    Args:
        layer_class: Class of `keras.layers.Layer`, not a plastic one.
        rule: Function `(call, units)`. `call` has `operation` (the layer),
            `args`, `kwargs`, `inputs` and `outputs`, lists of symbolic values
            with `shape` and `dtype`; `units` is a dict from each input that
            shows units of a layer to a `keras_plasticity.graph.Units`. It
            returns such a dict for the outputs, or raises
            `keras_plasticity.graph.Refusal` where they cannot be followed, or
            `keras_plasticity.graph.Skip` where none of them can be replaced
            alone, each with the reason. `keras_plasticity.graph.keep_units` is
            the rule of layers that change each element by itself.

    Raises:
        ValueError: If `layer_class` is no class of layers, or a plastic one.

    Example:

    ```python
    from keras_plasticity import graph

    class Reversed(keras.layers.Layer):
        def call(self, x):
            if keras.ops.any(x > 100.0):  # A look at values.
                x = x / 100.0
            return keras.ops.flip(x, axis=-1)

        def compute_output_shape(self, input_shape):
            return input_shape

    def reversed_units(call, units):
        (x,), (y,) = call.inputs, call.outputs
        axes, unit = units[x].axes, units[x].unit
        if axes != (len(x.shape) - 1,):
            raise graph.Refusal("`Reversed` reverses another axis")
        return {y: graph.Units(axes, unit[::-1])}

    graph.register_rule(Reversed, reversed_units)
    ```
    """
    is_layer = isinstance(layer_class, type) and issubclass(
        layer_class, keras.layers.Layer
    )
    if not is_layer or issubclass(layer_class, layers.PlasticLayer):
        raise validation.error(
            "layer_class", "a class of layers that are not plastic", layer_class
        )
    _REGISTERED[layer_class] = validation.check_function(
        "rule", rule, "a function `(call, units)`"
    )


def has_rule(operation):
    """Whether a rule was registered for a layer."""
    return type(operation) in _REGISTERED


def find_rule(operation):
    """The rule that was registered for a layer."""
    return _REGISTERED[type(operation)]


def keep_units(call, units: dict) -> dict:
    """The rule of a layer each of whose elements depends on one of its input.

    For `keras_plasticity.graph.register_rule`.

    Args:
        call: The call.
        units: Dict from the input that shows units to
            `keras_plasticity.graph.Units`.

    Returns:
        Dict from each output to the same `keras_plasticity.graph.Units`.

    Raises:
        Refusal: If the outputs have other axes than the input.

    Example:

    ```python
    class Threshold(keras.layers.Layer):
        def call(self, x):
            return x if keras.ops.max(x) > 0 else 0 * x

        def compute_output_shape(self, input_shape):
            return input_shape

    keras_plasticity.graph.register_rule(
        Threshold, keras_plasticity.graph.keep_units
    )
    ```
    """
    (value,) = units
    check_axes(call, value)
    return {output: units[value] for output in call.outputs}


def check_axes(call, value):
    """Refuses broadcasting, which could move the axes of the units."""
    for output in call.outputs:
        if len(output.shape) != len(value.shape):
            raise Refusal(f"{describe(call.operation)} changes the axes")


def check_result(call, result):
    """Checks what a rule of a user's own has returned."""
    rule = "a dict from outputs of the call to `keras_plasticity.graph.Units`"
    name = type(call.operation).__name__
    if not isinstance(result, dict) or not all(
        value in call.outputs and isinstance(each, Units)
        for value, each in result.items()
    ):
        raise TypeError(
            f"The rule registered for `{name}` must return {rule}. "
            f"{validation.received('result', result)}"
        )
    for value, each in result.items():
        shape = tuple(value.shape[axis] for axis in each.axes)
        if shape != each.unit.shape:
            raise ValueError(
                f"The rule registered for `{name}` must return `Units` with an "
                f"array of the shape of their axes, {shape}. Received: "
                f"axes={each.axes}, unit of shape {each.unit.shape}"
            )
