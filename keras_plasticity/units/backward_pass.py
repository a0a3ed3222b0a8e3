"""Weights that take their new values from the backward pass.

This is the one road on which a training step can carry something from the
forward and backward pass of a layer to the optimizer, on all backends: a
weight marked `overwrite_with_gradient`, whose "gradient" is its new value.
Every Keras optimizer stores it as it is; Keras' own float8 training takes
this road (tested with Keras 3.15.1).
"""

from keras import ops


def add_overwritten_weight(layer, name, size, initializer="zeros"):
    """Adds a vector that the backward pass gives new values.

    Args:
        layer: The `keras.layers.Layer` to add it to.
        name: String.
        size: Integer.
        initializer: Keras initializer.

    Returns:
        `keras.Variable`, float32: means over millions of steps would be
        worthless in half precision.
    """
    return layer.add_weight(
        name=name,
        shape=(size,),
        initializer=initializer,
        dtype="float32",
        autocast=False,
        overwrite_with_gradient=True,
    )


def identity(inputs, values, backward):
    """Returns `inputs` unchanged; its backward pass is given.

    Args:
        inputs: Tensor.
        values: List of tensors that the backward pass needs: the values of
            overwritten weights, among others.
        backward: Function `(upstream, inputs, values)` that returns a tuple:
            the gradient of `inputs`, and for each of `values` its gradient,
            which for an overwritten weight is its new value.

    Returns:
        `inputs`.
    """

    @ops.custom_gradient
    def function(inputs, *values):
        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return backward(upstream, inputs, values)

        return inputs, gradient

    return function(inputs, *values)
