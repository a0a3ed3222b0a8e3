"""Statistics of a layer's units, and which are replaced: pure functions."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.optimizers.continual_backprop import get_utility
from keras_plasticity.types import Tensor


@dataclasses.dataclass(frozen=True)
class Settings:
    """When units are replaced: see `optimizers.ContinualBackprop`.

    Args:
        replacement_rate: Float in [0, 1].
        maturity_threshold: Integer of at least 0.
        decay_rate: Float in [0, 1).
        utility: String, or a function like those of
            `keras_plasticity.functional`; not `"random"`.
    """

    replacement_rate: float = 1e-4
    maturity_threshold: int = 100
    decay_rate: float = 0.99
    utility: str | Callable[..., Tensor] = "contribution"

    def __post_init__(self) -> None:
        validation.check_in_interval(
            "replacement_rate", self.replacement_rate, "[0, 1]"
        )
        validation.check_integer(
            "maturity_threshold", self.maturity_threshold, 0, 2**24 - 1
        )
        validation.check_in_interval("decay_rate", self.decay_rate, "[0, 1)")
        function, _ = get_utility(self.utility)
        if function is None:
            rule = "a utility that is computed, not 'random'"
            raise validation.error("utility", rule, self.utility)


class UnitStatistics(NamedTuple):
    """What is known of the units of one layer.

    Attributes:
        age: Float32 tensor of shape `(units,)`, in updates.
        utility: Float32 tensor of shape `(units,)`.
        mean_activation: Float32 tensor of shape `(units,)`.
        count: Int32 tensor, the part of a unit that is due so far: see
            `functional.advance_count`.
    """

    age: Tensor
    utility: Tensor
    mean_activation: Tensor
    count: Tensor


def new_statistics(settings: Settings, units: int) -> UnitStatistics:
    """The statistics of a layer that was not trained.

    Args:
        settings: `Settings`.
        units: Integer, the number of units.

    Returns:
        `UnitStatistics`, all zero.
    """
    _, digits, _ = functional.count_digits(settings.replacement_rate, units)
    return UnitStatistics(
        ops.zeros((units,)),
        ops.zeros((units,)),
        ops.zeros((units,)),
        ops.zeros((len(digits),), "int32"),
    )


def update_statistics(
    settings: Settings,
    statistics: UnitStatistics,
    activations: Tensor,
    outgoing_magnitude: Tensor,
    incoming_magnitude: Tensor,
) -> tuple[UnitStatistics, Tensor]:
    """Takes in one update, and chooses the units to be replaced.

    A unit may be read as several features, such as one for each position of a
    feature map that is flattened: its utility is the mean over them.

    Args:
        settings: `Settings`.
        statistics: `UnitStatistics` before the update.
        activations: Tensor of shape `(examples, features a unit, units)`, as
            the next layer received them.
        outgoing_magnitude: Tensor of shape `(features a unit, units)`, mean
            absolute outgoing weights after the update.
        incoming_magnitude: Tensor of shape `(units,)`, the same of incoming
            ones.

    Returns:
        Tuple of the `UnitStatistics` after the update, in which replaced units
        have begun anew, and a boolean tensor of shape `(units,)`, which those
        are.
    """
    activations = ops.cast(activations, "float32")
    age = statistics.age + 1.0
    step_size = functional.step_size(age, settings.decay_rate)
    mean = functional.running_mean(
        statistics.mean_activation,
        ops.mean(activations, axis=(0, 1)),
        step_size,
    )
    shape = outgoing_magnitude.shape
    compute = {
        "activation_magnitude": lambda: ops.mean(ops.abs(activations), axis=0),
        "activation_deviation": lambda: ops.mean(
            ops.abs(activations - mean), axis=0
        ),
        "outgoing_magnitude": lambda: outgoing_magnitude,
        "incoming_magnitude": lambda: ops.broadcast_to(
            incoming_magnitude, shape
        ),
    }
    function, arguments = get_utility(settings.utility)
    now = function(
        **{name: ops.reshape(compute[name](), (-1,)) for name in arguments}
    )
    utility = functional.running_mean(
        statistics.utility, ops.mean(ops.reshape(now, shape), axis=0), step_size
    )

    threshold = settings.maturity_threshold
    due, count = functional.advance_count(
        statistics.count,
        ops.sum(ops.cast(age > threshold, "int32")),
        functional.count_digits(settings.replacement_rate, shape[-1]),
    )
    indices = ops.arange(shape[-1])

    def replace_next(
        due: Tensor, age: Tensor, replaced: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        unit = functional.least_useful_unit(utility, age, threshold)
        is_chosen = indices == ops.cast(unit, indices.dtype)
        return (
            due - 1,
            # A new unit is not mature.
            ops.where(is_chosen, 0.0, age),
            ops.logical_or(replaced, is_chosen),
        )

    _, age, replaced = ops.while_loop(
        lambda due, age, replaced: due > 0,
        replace_next,
        (due, age, ops.zeros_like(indices, dtype="bool")),
    )
    return (
        UnitStatistics(
            age,
            ops.where(replaced, 0.0, utility),
            ops.where(replaced, 0.0, mean),
            count,
        ),
        replaced,
    )


def check_backend(expected: str) -> None:
    """Checks that Keras computes with the framework of a module here.

    Args:
        expected: String, the name of the backend.

    Raises:
        ImportError: If it does not.
    """
    backend = keras.backend.backend()
    if backend != expected:
        raise ImportError(
            "Set the environment variable `KERAS_BACKEND` to "
            f"'{expected}' before Keras is imported: the formulas are computed "
            f"by Keras. Received: KERAS_BACKEND={backend}"
        )
