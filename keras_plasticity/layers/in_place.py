"""Makes built layers plastic in place."""

import contextlib

import keras

from keras_plasticity import keras_compat


def complete(layer, replaceable, scopes=None):
    """Completes a built layer whose class has become a plastic one.

    Args:
        layer: The layer.
        replaceable: Boolean, whether its units may be replaced.
        scopes: List of strings, the name scopes to open, so that the statistics
            have the paths of a layer that was plastic from the start. Defaults
            to those of the layer's path.
    """
    layer.replaceable = replaceable
    with contextlib.ExitStack() as stack:
        for name in layer.path.split("/") if scopes is None else scopes:
            stack.enter_context(keras.name_scope(name))
        stack.enter_context(keras_compat.unlocked(layer))
        layer.add_statistics()
    for statistics in layer.all_statistics():
        statistics.trainable = layer.trainable
    keras_compat.rebind_quantize(layer)
