"""The tangent kernel of a model: how it learns, to first order."""

import math

import keras
import numpy as np

from keras_plasticity import diagnostics
from keras_plasticity import validation
from keras_plasticity.diagnosis.arguments import check_weights
from keras_plasticity.diagnosis.differentiation import differentiation_of
from keras_plasticity.diagnosis.examples import take_examples
from keras_plasticity.training import nests


def tangent_kernel_rank(
    model: keras.Model, data, num_examples: int = 32
) -> float:
    """Effective rank of a model's empirical neural tangent kernel.

    Of how many examples the model can learn the outputs independently, if it
    moves a little. See `keras_plasticity.diagnostics.tangent_kernel_rank`, and
    `keras_plasticity.diagnosis.tangent_kernel_gradients` for the gradients that
    it is computed from, and for what that costs.

    Args:
        model: A built `keras.Model`. It does not change.
        data: Array of inputs, or a list or dict of arrays, as the model takes
            them; or what else `keras_plasticity.measure` takes. Targets are not
            used.
        num_examples: Integer, how many examples of all are taken, evenly
            spaced. Defaults to 32.

    Returns:
        Float between 1 and the number of examples; 0 if the outputs do not
        depend on the weights, and NaN if the model has diverged.

    Raises:
        ValueError: If the model is not built or has no trainable weights, or
            if the data are not inputs that fit it, of finite numbers.

    Example:

    ```python
    rank = keras_plasticity.diagnosis.tangent_kernel_rank(model, x)
    ```

    References:

    - [Lyle et al., 2024](https://arxiv.org/abs/2402.18762)
    """
    gradients = tangent_kernel_gradients(model, data, num_examples)
    if not np.isfinite(gradients).all():
        return math.nan
    return diagnostics.tangent_kernel_rank(gradients)


def tangent_kernel_condition(
    model: keras.Model, data, num_examples: int = 32
) -> float:
    """Condition number of a model's empirical neural tangent kernel.

    See `keras_plasticity.diagnostics.tangent_kernel_condition`, and
    `keras_plasticity.diagnosis.tangent_kernel_gradients` for the gradients that
    it is computed from, and for what that costs.

    Args:
        model: A built `keras.Model`. It does not change.
        data: As in
            `keras_plasticity.diagnosis.tangent_kernel_rank`.
        num_examples: Integer, how many examples of all are taken, evenly
            spaced. Defaults to 32.

    Returns:
        Float of at least 1; infinity if an example's output cannot change
        without those of others, and NaN if the model has diverged.

    Raises:
        ValueError: As `keras_plasticity.diagnosis.tangent_kernel_rank`.

    Example:

    ```python
    condition = keras_plasticity.diagnosis.tangent_kernel_condition(
        model, x
    )
    ```
    """
    gradients = tangent_kernel_gradients(model, data, num_examples)
    if not np.isfinite(gradients).all():
        return math.nan
    return diagnostics.tangent_kernel_condition(gradients)


def tangent_kernel_gradients(
    model: keras.Model, data, num_examples: int = 32
) -> np.ndarray:
    """Gradients of a model's output by all weights, for each example.

    Of several outputs it is the gradient of their combination by one direction,
    the same for all examples and models with as many outputs, drawn evenly from
    all directions. The kernel is then, over such directions, in the mean that
    of all outputs, divided by their number. (The sum of the outputs would not
    do: it is always 1 after a softmax.) The model computes in inference mode.

    It takes as long as training on each example alone, and the memory of
    `num_examples` copies of the weights.

    Args:
        model: A built `keras.Model`. It does not change.
        data: As in
            `keras_plasticity.diagnosis.tangent_kernel_rank`.
        num_examples: Integer, how many examples of all are taken, evenly
            spaced. Defaults to 32.

    Returns:
        Array of shape `(examples, weights)`; of fewer examples if there are not
        as many as `num_examples`.

    Raises:
        ValueError: As `keras_plasticity.diagnosis.tangent_kernel_rank`.

    Example:

    ```python
    gradients = keras_plasticity.diagnosis.tangent_kernel_gradients(
        model, x, num_examples=8
    )
    kernel = gradients @ gradients.T
    ```
    """
    derivatives = differentiation_of(model)
    x, _ = take_examples("data", data)
    num_examples = validation.check_positive_integer(
        "num_examples", num_examples
    )
    check_weights(model)
    size = len(keras.tree.flatten(x)[0])
    chosen = np.linspace(0, size - 1, min(size, num_examples), dtype="int64")
    x = nests.take(x, chosen)
    return derivatives.output_gradients(x)
