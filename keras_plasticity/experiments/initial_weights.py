"""PyTorch's initial weights, on which the results of many papers rest."""

import math

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity import validation


def pytorch_initializer(rng: np.random.Generator) -> keras.Initializer:
    """The distribution of PyTorch's initial kernels.

    Uniform in `[-bound, bound]`, where `bound = 1 / sqrt(fan_in)`.

    Args:
        rng: `numpy.random.Generator`, from which the seed is drawn.

    Returns:
        A Keras initializer, for one kernel: it draws the same numbers again.

    Example:

    ```python
    rng = np.random.default_rng(0)
    layer = keras.layers.Dense(2, kernel_initializer=pytorch_initializer(rng))
    ```
    """
    _check_rng(rng)
    return keras.initializers.VarianceScaling(
        1 / 3, "fan_in", "uniform", seed=int(rng.integers(2**31))
    )


def draw_pytorch_biases(model: keras.Model, rng: np.random.Generator):
    """Draws the biases of a model as PyTorch does: in the range of the kernel.

    They are drawn here, and not by the layers' `bias_initializer`, from which
    new units take theirs: in the authors' code a new unit's bias is zero.

    Args:
        model: Keras model. The biases of its layers that have a kernel are
            changed.
        rng: `numpy.random.Generator`.

    Example:

    ```python
    rng = np.random.default_rng(0)
    initializer = pytorch_initializer(rng)
    layer = keras.layers.Dense(2, kernel_initializer=initializer)
    model = keras.Sequential([keras.Input((128,)), layer])
    draw_pytorch_biases(model, rng)
    ```
    """
    validation.check_model("model", model)
    _check_rng(rng)
    for layer in keras_compat.in_order(model):
        if not layer.trainable:
            continue  # Such as those that an injection fills.
        if hasattr(layer, "kernel") and layer.bias is not None:
            bound = 1 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
            layer.bias.assign(rng.uniform(-bound, bound, layer.bias.shape))


def _check_rng(rng):
    validation.check_type(
        "rng", rng, np.random.Generator, "a `numpy.random.Generator`"
    )
