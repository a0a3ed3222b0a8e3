import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.functional.running_mean import step_size_by_log
from keras_plasticity.optimizers.settings import DecayRate
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.unit_reset_optimizer import UnitResetOptimizer
from keras_plasticity.types import Tensor
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import error
from keras_plasticity.validation import is_integer

_UTILITIES = {
    "contribution": functional.contribution,
    "mean_corrected_contribution": functional.mean_corrected_contribution,
    "adaptation": functional.adaptation,
    "overall": functional.overall,
    "weight_magnitude": functional.weight_magnitude,
}
_UTILITY_ARGUMENTS = (
    "activation_magnitude",
    "activation_deviation",
    "outgoing_magnitude",
    "incoming_magnitude",
)
_OBSERVED = ("activation_magnitude", "activation_deviation")
# The fewest decimal places kept of a rate, so that a rate set later has room,
# and so that one program trains learners with rates of their own: all rates
# from 1e-7 on, whose 17 digits end before.
_FEWEST_PLACES = 24
# Ages are float32, which counts exactly up to here.
_LARGEST_AGE = 2**24


def _check_rate(name, value):
    return check_in_interval(name, value, "[0, 1]")


def _check_maturity_threshold(name, value):
    if not is_integer(value) or not 0 <= value < _LARGEST_AGE:
        expected = f"a number of updates, an integer in [0, {_LARGEST_AGE})"
        raise error(name, expected, value)
    return int(value)


def _check_utility(name, value):
    get_utility(value)
    return value


class _ReplacementRate(Hyperparameter):
    """It is held in digits, of which the largest layer says how long they are.

    All layers share them, so that one short computation counts the units due
    in all of them.
    """

    def build(self, optimizer):
        pass  # Not before the layers are known.

    def build_for_layers(self, optimizer):
        """Adds the variables, once the layers are known."""
        value = Setting.__get__(self, optimizer)
        rate = 0.0 if isinstance(value, Schedule) else value
        _, fraction, base = self._digits(optimizer, rate)
        places = len(str(base)) - 1
        size = max(math.ceil(_FEWEST_PLACES / places), len(fraction))
        # The fraction of a unit that each layer carries.
        optimizer._count = optimizer.add_variable(
            (size, len(optimizer.hidden)),
            dtype="int32",
            initializer="zeros",
            name="count",
        )
        optimizer._rate_base = base
        super().build(optimizer)

    def _digits(self, optimizer, rate):
        sizes = [units.size for units in optimizer.hidden]
        return functional.count_digits(rate, max(sizes, default=1))

    def encode(self, optimizer, value):
        # The whole number, and the digits after it, that fit.
        whole, digits, _ = self._digits(optimizer, value)
        size = optimizer._count.shape[0]
        digits = [*digits, *[0] * size][:size]
        return np.asarray([whole, *digits], "int32")

    def decode(self, optimizer, array):
        base = optimizer._rate_base
        digits = enumerate(map(int, array))
        return float(sum(Fraction(digit, base**i) for i, digit in digits))

    def digits_now(self, optimizer):
        """The rate in a step, as `functional.advance_count` takes it."""
        base, size = optimizer._rate_base, optimizer._count.shape[0]
        rate = self.now(optimizer)
        if not isinstance(Setting.__get__(self, optimizer), Schedule):
            whole, *fraction = ops.unstack(rate, 1 + size)
            return whole, fraction, base
        # A decimal number just below itself in float32 gets its digits.
        rest = ops.clip((1.0 + 1e-7) * rate, 0.0, 1.0)
        digits = []
        for scale in [1.0] + size * [float(base)]:
            rest = rest * scale
            digit = ops.floor(rest)
            rest = rest - digit
            digits.append(ops.cast(digit, "int32"))
        return digits[0], digits[1:], base


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ContinualBackprop(UnitResetOptimizer):
    """Optimizer wrapper that replaces the least useful units.

    Continual backpropagation is an ordinary optimizer step followed by
    *generate and test*: each hidden unit of the model's plastic layers has a
    utility and an age, and at a tiny rate the least useful of the mature units
    are replaced. A new unit's incoming weights are drawn from the layer's
    initializers, its outgoing weights are zero, so that at first it disturbs
    nothing, and its age and utility start from zero.

    After the inner optimizer's step, for each plastic layer that other
    plastic layers read:

    1. every unit ages by one, and its mean activation and utility, which are
        running means with `decay_rate`, take up this batch;
    2. a count grows by `replacement_rate` x (number of units older than
        `maturity_threshold`), without rounding;
    3. whenever the count reaches 1, the mature unit with the lowest utility is
        replaced and the count reduced by 1.

    The statistics of all layers are updated before any unit is replaced; units
    are replaced layer by layer in the order of the model. Where a replaced unit
    reads another one, the weight between them is the newly drawn one. A unit of
    a recurrent layer, which reads itself in the next time step, does not when
    it is new.

    One update is one step that the inner optimizer makes: with gradient
    accumulation, units age once per accumulated step, on the mean of what
    was observed; a step that loss scaling skips counts for nothing.

    Layers with `trainable=False` are never changed: neither their units nor
    those that they read are replaced.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built. Learning rate, clipping, weight decay, gradient
            accumulation and moving averages are set on it.
        replacement_rate: Float in [0, 1], the fraction of mature units that
            is replaced in each update, or a schedule of Keras, exact to 1e-7.
            Defaults to `1e-4`.
        maturity_threshold: Integer, the number of updates for which a new
            unit cannot be replaced. Defaults to `100`.
        decay_rate: Float in [0, 1), of the running means. Defaults to `0.99`.
        utility: How useful a unit is: `"contribution"` (default),
            `"mean_corrected_contribution"`, `"adaptation"`, `"overall"`
            (mean-corrected contribution over incoming magnitude),
            `"weight_magnitude"`, `"random"`, or a function like those of
            `keras_plasticity.functional`. A unit that several layers read has
            the mean of its utilities, weighted by their numbers of units.
        transfer_mean: Boolean, whether the mean contribution of a replaced
            unit moves into the biases of the layers that read it. Then the
            network's output changes by the unit's deviation from its mean
            only. Defaults to `False`, as the published results.
        reset_optimizer_state: Boolean, whether the entries of a replaced unit
            in the slots of the inner optimizer (momentum, velocity, ...)
            return to their initial value. Defaults to `True`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.Adam(1e-3), replacement_rate=1e-4
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    optimizer.num_replaced()  # {"dense": 17, "dense_1": 12}
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    replacement_rate = _ReplacementRate(_check_rate, "int32", schedules=True)
    maturity_threshold = Hyperparameter(_check_maturity_threshold)
    decay_rate = DecayRate()
    utility = Setting(_check_utility)
    transfer_mean = Setting(check_boolean)
    _chosen_by = ("maturity_threshold",)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        replacement_rate: float | Schedule = 1e-4,
        maturity_threshold: int = 100,
        decay_rate: float = 0.99,
        utility: str | Callable[..., Tensor] = "contribution",
        transfer_mean: bool = False,
        reset_optimizer_state: bool = True,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer, reset_optimizer_state, seed, name, **kwargs
        )
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.utility = utility
        self.transfer_mean = transfer_mean
        self._utility_function, self._utility_arguments = get_utility(utility)

    @property
    def observed(self):
        return ("activation_mean",) + tuple(
            name for name in self._utility_arguments if name in _OBSERVED
        )

    def add_state(self, units):
        if self.transfer_mean:
            for outgoing in units.outgoing:
                outgoing.consumer.check_folds_constants(units.layer)

    def _add_network_state(self):
        type(self).replacement_rate.build_for_layers(self)
        self._waiting = self.add_variable(
            (len(self.hidden),),
            dtype="int32",
            initializer="zeros",
            name="waiting",
        )
        self._network_variables = [self._count, self._waiting]

    def update_statistics(self, units):
        units.mean_activation.assign(
            units.mean_over_consumers(
                lambda outgoing: outgoing.inputs.running_mean()
            )
        )
        if self._utility_function is None:
            utility = keras.random.uniform(
                (units.size,), seed=self._seed_generator
            )
        else:
            utility = functional.running_mean(
                units.utility.value,
                self._utility_now(units),
                self.step_size(units.age.value),
            )
        units.utility.assign(utility)

    def _utility_now(self, units):
        """The utility of each unit on this batch."""
        if "incoming_magnitude" in self._utility_arguments:
            incoming_magnitude = units.incoming_magnitude()

        def utility(outgoing):
            means = outgoing.inputs.means
            compute = {
                "activation_magnitude": lambda: means["activation_magnitude"],
                "activation_deviation": lambda: means["activation_deviation"],
                "outgoing_magnitude": outgoing.view.mean_magnitude,
                "incoming_magnitude": lambda: outgoing.feature_map.to_features(
                    incoming_magnitude, 1.0
                ),
            }
            return self._utility_function(
                **{name: compute[name]() for name in self._utility_arguments}
            )

        return units.mean_over_consumers(utility, by_weights=True)

    def most_due(self, units):
        rate = self.replacement_rate
        if isinstance(rate, Schedule):
            return None
        return int(Fraction(repr(rate)) * units.size) + 1

    @property
    def _counts_together(self):
        return type(self).num_due is ContinualBackprop.num_due

    def num_due(self, units):
        (due,) = self._nums_due([units], [True])
        return due

    def _nums_due(self, hidden, took_part):
        took_part = {id(units): part for units, part in zip(hidden, took_part)}
        threshold = self.now("maturity_threshold")

        def is_mature(units):
            part = took_part.get(id(units), False)
            if part is False:
                return ops.zeros((units.size,), "bool")
            mature = units.age.value > threshold
            return mature if part is True else ops.logical_and(mature, part)

        mature = backend.count_true([is_mature(units) for units in self.hidden])
        due, count = functional.advance_count(
            self._count.value,
            mature,
            type(self).replacement_rate.digits_now(self),
        )
        self._count.assign(count)
        bounds = [self._room(units) for units in self.hidden]
        if None not in bounds and backend.avoids_branches():
            # A rate that was raised after the step was compiled: units for
            # which it has no room wait.
            due = due + self._waiting.value
            now = ops.minimum(due, ops.minimum(mature, bounds))
            sizes = [units.size for units in self.hidden]
            self._waiting.assign(ops.minimum(due - now, sizes))
            due = now
        due = ops.unstack(due, len(self.hidden))
        return [due[self.hidden.index(units)] for units in hidden]

    def choose(self, units):
        return functional.least_useful_unit(
            ops.convert_to_tensor(units.utility),
            ops.convert_to_tensor(units.age),
            self.now("maturity_threshold"),
        )

    def step_size(self, age):
        log_decay, complement = ops.unstack(self.now("decay_rate"), 2)
        return step_size_by_log(age, log_decay, complement)

    def before_replacement(self, units, unit):
        if not self.transfer_mean:
            return
        for outgoing in units.outgoing:
            for feature in outgoing.feature_map.features_of(unit):
                mean = ops.take(outgoing.inputs.running_mean(), feature)
                outgoing.consumer.fold_constant_into_bias(feature, mean)

    def get_config(self) -> dict[str, Any]:
        names = ["replacement_rate", "maturity_threshold", "decay_rate"]
        names += ["utility", "transfer_mean"]
        return {**super().get_config(), **self.settings(*names)}


def get_utility(utility):
    """The function of a utility, and the names of its arguments.

    The function is `None` for `"random"`, which is no mean of anything.
    """
    if isinstance(utility, str) and utility == "random":
        return None, ()
    function = _UTILITIES.get(utility) if isinstance(utility, str) else utility
    if not callable(function):
        known = ", ".join(repr(name) for name in [*_UTILITIES, "random"])
        raise error(
            "utility",
            f"one of {known}, or a function like those of "
            "`keras_plasticity.functional`",
            utility,
        )
    try:
        arguments = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        arguments = ()  # Python does not know those of all built-in functions.
    if not arguments or not set(arguments) <= set(_UTILITY_ARGUMENTS):
        raise ValueError(
            "A `utility` function must take one or more of the arguments "
            f"{', '.join(_UTILITY_ARGUMENTS)}, by these names. "
            f"Received: utility={utility} with the arguments {arguments}"
        )
    return function, arguments
