"""What the layers of a model compute with beside their variables."""

import keras

from keras_plasticity import keras_compat


class Identity:
    """An object as a part of a key, equal to itself alone.

    It keeps the object, so that no other one gets its `id`.

    Args:
        value: The object.
    """

    def __init__(self, value):
        self._value = value

    def __eq__(self, other):
        return isinstance(other, Identity) and self._value is other._value

    def __hash__(self):
        return id(self._value)


def constants_of(model):
    """The tensors that a program of a model holds as constants.

    A `Normalization` makes new ones each time that it is adapted.

    Args:
        model: A built `keras.Model`.

    Returns:
        Tuple of `Identity`s, a part of the keys of programs.
    """
    return tuple(
        Identity(tensor)
        for layer in keras_compat.sublayers(model)
        if isinstance(layer, keras.layers.Normalization)
        for tensor in (layer.mean, layer.variance)
    )
