"""Checks of what measures of a model take."""

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.weights import weights_of


def check_data(data):
    """Checks that data are a tuple of inputs and of targets.

    Args:
        data: Tuple `(x, y)`, each an array, or a nest of arrays. `y` is `None`
            where the loss needs no targets.

    Returns:
        Tuple of `x` and `y` as NumPy arrays, or nests of them.

    Raises:
        ValueError: If they are anything else, if they have no examples or not
            as many of each, or if a number is not finite.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise validation.error(
            "data", "a tuple (x, y) of inputs and targets", data
        )
    x, y = data
    x = validation.check_inputs("data", x)
    if y is not None:
        y = validation.check_inputs("data", y)
    x, y = keras.tree.map_structure(_as_array, (x, y), none_is_leaf=False)
    shapes = [
        array.shape for array in keras.tree.flatten((x, y)) if array is not None
    ]
    lengths = {shape[0] for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "The arrays of `data` must have one entry for each example, and "
            f"one example at least. Received: arrays of shapes {shapes}"
        )
    return x, y


def check_built(model):
    """Checks that a model has its variables.

    Args:
        model: A `keras.Model`.

    Raises:
        ValueError: If it is not built.
    """
    if not model.built:
        raise ValueError(
            "`model` must be built: call it on a batch of inputs first. "
            f"Received: model '{model.name}', which has no weights yet"
        )


def check_weights(model):
    """The weights of a model, if it has any.

    Args:
        model: A built `keras.Model`.

    Returns:
        List of `keras.Variable`s.

    Raises:
        ValueError: If there are none that are trained, or not yet.
    """
    check_built(model)
    weights = weights_of(model)
    if not weights:
        raise ValueError(
            "`model` must have trainable weights. Received: model "
            f"'{model.name}', which has none"
        )
    return weights


def _as_array(tensor):
    array = np.asarray(keras.ops.convert_to_numpy(tensor))
    return validation.check_finite("data", array)
