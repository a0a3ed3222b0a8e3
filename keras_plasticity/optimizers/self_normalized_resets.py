from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.unit_reset_optimizer import UnitResetOptimizer
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_integer
from keras_plasticity.validation import check_positive_integer

# Counts of examples are float32, which is exact up to 2**24.
_LARGEST_AGE = 2**23


def _check_max_threshold(name, value):
    return check_integer(name, value, 1, _LARGEST_AGE)


def _check_quantile(name, value):
    return check_in_interval(name, value, "(0, 1)")


class _MinThreshold(Hyperparameter):
    def validate(self, optimizer, value):
        return check_integer(self.name, value, 1, optimizer.max_threshold)


class _InitialThreshold(Setting):
    def validate(self, optimizer, value):
        least, most = optimizer.min_threshold, optimizer.max_threshold
        return check_integer(self.name, value, least, most)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SelfNormalizedResets(UnitResetOptimizer):
    """Optimizer wrapper that replaces units silent for unusually long.

    A unit *fires* in an update if its pre-activation is positive for at least
    one example, at one position. For each hidden unit, the number of examples
    since it last fired is counted. In each update:

    1. the count of a unit that fired enters the unit's histogram and starts
        again at 0; that of a silent unit grows by the number of examples;
    2. a unit whose count reaches its threshold is replaced: its incoming
        weights and bias are drawn from the layer's initializers, its outgoing
        weights are zero, and its entries in the slots of the inner optimizer
        return to their initial values. Its count, too, enters the histogram
        and starts again at 0;
    3. every `threshold_period` updates each unit's threshold becomes the
        `quantile` of its histogram, if that is smaller, and else twice the
        threshold, within [`min_threshold`, `max_threshold`]; the histogram is
        emptied.

    So each unit is judged by its own habits. Counts of 0 are left out of the
    quantile, and a unit of which nothing else was counted (it fired in every
    update, or never) gets the smallest threshold, as in the authors' code.
    Where both ends of a weight are replaced it is a new draw.

    A unit fires as the layers that read it receive it: behind a `Dropout`, a
    unit that was dropped is silent, and of a separate `Activation` layer the
    activation has to be positive. Thresholds of 1,024 examples or more are
    exact to within 0.2 %: see `keras_plasticity.functional.age_bin`. The
    memory is some kilobytes a unit.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        quantile: Float in (0, 1), of the counts at which a unit fired. The
            higher, the fewer units are replaced. Defaults to `0.9`.
        min_threshold: Positive integer, the smallest threshold in examples.
            Defaults to `100`, as in the authors' code, whose batches have 100
            examples; a silent batch of that size is enough for a reset.
        max_threshold: Integer, the largest threshold in examples. Defaults to
            `20000`.
        initial_threshold: Integer in [`min_threshold`, `max_threshold`].
            Defaults to `10000`.
        threshold_period: Positive integer, the number of updates between two
            changes of the thresholds. Defaults to `1000`. The authors change
            them whenever one or more tasks end.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.SelfNormalizedResets(
        keras.optimizers.Adam(1e-3), quantile=0.95, threshold_period=500
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, batch_size=100)
    optimizer.num_replaced()  # {"dense": 4, "dense_1": 0}
    ```

    References:

    - [Farias and Jozefiak, 2024](https://arxiv.org/abs/2410.20098)
    """

    observed = ("firing", "num_examples")

    # The histograms have room for the largest threshold, and the initial one
    # is that of the first updates.
    max_threshold = Setting(_check_max_threshold)
    min_threshold = _MinThreshold(dtype="int32")
    initial_threshold = _InitialThreshold()
    quantile = Hyperparameter(_check_quantile)
    threshold_period = Hyperparameter(check_positive_integer, dtype="int32")

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        quantile: float = 0.9,
        min_threshold: int = 100,
        max_threshold: int = 20_000,
        initial_threshold: int = 10_000,
        threshold_period: int = 1000,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, seed=seed, name=name, **kwargs)
        self.max_threshold = max_threshold
        self.min_threshold = min_threshold
        self.initial_threshold = initial_threshold
        self.quantile = quantile
        self.threshold_period = threshold_period

    def add_state(self, units):
        bins = functional.num_age_bins(self.max_threshold)
        units.silence = units.add_variable("silence", restarts=True)
        units.histogram = units.add_variable("histogram", (units.size, bins))
        units.threshold = units.add_variable(
            "threshold", initializer=self.initial_threshold
        )

    def update_statistics(self, units):
        fired, before = units.fired(), units.silence.value
        silence = ops.where(fired, 0.0, before + units.num_examples())
        is_overdue = silence >= units.threshold.value
        # The silence that has ended; 0, which the quantile leaves out, if none.
        ended = ops.where(fired, before, ops.where(is_overdue, silence, 0.0))
        bins = functional.age_bin(ended, self.max_threshold)
        backend.add_to_rows(units.histogram, bins, 1.0)
        units.silence.assign(silence)
        self.mark(units, is_overdue)
        backend.run_if(
            units.num_updates.value % self.now("threshold_period") == 0,
            lambda: self._set_thresholds(units),
            [
                units.threshold,
                units.histogram,
                *self.hyperparameter_variables(),
            ],
        )

    def _set_thresholds(self, units):
        histogram = ops.convert_to_tensor(units.histogram)
        threshold = ops.convert_to_tensor(units.threshold)
        age = functional.age_quantile(histogram, self.now("quantile"))
        new = ops.where(age < threshold, age, 2.0 * threshold)
        least = ops.cast(self.now("min_threshold"), "float32")
        new = ops.clip(new, least, float(self.max_threshold))
        units.threshold.assign(new)
        units.histogram.assign(ops.zeros_like(histogram))

    def get_config(self) -> dict[str, Any]:
        names = ["quantile", "min_threshold", "max_threshold"]
        names += ["initial_threshold", "threshold_period"]
        return {**super().get_config(), **self.settings(*names)}
