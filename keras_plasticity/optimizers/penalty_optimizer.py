"""Base class of optimizers that add a penalty on weights to the loss."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.types import Tensor
from keras_plasticity.validation import check_not_negative


class PenaltyOptimizer(WeightOptimizer):
    """Base class: the gradient of `strength * penalty(w)` joins the loss's.

    A subclass overrides `penalty_gradient`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras.
        exclude: Strings, parts of the paths of weights that are left alone.
        name: String, the optimizer's name.
    """

    strength = Hyperparameter(check_not_negative, schedules=True)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.strength = strength

    def penalty_gradient(self, weight: keras.Variable) -> Tensor:
        """The gradient of the penalty on a weight.

        Args:
            weight: Variable that the method acts on.

        Returns:
            Floating-point tensor of the weight's shape.
        """
        raise NotImplementedError

    def change_gradients(self, gradients, weights):
        # As large as the gradients are, where the loss is scaled.
        strength = self.inner_optimizer.scale_loss(self.now("strength"))
        result = []
        for gradient, weight in zip(gradients, weights):
            penalty = self.penalty_gradient(weight)
            penalty = ops.cast(strength, penalty.dtype) * penalty
            result.append(ops.cast(penalty, weight.dtype) + gradient)
        return result

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings("strength")}
