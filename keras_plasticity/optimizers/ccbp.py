from typing import Any

import keras
from keras import ops

from keras_plasticity import functional
from keras_plasticity.optimizers.partial_reset_optimizer import (
    PartialResetOptimizer,
)
from keras_plasticity.optimizers.periods import ends_period
from keras_plasticity.optimizers.settings import DecayRate
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer

_UTILITIES = (
    "gradient_magnitude",
    "gradient_norm",
    "contribution",
    "adaptable_contribution",
)
# A unit that nobody reads has a contribution, and one without incoming weights
# a finite one.
_LEAST_OUTGOING = 1e-4
_LEAST_INCOMING = 1e-8


def _check_rate(name, value):
    return check_in_interval(name, value, "[0, 1]")


def _check_utility(name, value):
    return check_choice(name, value, _UTILITIES)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class CCBP(PartialResetOptimizer):
    """Optimizer wrapper for continuous continual backpropagation.

    It is another algorithm than `ContinualBackprop`: where that replaces the
    least useful units, this moves all units a part of the way to a new start,
    the more the less useful they are. (`CPR` is a later form of it by the same
    authors.) In each update, for each hidden unit,

    - `b[i] = mean(|g[:, i]|) + |g_bias[i]|`, from the gradients `g` of the
        layer's kernel and bias, as the loss has them: before the inner
        optimizer clips them or adds weight decay; with gradient accumulation
        they are the mean over the steps;
    - `score[i] = b[i] / max(mean over units of b, 1e-8)`;
    - `u[i] <- u[i] + (1 - decay_rate) * (score[i] - u[i])`, which starts at 1.

    In each `period`th update, layer by layer,

    - `share[i] = replacement_rate * sigmoid(-sharpness * (u[i] - 1))`;
    - incoming weights become `(1 - share) * w + share * draw`, with a draw from
        the layer's initializer;
    - biases, and gamma and beta of normalization on the way, become
        `(1 - share) * b + share * initial`, with their values at the time the
        optimizer was built;
    - outgoing weights become `(1 - share) * w`, before those of the next layer
        are mixed with its own draw;
    - `u[i] <- u[i] + share[i] * (1 - u[i])`.

    Other measures than `mean(|g[:, i]|)` can be chosen, in which `w_in` and
    `w_out` are a unit's incoming and outgoing weights after the update:

    - `"gradient_norm"`: the Euclidean norm of `g[:, i]`;
    - `"contribution"`: `mean(|g[:, i]|) * (mean(|w_out|) + 1e-4)`;
    - `"adaptable_contribution"`: the same divided by
        `max(mean(|w_in|), 1e-8)`.

    The slots of the inner optimizer stay as they are. No unit is replaced as a
    whole: `num_replaced()` stays 0, and ages grow for ever. `layer.utility`
    holds `u` of the last update, before its reset.

    The code that this follows takes the output layer for a hidden one unless
    its name says otherwise; here it is never reset.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        replacement_rate: Float in [0, 1], the share of a unit of utility 0
            that is reset at once, or a schedule of Keras; a unit of utility 1
            has half of it. Defaults to `0.015`.
        sharpness: Float, not negative, how fast the share falls with the
            utility. Defaults to `16`.
        decay_rate: Float in [0, 1), of the running mean. Defaults to `0.99`.
        period: Positive integer, the number of updates between two resets.
            Defaults to `1000`.
        utility: `"gradient_magnitude"`, `"gradient_norm"`, `"contribution"` or
            `"adaptable_contribution"`. Defaults to `"gradient_magnitude"`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.CCBP(
        keras.optimizers.Adam(1e-3), replacement_rate=0.05, period=100
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, batch_size=32)
    ```

    References:

    - [Learning continually at peak performance with continuous continual
        backpropagation](https://openreview.net/forum?id=UJqXhFFzKu)
    - [Calibrated partial resets, 2026](https://arxiv.org/abs/2607.24996)
    """

    _chosen_by = ("replacement_rate", "sharpness")

    replacement_rate = Hyperparameter(_check_rate, schedules=True)
    sharpness = Hyperparameter(check_not_negative)
    decay_rate = DecayRate()
    period = Hyperparameter(check_positive_integer, dtype="int32")
    utility = Setting(_check_utility)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        replacement_rate: float | Schedule = 0.015,
        sharpness: float = 16.0,
        decay_rate: float = 0.99,
        period: int = 1000,
        utility: str = "gradient_magnitude",
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, seed, name, **kwargs)
        self.replacement_rate = replacement_rate
        self.sharpness = sharpness
        self.decay_rate = decay_rate
        self.period = period
        self.utility = utility

    @property
    def observed(self):
        is_norm = self.utility == "gradient_norm"
        return (
            "gradient_norm" if is_norm else "gradient_magnitude",
            "bias_gradient_magnitude",
        )

    @property
    def _goes_layer_by_layer(self):
        # A unit's incoming weights are those that the layer before has left.
        return self.utility == "adaptable_contribution"

    def add_state(self, units):
        units.keep_initial_biases()
        units.gradient_utility = units.add_variable(
            "gradient_utility", initializer=1.0
        )

    def update_statistics(self, units):
        _, complement = ops.unstack(self.now("decay_rate"), 2)
        measure = self._measure(units) + units.bias_gradient_magnitude()
        utility = functional.running_mean(
            units.gradient_utility.value,
            measure / ops.maximum(ops.mean(measure), 1e-8),
            complement,
        )
        units.gradient_utility.assign(utility)
        units.utility.assign(utility)

    def _measure(self, units):
        if self.utility == "gradient_norm":
            return units.gradient_norm()
        magnitude = units.gradient_magnitude()
        if self.utility == "gradient_magnitude":
            return magnitude
        outgoing = units.mean_over_consumers(
            lambda outgoing: outgoing.view.mean_magnitude(), by_weights=True
        )
        contribution = magnitude * (outgoing + _LEAST_OUTGOING)
        if self.utility == "contribution":
            return contribution
        incoming = ops.maximum(units.incoming_magnitude(), _LEAST_INCOMING)
        return contribution / incoming

    def is_due(self, units):
        return ends_period(units.num_updates.value, self.now("period"))

    def reset_share(self, units):
        utility = ops.convert_to_tensor(units.gradient_utility)
        return self.now("replacement_rate") * ops.sigmoid(
            -self.now("sharpness") * (utility - 1.0)
        )

    def after_reset(self, units, share):
        utility = ops.convert_to_tensor(units.gradient_utility)
        units.gradient_utility.assign(utility + share * (1.0 - utility))

    def get_config(self) -> dict[str, Any]:
        names = ["replacement_rate", "sharpness", "decay_rate", "period"]
        return {**super().get_config(), **self.settings(*names, "utility")}
