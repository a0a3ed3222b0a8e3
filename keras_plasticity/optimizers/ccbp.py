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
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_integer
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


def _check_maturity(name, value):
    return check_integer(name, value, 0)


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

    With a `maturity_threshold` above 0, new units are spared: the share is
    multiplied by `min(age / maturity_threshold, 1)`, in which the age of a
    unit, in updates before this one, falls with it,
    `age <- (1 - share) * age + 1`. Without one, ages grow for ever.

    The discrete form, `continuous=False`, replaces whole units by the same
    utility. In every `period`th update, layer by layer, the units of an age of
    at least `maturity_threshold` are counted. `replacement_rate` times their
    number is how many of them are replaced, those of the least utility: they
    have a share of 1, all others of 0. The fraction of that number decides at
    random whether it is one more; if it is not, the fraction is added to the
    next number. The code that this follows takes a `maturity_threshold` of 100
    and `reset_optimizer_state=True` then.

    With `reset_optimizer_state` the entries of a unit in the slots of the inner
    optimizer move with its weights: momenta become `(1 - share) * m`, and
    others, such as Adam's second moment, `(1 - share) * v + share * mean`, with
    the mean over the units whose share is below a half, or 0 if there are none.
    Without, they stay as they are.

    In the continuous form no unit is replaced as a whole, so that
    `num_replaced()` stays 0. `layer.utility` holds `u` of the last update,
    before its reset.

    The code that this follows takes the output layer for a hidden one unless
    its name says otherwise; here it is never reset. It takes the outgoing
    weights of a convolution only if another convolution reads it; here it is
    any layer.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        replacement_rate: Float in [0, 1], the share of a unit of utility 0
            that is reset at once, or a schedule of Keras; a unit of utility 1
            has half of it. In the discrete form the part of the units that is
            replaced. Defaults to `0.015`.
        sharpness: Float, not negative, how fast the share falls with the
            utility. Of no use in the discrete form. Defaults to `16`.
        decay_rate: Float in [0, 1), of the running mean. Defaults to `0.99`.
        period: Positive integer, the number of updates between two resets.
            Defaults to `1000`.
        utility: `"gradient_magnitude"`, `"gradient_norm"`, `"contribution"` or
            `"adaptable_contribution"`. Defaults to `"gradient_magnitude"`.
        seed: Integer, of all that is drawn. Drawn at random by default.
        name: String, the optimizer's name.
        continuous: Boolean, whether all units are reset by a part; else some
            as a whole. Defaults to `True`.
        maturity_threshold: Integer, not negative, the number of updates up to
            which a unit is new. Defaults to `0`.
        reset_optimizer_state: Boolean, whether the slots of the inner optimizer
            are reset with the weights. Defaults to `False`.

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

    _chosen_by = ("replacement_rate", "sharpness", "maturity_threshold")

    replacement_rate = Hyperparameter(_check_rate, schedules=True)
    sharpness = Hyperparameter(check_not_negative)
    decay_rate = DecayRate()
    period = Hyperparameter(check_positive_integer, dtype="int32")
    utility = Setting(_check_utility)
    continuous = Setting(check_boolean)
    maturity_threshold = Hyperparameter(_check_maturity, dtype="int32")

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
        continuous: bool = True,
        maturity_threshold: int = 0,
        reset_optimizer_state: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer, reset_optimizer_state, seed, name, **kwargs
        )
        self.replacement_rate = replacement_rate
        self.sharpness = sharpness
        self.decay_rate = decay_rate
        self.period = period
        self.utility = utility
        self.continuous = continuous
        self.maturity_threshold = maturity_threshold

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
        if not self.continuous:
            # What is left of the number of units to be replaced.
            units.remainder = units.add_variable("remainder", shape=())

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
        if not self.continuous:
            return ops.cast(self._choose_units(units), "float32")
        utility = ops.convert_to_tensor(units.gradient_utility)
        share = self.now("replacement_rate") * ops.sigmoid(
            -self.now("sharpness") * (utility - 1.0)
        )
        threshold = ops.cast(self.now("maturity_threshold"), "float32")
        maturity = _age_before(units) / ops.maximum(threshold, 1.0)
        return share * ops.where(
            threshold > 0.0, ops.minimum(maturity, 1.0), 1.0
        )

    def _choose_units(self, units):
        """Which units of a layer are replaced, a boolean tensor."""
        threshold = ops.cast(self.now("maturity_threshold"), "float32")
        is_mature = _age_before(units) >= threshold
        num_mature = ops.sum(ops.cast(is_mature, "float32"))
        before = ops.convert_to_tensor(units.remainder)
        expected = self.now("replacement_rate") * num_mature + before
        whole = ops.floor(expected)
        rest = expected - whole
        is_one_more = self._draw_chance(units) < rest
        remainder = ops.where(is_one_more, 0.0, rest)
        units.remainder.assign(ops.where(num_mature > 0.0, remainder, before))
        number = ops.cast(whole, "int32") + ops.cast(is_one_more, "int32")
        utility = ops.convert_to_tensor(units.gradient_utility)
        utility = ops.where(is_mature, utility, float("inf"))
        return is_mature & functional.least(utility, number)

    def _draw_chance(self, units):
        return keras.random.uniform((), seed=self._seed_generator)

    def after_reset(self, units, share):
        utility = ops.convert_to_tensor(units.gradient_utility)
        units.gradient_utility.assign(utility + share * (1.0 - utility))
        threshold = self.now("maturity_threshold")
        is_counted = True if not self.continuous else threshold > 0
        age = (1.0 - share) * _age_before(units) + 1.0
        units.age.assign(ops.where(is_counted, age, units.age.value))
        if not self.continuous:
            units.num_replaced.assign_add(ops.cast(ops.sum(share), "int32"))

    def get_config(self) -> dict[str, Any]:
        names = ["replacement_rate", "sharpness", "decay_rate", "period"]
        names += ["utility", "continuous", "maturity_threshold"]
        return {**super().get_config(), **self.settings(*names)}


def _age_before(units):
    """How many updates each unit was there for before this one."""
    return ops.convert_to_tensor(units.age) - 1.0
