from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.validation import check_not_negative
from keras_plasticity.weights import is_statistic


@keras.saving.register_keras_serializable(package="keras_plasticity")
class L2(OptimizerWrapper):
    """Optimizer wrapper that adds an L2 penalty to the loss.

    Each trainable variable `w`, biases included, gets `l2 * w` added to its
    gradient before the inner optimizer sees it, as if `l2 / 2 * sum(w**2)` were
    added to the loss. With SGD that is weight decay by `learning_rate * l2` in
    each step; with an adaptive optimizer it is not, as the penalty's gradient
    is rescaled like the loss's. It is what `weight_decay` of PyTorch's `SGD`
    and `Adam` does. For decay that is decoupled from the gradient (AdamW) use
    the argument `weight_decay` of the Keras optimizer itself.

    Since the penalty counts as a part of the loss,

    - clipping by the inner optimizer acts on the sum of both gradients
        (PyTorch adds its decay after `clip_grad_norm_`);
    - with gradient accumulation, the mean over the accumulated steps holds it
        once;
    - a loss scale, inside or outside of this wrapper, leaves it as it is.

    Variables whose gradient is `None` are left alone, as are those that are
    no weights: statistics marked `overwrite_with_gradient`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        l2: Float, not negative, the strength of the penalty, or a schedule
            of Keras. Defaults to `1e-4`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.L2(
        keras.optimizers.SGD(0.003), l2=1e-4
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    l2 = Hyperparameter(check_not_negative, schedules=True)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        l2: float | Schedule = 1e-4,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.l2 = l2

    def make_step(self, grads, variables):
        grads = add_l2_gradients(
            grads, variables, self.now("l2"), self.inner_optimizer
        )
        self.apply_inner(grads, variables)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings("l2")}


def add_l2_gradients(grads, variables, l2, inner_optimizer):
    """Adds the gradients of `l2 / 2 * sum(w**2)`.

    Args:
        grads: List of gradients, or `None`, one for each variable.
        variables: List of variables.
        l2: Float or scalar tensor.
        inner_optimizer: The optimizer that is to be given the gradients. If
            it scales the loss, the gradients are scaled.

    Returns:
        List of gradients.
    """
    strength = inner_optimizer.scale_loss(l2)
    with backend.no_gradient():
        return [
            gradient
            if gradient is None or is_statistic(variable)
            else _as(variable, strength) * variable.value + gradient
            for gradient, variable in zip(grads, variables)
        ]


def _as(variable, strength):
    if isinstance(strength, (int, float)):
        return strength
    return ops.cast(strength, variable.dtype)
