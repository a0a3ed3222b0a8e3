"""Checks of what measures of a model take."""

from keras_plasticity import validation
from keras_plasticity.diagnosis.examples import take_examples
from keras_plasticity.weights import weights_of


def check_data(data):
    """Checks that data are inputs and targets.

    Args:
        data: Tuple `(x, y)`, each an array, or a nest of arrays, where `y` is
            `None` if the loss needs no targets; or what else
            `keras_plasticity.measure` takes.

    Returns:
        Tuple of `x` and `y` as NumPy arrays, or nests of them.

    Raises:
        ValueError: If they are anything else, if they have no examples or not
            as many of each, or if a number is not finite.
    """
    x, y = take_examples("data", data)
    if y is None and not isinstance(data, tuple):
        raise validation.error(
            "data", "a tuple (x, y) of inputs and targets", data
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
