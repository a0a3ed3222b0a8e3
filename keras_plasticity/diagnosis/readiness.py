"""How ready a model is to learn: what its next steps will gain."""

import keras
import numpy as np

from keras_plasticity import diagnostics
from keras_plasticity import validation
from keras_plasticity.diagnosis.arguments import check_data
from keras_plasticity.diagnosis.arguments import check_weights
from keras_plasticity.diagnosis.differentiation import differentiation_of
from keras_plasticity.training import nests


def optimization_readiness(
    model: keras.Model,
    data,
    num_minibatches: int = 128,
    minibatch_size: int = 4,
    batch_size: int = 256,
    seed: int | None = 0,
) -> float:
    """How much a model can be expected to gain by its next steps.

    `||g||**4 / (L * mean(||g_b||**2))`, where `L` is the loss on all examples,
    `g` its gradient by the weights, and `g_b` the gradients on small batches
    of them: how strong the gradient is, times how much the batches agree on
    it. Measured on examples of the task to come, it ranks networks by what
    their first steps on it will gain better than ranks and dead units do (Wang
    et al., 2026, who take 10,000 examples). It compares networks on the same
    task.

    The loss is the one the model was compiled with, with its regularization,
    in inference mode. This takes as long as one epoch on the data, and
    `num_minibatches` steps.

    Args:
        model: A built and compiled `keras.Model`. It does not change.
        data: Tuple `(x, y)` of inputs and targets, each an array, or a list or
            dict of arrays, as the model takes them; or a data set of batches of
            these, as `keras_plasticity.measure` takes it.
        num_minibatches: Integer, the number of small batches. Defaults to 128.
        minibatch_size: Integer, the number of examples of each: no example
            comes twice in one. Defaults to 4.
        batch_size: Integer, the number of examples computed at once. Defaults
            to 256.
        seed: Integer, of the draws of small batches, or `None`. Defaults to 0.

    Returns:
        Float, not negative; 0 if there is nothing to learn, or no gradient.
        NaN if the model has diverged.

    Raises:
        ValueError: If the model is not built or not compiled with a loss, if
            it has no trainable weights, if its loss is negative, if the data
            are not inputs and targets that fit it, of finite numbers, or if
            there are fewer than `minibatch_size` examples.

    Example:

    ```python
    readiness = keras_plasticity.diagnosis.optimization_readiness(
        model, (x, y), num_minibatches=16
    )
    ```

    References:

    - [Wang et al., 2026](https://arxiv.org/abs/2605.09044)
    """
    derivatives = differentiation_of(model)
    x, y = check_data(data)
    num_minibatches = validation.check_positive_integer(
        "num_minibatches", num_minibatches
    )
    minibatch_size = validation.check_positive_integer(
        "minibatch_size", minibatch_size
    )
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    rng = np.random.default_rng(validation.check_seed("seed", seed))
    check_weights(model)
    size = len(keras.tree.flatten(x)[0])
    if size < minibatch_size:
        raise ValueError(
            "`data` must have at least `minibatch_size` examples. Received: "
            f"{size} examples, minibatch_size={minibatch_size}"
        )
    loss, gradients = derivatives.loss_and_gradients(x, y, batch_size)
    norms = []
    for _ in range(num_minibatches):
        chosen = rng.choice(size, minibatch_size, replace=False)
        batch = nests.take((x, y), chosen)
        norms.append(derivatives.gradient_norm(*batch))
    if loss < 0.0:
        raise ValueError(
            "`model` must have a loss that is not negative, to which its "
            f"gradient is compared. Received: a loss of {loss}"
        )
    return diagnostics.optimization_readiness(
        loss, diagnostics.gradient_norm(gradients), norms
    )
