"""Plastic layers that `keras.layers.TimeDistributed` calls for each step."""

import keras

from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.layers.plastic_layer import axes_with_steps


def applied_layer(call):
    """The plastic layer that a call applies, be it to each time step.

    Args:
        call: `Call`.

    Returns:
        `PlasticLayer`; `None` if it applies none, or not in a known way.
    """
    if isinstance(call.operation, PlasticLayer):
        return call.operation
    if _is_in_time(call) and not call.operation.layer.own_readers():
        return call.operation.layer
    return None


def axes_of_call(call, find_axes, value):
    """Axes of what a call takes or makes, of which its layer says which.

    Args:
        call: `Call` that applies a plastic layer.
        find_axes: Function from that layer's inputs, or outputs, to axes.
        value: `Value`, the inputs or outputs of the call.

    Returns:
        Tuple of integers.
    """
    if _is_in_time(call):
        return axes_with_steps(find_axes, value)
    return find_axes(value)


def _is_in_time(call):
    operation = call.operation
    return isinstance(operation, keras.layers.TimeDistributed) and isinstance(
        operation.layer, PlasticLayer
    )
