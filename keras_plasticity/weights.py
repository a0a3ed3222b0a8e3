"""Which trainable variables of a model are weights.

Variables that take their new values from the backward pass are marked
`overwrite_with_gradient`, which makes them trainable; see
`keras_plasticity.units.backward_pass`.
"""

import keras

from keras_plasticity.validation import check_type


def is_statistic(variable: keras.Variable) -> bool:
    """Whether a variable's "gradient" is its new value."""
    return getattr(variable, "overwrite_with_gradient", False)


def is_moving_statistic(variable: keras.Variable) -> bool:
    """Whether a statistic belongs to what a model has learned.

    That of `keras_plasticity.layers.BatchNormalization` does, and is averaged
    or made anew together with weights. Others are only observed.
    """
    return getattr(variable, "is_moving_statistic", False)


def weights_of(model: keras.Layer) -> list[keras.Variable]:
    """The trainable weights of a model: those of its plain twin.

    The trainable variables of a model of plastic layers are its weights and,
    for each plastic layer, variables by which its observations travel to the
    optimizer. Hand all of them to the optimizer. For a loop by hand that does
    more (regularizes, counts, averages or perturbs weights) this function
    leaves the latter out.

    Args:
        model: A Keras model or layer.

    Returns:
        List of `keras.Variable`s, in the order of `model.trainable_variables`.

    Example:

    ```python
    num_weights = sum(
        np.prod(v.shape) for v in keras_plasticity.weights_of(model)
    )
    ```
    """
    check_type("model", model, keras.Layer, "a Keras layer or model")
    return [v for v in model.trainable_variables if not is_statistic(v)]
