"""Where the non-linearities of units are linear, or nearly so."""

import math

from keras_plasticity import validation

# Of the derivative: in a linear region it is at least this share of the largest
# it can be. For tanh, the derivative at an activation `h` is `1 - h**2`.
_NEARLY = 0.9
_TANH = math.sqrt(1.0 - _NEARLY)
_SOFTSIGN = 1.0 - math.sqrt(_NEARLY)

# The open intervals of activations, after the non-linearity.
_REGIONS = {
    "celu": [(0.0, math.inf)],
    "elu": [(0.0, math.inf)],
    "hard_sigmoid": [(0.0, 1.0)],
    "hard_tanh": [(-1.0, 1.0)],
    "leaky_relu": [(0.0, math.inf), (-math.inf, 0.0)],
    "relu": [(0.0, math.inf)],
    "relu6": [(0.0, 6.0)],
    "selu": [(0.0, math.inf)],
    "sigmoid": [(0.5 - _TANH / 2, 0.5 + _TANH / 2)],
    # Of an activation `h`, `1 - exp(-h)` is the derivative.
    "softplus": [(-math.log(1.0 - _NEARLY), math.inf)],
    "softsign": [(-_SOFTSIGN, _SOFTSIGN)],
    "tanh": [(-_TANH, _TANH)],
}
LINEAR_FUNCTIONS = tuple(_REGIONS)


def linear_regions(function):
    """The intervals of activations on which a non-linearity is linear.

    Args:
        function: String, the name of a function of `keras.activations`.

    Returns:
        List of pairs of floats, without their ends.

    Raises:
        ValueError: If they are not known.
    """
    return _REGIONS[
        validation.check_choice("function", function, LINEAR_FUNCTIONS)
    ]
