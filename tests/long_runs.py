"""What is left of the numbers after a billion updates.

    python -m tests.long_runs

Nobody waits for a billion updates: the state after them is set, as it follows
from exact arithmetic, and the next updates are made. It prints a table.
"""

import math
from fractions import Fraction

import keras
import numpy as np

from keras_plasticity import functional
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.units.backward_pass import UNIT
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy

THRESHOLD = 100
_LARGEST_AGE = 2**24


def digits_of(fraction, number, base):
    """A number below 1 as so many digits."""
    digits = []
    for _ in range(number):
        fraction *= base
        digits.append(math.floor(fraction))
        fraction -= digits[-1]
    assert fraction == 0
    return digits


class LongRun:
    """A model whose units were never replaced, after any number of updates.

    Attributes:
        optimizer: `ContinualBackprop`.
        units: `HiddenUnits` of the first layer.
        due: Fraction, the units due so far.
    """

    def __init__(self, rate="0.00037", decay_rate=0.99):
        self.rate = Fraction(rate)
        self.model = make_model((4, 50, 3))
        self.optimizer = ContinualBackprop(
            keras.optimizers.SGD(0.01),
            replacement_rate=float(rate),
            maturity_threshold=THRESHOLD,
            decay_rate=decay_rate,
            seed=0,
        )
        self.model.compile(self.optimizer, "mse")
        self.optimizer.build(self.model.trainable_variables)
        (self.units,) = self.optimizer.hidden
        self.x, self._y = make_data(4, (4, 50, 3))

    def jump_to(self, updates):
        """Sets the state after so many updates of mature units."""
        units = self.units
        self.due = self.rate * units.size * updates
        units.age.assign(np.full(units.size, float(min(updates, _LARGEST_AGE))))
        units.num_updates.assign(updates)
        units.num_replaced.assign(math.floor(self.due))
        optimizer = self.optimizer
        count = optimizer._count
        digits = digits_of(self.due % 1, count.shape[0], optimizer._rate_base)
        count.assign(np.asarray(digits, "int32")[:, None])
        # What the update before has left for the next one.
        step_size = self.optimizer.step_size(units.age.value + 1.0)
        for outgoing in units.outgoing:
            shrinkage = outgoing.consumer.statistics.shrinkage
            shrinkage.assign(UNIT * (1.0 - step_size))

    def update(self):
        """Makes one update; returns how many units were mature in it."""
        mature = int(np.sum(to_numpy(self.units.age) + 1 > THRESHOLD))
        self.due += self.rate * mature
        self.model.train_on_batch(self.x, self._y)
        return mature


def main():
    run = LongRun()
    print(
        "| updates | `age` | `1 - 0.99**age` | `1 - 0.99999999**age` (exact) | "
        "mature, of 50 | replaced after 100 more (exact) | `num_updates` |"
    )
    print("| --- " * 7 + "|")
    for updates in (2**24 - 50, 2**24, 10**9, 2**31 - 101):
        run.jump_to(updates)
        mature = [run.update() for _ in range(100)]
        age = to_numpy(run.units.age).max()
        corrections = [_correction(decay, age) for decay in (0.99, 0.99999999)]
        exact = -math.expm1((updates + 100) * math.log(0.99999999))
        print(
            f"| {updates:,} | {age:,.0f} | {corrections[0]:.8g} | "
            f"{corrections[1]:.8g} ({exact:.8g}) | {mature[0]} | "
            f"{int(to_numpy(run.units.num_replaced)):,} "
            f"({math.floor(run.due):,}) | "
            f"{int(to_numpy(run.units.num_updates)):,} |"
        )


def _correction(decay_rate, age):
    """`1 - decay_rate**age`, as a step has it."""
    age = keras.ops.convert_to_tensor([age], "float32")
    step_size = to_numpy(functional.step_size(age, decay_rate))[0]
    return (1.0 - decay_rate) / float(step_size)


if __name__ == "__main__":
    main()
