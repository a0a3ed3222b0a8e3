"""Which weights belong together, and how a kernel is a matrix.

An optimizer is given variables, not layers. Those of one layer have a common
path, of which only the last part differs: `"sequential/dense/kernel"`.
"""

import math

from keras import ops

_BIAS = "bias"
# The scale and the offset of a normalization layer.
_GAINS = ("gamma", "scale")
_OFFSET = "beta"
# Weights that may have several axes, and connect no inputs with units.
_NO_KERNELS = ("embeddings", "alpha", *_GAINS, _OFFSET)


def is_kernel(variable):
    """Whether a weight connects inputs with units: it has two axes or more.

    As Keras' initializers see it, the last axis counts units, and all others
    together count what a unit reads. An embedding, of which a row is no unit's
    input but one of many, is no kernel, and neither is what normalization
    layers and `PReLU` multiply by, nor the bias of several heads.
    """
    return (
        len(variable.shape) > 1
        and variable.name not in _NO_KERNELS
        and not is_bias(variable)
    )


def is_bias(variable):
    """Whether a weight is the bias of a layer with a kernel."""
    return variable.name.endswith(_BIAS)


def is_gain(variable):
    """Whether a weight is the scale of a normalization layer."""
    return variable.name in _GAINS


def is_offset(variable):
    """Whether a weight is the offset of a normalization layer."""
    return variable.name == _OFFSET


def is_embedding(variable):
    """Whether a weight holds a vector for each of many tokens."""
    return variable.name == "embeddings"


def num_inputs(kernel):
    """The number of inputs of one unit, `fan_in`."""
    return math.prod(kernel.shape[:-1])


def num_outputs(kernel):
    """The number of units."""
    return kernel.shape[-1]


def as_matrix(tensor):
    """A kernel, or what has its shape, as `(inputs, units)`."""
    return ops.reshape(tensor, (-1, tensor.shape[-1]))


def by_layer(variables):
    """The weights of each layer.

    Args:
        variables: List of variables.

    Returns:
        List of lists of variables, in their order.
    """
    layers = {}
    for variable in variables:
        path = variable.path.rpartition("/")[0]
        layers.setdefault(path, []).append(variable)
    return list(layers.values())


def kernel_of(variable, variables):
    """The kernel of the layer that a weight belongs to.

    Args:
        variable: A weight.
        variables: List of all weights of the model.

    Returns:
        Variable: the weight itself if it is a kernel, else the first kernel of
        its layer; `None` for a layer without any, such as a normalization.
    """
    if is_kernel(variable):
        return variable
    for layer in by_layer(variables):
        if any(each is variable for each in layer):
            return next(filter(is_kernel, layer), None)
    return None
