"""Weights that take their new values from the backward pass.

This is the one road on which a training step can carry something from the
forward and backward pass of a layer to the optimizer, on all backends: a
weight marked `overwrite_with_gradient`, whose "gradient" is its new value.
Every Keras optimizer stores it as it is; Keras' own float8 training takes
this road (tested with Keras 3.15.1).

Such a weight is among the model's trainable variables, where people clip
gradients, penalize weights and take norms by hand. Two rules keep what travels
and their arithmetic apart:

- it travels, and is stored, as a multiple of `UNIT`, a power of two so small
    that no sum of squares notices it. Multiplying by it loses nothing;
- it travels as a sum, with the count of what was summed beside it. What
    multiplies all gradients (clipping, a loss scale, a mean over devices)
    multiplies both, and gradients that are added (a layer called twice,
    gradients accumulated by hand) give the mean.
"""

UNIT = 2.0**-64


def add_overwritten_weight(layer, name, shape, initializer="zeros"):
    """Adds a weight that the backward pass gives new values.

    Args:
        layer: The `keras.layers.Layer` to add it to.
        name: String.
        shape: Tuple of integers.
        initializer: Keras initializer, or a function `(shape, dtype)`.
            Defaults to `"zeros"`.

    Returns:
        `keras.Variable`, float32: means over millions of steps would be
        worthless in half precision.
    """
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype="float32",
        autocast=False,
        overwrite_with_gradient=True,
    )
