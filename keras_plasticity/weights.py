"""Which trainable variables of a model are weights.

Statistics that take their new values from the backward pass are marked
`overwrite_with_gradient`, which makes them trainable; see
`keras_plasticity.units.backward_pass`.
"""

import keras


def is_statistic(variable: keras.Variable) -> bool:
    """Whether a variable's "gradient" is its new value."""
    return getattr(variable, "overwrite_with_gradient", False)


def trainable_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The trainable variables of a layer or model, without statistics."""
    return [v for v in layer.trainable_variables if not is_statistic(v)]
