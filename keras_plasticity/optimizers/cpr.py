from typing import Any

import keras
from keras import ops

from keras_plasticity import functional
from keras_plasticity.functional.partial_reset import TRANSFORMS
from keras_plasticity.optimizers.partial_reset_optimizer import (
    PartialResetOptimizer,
)
from keras_plasticity.optimizers.periods import follows_period
from keras_plasticity.optimizers.settings import DecayRate
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer


def _check_rate(name, value):
    return check_in_interval(name, value, "[0, 1]")


def _check_transform(name, value):
    return check_choice(name, value, TRANSFORMS)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class CPR(PartialResetOptimizer):
    """Optimizer wrapper for calibrated partial resets.

    Where other methods replace a few units, this moves all units of low
    utility a part of the way to new weights. The utility `u` of a hidden unit
    is a running mean of the relative gradient of its incoming weights; it
    starts at 1, and in each update

    `u[i] <- decay_rate * u[i] + (1 - decay_rate) * score[i]`,

    `score[i] = mean(|g[:, i]|) / (mean over units of mean(|g|) + 1e-8)`,

    where `g` is the gradient of the layer's kernel in this update, as the loss
    has it: before the inner optimizer clips it or adds weight decay; with
    gradient accumulation it is the mean over the steps. After every `period`
    updates, layer by layer,

    - `share[i] = replacement_rate * f(u[i])`, where `f` falls from 1 at
        `threshold` to 0: see `keras_plasticity.functional.reset_share`;
    - incoming weights become `(1 - share) * w + share * draw`, with a draw from
        the layer's initializer;
    - outgoing weights become `(1 - share) * w`, before those of the next layer
        are mixed with its own draw;
    - all `u` are 1 again.

    Biases, gamma and beta of normalization layers, and the slots of the inner
    optimizer stay as they are, as in the authors' code. Their draws are from
    He's uniform distribution, whatever the network began with.

    Resets follow update `period + 1`, `2 * period + 1`, and so on. No unit is
    replaced as a whole: `num_replaced()` stays 0, and ages grow for ever.
    `layer.utility` holds `u` of the last update, in which it has not been set
    back yet.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        replacement_rate: Float in [0, 1], the largest share of a unit that is
            reset at once, or a schedule of Keras. Defaults to `0.015`.
        sharpness: Float, not negative, how fast the share falls with the
            utility. Defaults to `16`.
        threshold: Float, not negative, the utility up to which the share is
            the largest. Defaults to `1`, the mean of the layer.
        decay_rate: Float in [0, 1), of the running mean. Defaults to `0.99`.
        period: Positive integer, the number of updates between two resets.
            Defaults to `1000`.
        transform: `"sigmoid"`, `"exponential"`, `"softplus"` or `"linear"`, the
            function `f`. Defaults to `"sigmoid"`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.CPR(
        keras.optimizers.Adam(1e-3), replacement_rate=0.05, period=100
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, batch_size=32)
    ```

    References:

    - [Calibrated partial resets, 2026](https://arxiv.org/abs/2607.24996)
    """

    observed = ("gradient_magnitude",)
    _chosen_by = ("replacement_rate", "sharpness", "threshold")

    replacement_rate = Hyperparameter(_check_rate, schedules=True)
    sharpness = Hyperparameter(check_not_negative)
    threshold = Hyperparameter(check_not_negative)
    decay_rate = DecayRate()
    period = Hyperparameter(check_positive_integer, dtype="int32")
    transform = Setting(_check_transform)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        replacement_rate: float | Schedule = 0.015,
        sharpness: float = 16.0,
        threshold: float = 1.0,
        decay_rate: float = 0.99,
        period: int = 1000,
        transform: str = "sigmoid",
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if "reset_optimizer_state" in kwargs:
            raise ValueError(
                f"`{type(self).__name__}` does not take "
                "`reset_optimizer_state`: no unit is replaced as a whole, and "
                "the slots of the inner optimizer stay as they are. Received: "
                f"reset_optimizer_state={kwargs['reset_optimizer_state']!r}"
            )
        super().__init__(inner_optimizer, seed=seed, name=name, **kwargs)
        self.replacement_rate = replacement_rate
        self.sharpness = sharpness
        self.threshold = threshold
        self.decay_rate = decay_rate
        self.period = period
        self.transform = transform

    def add_state(self, units):
        units.gradient_utility = units.add_variable(
            "gradient_utility", initializer=1.0
        )

    def update_statistics(self, units):
        _, complement = ops.unstack(self.now("decay_rate"), 2)
        utility = functional.running_mean(
            units.gradient_utility.value,
            functional.gradient_score(units.gradient_magnitude()),
            complement,
        )
        units.gradient_utility.assign(utility)
        units.utility.assign(utility)

    def is_due(self, units):
        return follows_period(units.num_updates.value, self.now("period"))

    def reset_share(self, units):
        return self.now("replacement_rate") * functional.reset_share(
            ops.convert_to_tensor(units.gradient_utility),
            self.now("sharpness"),
            self.now("threshold"),
            self.transform,
        )

    def after_reset(self, units, share):
        units.gradient_utility.assign(ops.ones((units.size,)))

    def get_config(self) -> dict[str, Any]:
        names = ["replacement_rate", "sharpness", "threshold", "decay_rate"]
        names += ["period", "transform"]
        config = {**super().get_config(), **self.settings(*names)}
        del config["reset_optimizer_state"]
        return config
