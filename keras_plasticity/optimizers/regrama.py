import math
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.optimizers.dormant_unit_resets import DormantUnitResets
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_positive_integer


def _check_fraction(name, value):
    return check_in_interval(name, value, "[0, 1]")


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ReGraMa(DormantUnitResets):
    """Optimizer wrapper that replaces units whose weights hardly learn.

    ReGraMa stands for resetting guided by the gradient magnitude. Where
    `ReDo` looks at the activations of a unit, this looks at the gradients of
    its incoming weights, which tell more where units are never silent (tanh,
    swish, layer normalization). The score of a hidden unit is

    `score[i] = mean(|g[:, i]|) / (mean over units of mean(|g|) + 1e-8)`,

    where `g` is the gradient of the layer's kernel in one update, as the loss
    has it: before the inner optimizer clips it or adds weight decay; with
    gradient accumulation it is the mean over the steps. After every `period`
    updates all units whose score is at most `threshold` are replaced, or of a
    layer of `n` units the `floor(max_fraction * n)` of the least scores: their
    incoming weights and biases are drawn from the layer's initializers, their
    outgoing weights are zero, and their entries in the slots of the inner
    optimizer (momentum, velocity, ...) return to their initial values. Counts
    of steps stay as they are. Where both ends of a weight are replaced it is a
    new draw.

    Checks follow update `period + 1`, `2 * period + 1`, and so on, on the
    gradients of that update alone. The code that this follows draws all new
    weights from He's uniform distribution, and sets biases to zero.

    `layer.utility` holds the scores of the last check.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        threshold: Float, not negative, the largest score of a unit that is
            replaced. Defaults to `0.01`.
        period: Positive integer, the number of updates between two checks.
            Defaults to `1000`.
        reset_optimizer_state: Boolean, whether the entries of a replaced unit
            in the slots of the inner optimizer return to their initial values.
            Defaults to `True`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.
        max_fraction: Float in [0, 1], the largest part of a layer's units that
            one check replaces. Of equal scores the first ones go. Defaults to
            `1.0`.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ReGraMa(
        keras.optimizers.Adam(1e-3), threshold=0.1, period=100
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, batch_size=32)
    optimizer.num_replaced()  # {"dense": 4, "dense_1": 0}
    ```

    References:

    - [Liu et al., 2025](https://arxiv.org/abs/2505.24061)
    """

    observed = ("gradient_magnitude",)

    period = Hyperparameter(check_positive_integer, dtype="int32")
    max_fraction = Setting(_check_fraction)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        threshold: float = 0.01,
        period: int = 1000,
        reset_optimizer_state: bool = True,
        seed: int | None = None,
        name: str | None = None,
        max_fraction: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer, reset_optimizer_state, seed, name, **kwargs
        )
        self.threshold = threshold
        self.period = period
        self.max_fraction = max_fraction

    def update_statistics(self, units):
        # Marks of other updates are gone: what was marked has been replaced.
        backend.run_if(
            self.is_check(units),
            lambda: self._check(units),
            [units.utility, units.marks, *self.hyperparameter_variables()],
        )

    def _check(self, units):
        score = functional.gradient_score(units.gradient_magnitude())
        self.mark_dormant(units, score)
        if self.max_fraction == 1:
            return
        is_dormant = units.marks.value > 0
        ranked = ops.where(is_dormant, score, float("inf"))
        number = math.floor(self.max_fraction * units.size)
        self.mark(units, is_dormant & functional.least(ranked, number))

    def get_config(self) -> dict[str, Any]:
        names = ("threshold", "period", "max_fraction")
        return {**super().get_config(), **self.settings(*names)}
