"""Arguments of an optimizer that may be changed later, and those that may not.

Both are attributes of the optimizer's class, and check whatever is assigned to
them, in the constructor or later.
"""

import functools
from fractions import Fraction
from typing import TypeAlias

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity.functional.running_mean import decay_constants
from keras_plasticity.optimizers.inner_optimizers import counts
from keras_plasticity.validation import check_in_interval

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


class Setting:
    """An argument that cannot change once the optimizer is built.

    Args:
        check: Function `(name, value)` that returns the value to keep, or
            raises a `ValueError`. By default any value is kept.
    """

    def __init__(self, check=None):
        self.check = check

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        if optimizer is None:
            return self
        try:
            return vars(optimizer)[f"_setting_{self.name}"]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, optimizer, value):
        if getattr(optimizer, "built", False):
            raise ValueError(
                f"`{self.name}` of a `{type(optimizer).__name__}` cannot "
                "change once it is built on a model. Make a new optimizer, "
                f"and `compile` the model again. Received: {self.name}={value}"
            )
        self.keep(optimizer, self.validate(optimizer, value))

    def validate(self, optimizer, value):
        """The value to keep; raises a `ValueError` if it cannot be."""
        return value if self.check is None else self.check(self.name, value)

    def keep(self, optimizer, value):
        # Not by `setattr`: TensorFlow wraps what it tracks.
        vars(optimizer)[f"_setting_{self.name}"] = value


class Hyperparameter(Setting):
    """A number that may be changed at any time.

    Once the optimizer is built the number is one of its variables, so that a
    change takes effect at the next step, compiled or not. It is saved and
    restored as any variable is.

    Args:
        check: See `Setting`.
        dtype: String, of the variable. Defaults to `"float32"`.
        schedules: Boolean, whether a schedule of Keras may be given: a
            function of the number of updates made so far. Defaults to `False`.
    """

    def __init__(self, check=None, dtype="float32", schedules=False):
        super().__init__(check)
        self.dtype = dtype
        self.schedules = schedules

    def encode(self, optimizer, value):
        """The variable's value, an array, that stands for a number."""
        return np.asarray(value, self.dtype)

    def decode(self, optimizer, array):
        """The number that a variable's value stands for."""
        if self.dtype == "int32":
            return int(array)
        return shortest_float(array)

    def __get__(self, optimizer, owner=None):
        value = super().__get__(optimizer, owner)
        variable = None if optimizer is None else self.variable(optimizer)
        if variable is None or isinstance(value, Schedule):
            return value
        array = backend.known_value(variable)
        if array is None or np.array_equal(
            array, self.encode(optimizer, value)
        ):
            return value
        # It was restored, or is that of another learner.
        return self.decode(optimizer, array)

    def __set__(self, optimizer, value):
        is_schedule = self.schedules and isinstance(value, Schedule)
        if not is_schedule:
            value = self.validate(optimizer, value)
        if getattr(optimizer, "built", False):
            before = super().__get__(optimizer)
            if is_schedule or isinstance(before, Schedule):
                raise ValueError(
                    f"`{self.name}` of a `{type(optimizer).__name__}` cannot "
                    "change from or to a schedule once it is built on a model. "
                    "Make a new optimizer, and `compile` the model again. "
                    f"Received: {self.name}={value}, before {before}"
                )
            self.assign(optimizer, value)
        self.keep(optimizer, value)

    def variable(self, optimizer):
        """The variable that holds the number; `None` before it is built."""
        return vars(optimizer).get(f"_variable_{self.name}")

    def read_variables(self, optimizer):
        """List of the variables that `now` reads."""
        if isinstance(super().__get__(optimizer), Schedule):
            # Not `iterations`, which is computed where gradients accumulate.
            return counts(optimizer)
        variable = self.variable(optimizer)
        return [] if variable is None else [variable]

    def build(self, optimizer):
        """Adds the variable."""
        value = super().__get__(optimizer)
        if isinstance(value, Schedule):
            return
        array = self.encode(optimizer, value)
        vars(optimizer)[f"_variable_{self.name}"] = optimizer.add_variable(
            array.shape,
            dtype=self.dtype,
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                array, dtype
            ),
            name=self.name,
        )

    def assign(self, optimizer, value):
        self.variable(optimizer).assign(self.encode(optimizer, value))

    def now(self, optimizer):
        """The value in a step: a tensor."""
        value = super().__get__(optimizer)
        if isinstance(value, Schedule):
            return value(optimizer.iterations)
        return self.variable(optimizer).value


class DecayRate(Hyperparameter):
    """The decay rate of a running mean, in [0, 1).

    Its variable holds two numbers that cannot be computed in float32: see
    `keras_plasticity.functional.running_mean.decay_constants`.
    """

    def __init__(self):
        super().__init__(_check_decay_rate)

    def encode(self, optimizer, value):
        return np.asarray(decay_constants(value), "float32")

    def decode(self, optimizer, array):
        return float(1 - Fraction(repr(shortest_float(array[1]))))


def _check_decay_rate(name, value):
    return check_in_interval(name, value, "[0, 1)")


def shortest_float(array):
    """The shortest decimal number that float32 does not tell from a value."""
    return float(str(np.float32(array)))


@functools.cache
def all_settings(kind):
    """Dict from name to the settings of a class of optimizers."""
    found = {}
    for each in reversed(kind.__mro__):
        for name, value in vars(each).items():
            if isinstance(value, Setting):
                found[name] = value
            else:
                found.pop(name, None)
    return found


@functools.cache
def all_hyperparameters(kind):
    """Dict from name to those that are state."""
    return {
        name: setting
        for name, setting in all_settings(kind).items()
        if isinstance(setting, Hyperparameter)
    }
