"""How many units are due, and which.

The count of units due grows by `replacement_rate * (mature units)` at each
update, tiny numbers over millions of updates. In float32 their sum drifts by
whole units. So the fraction is kept as decimal digits in integers: `rate` is
read as the shortest decimal number that stands for the float, as a person
would write it, and no update loses anything.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from keras import ops

from keras_plasticity import backend
from keras_plasticity import validation
from keras_plasticity.types import Tensor

# Digits beyond the 30th decimal place are dropped: at a thousand units, such
# a rate would not replace one in the age of the universe.
_DECIMALS = 30
# Of more, not even one decimal digit would fit in an int32.
_MOST_UNITS = 2**31 // 10 - 3
# Nearly the largest float32, from which on TensorFlow's `argmin` returns 0.
_LARGEST_UTILITY = 3.4e38


def count_digits(
    replacement_rate: float, units: int
) -> tuple[int, tuple[int, ...], int]:
    """Splits a replacement rate into digits for `advance_count`.

    Args:
        replacement_rate: Float in [0, 1].
        units: Integer, the number of units in the layer. It decides how many
            decimal places fit in one int32 digit.

    Returns:
        Tuple `(whole, digits, base)`: `replacement_rate` is `whole` plus the
        sum of `digits[i] / base**(i + 1)`.

    Example:

    >>> keras_plasticity.functional.count_digits(1e-4, units=2000)
    (0, (100,), 1000000)
    """
    replacement_rate = validation.check_in_interval(
        "replacement_rate", replacement_rate, "[0, 1]"
    )
    units = validation.check_positive_integer("units", units, _MOST_UNITS)
    decimal_places = 1
    while 10 ** (decimal_places + 1) * (units + 2) < 2**31:
        decimal_places += 1
    base = 10**decimal_places
    # Not by `decimal`, whose precision is any program's to set.
    rate = Fraction(repr(replacement_rate))
    whole = int(rate)
    rest = int((rate - whole) * 10**_DECIMALS)
    digits = []
    unit = 10**_DECIMALS
    while rest:
        rest *= base
        digits.append(rest // unit)
        rest %= unit
    return whole, tuple(digits), base


def advance_count(
    count: Tensor, mature: Tensor, digits: tuple[int, tuple[int, ...], int]
) -> tuple[Tensor, Tensor]:
    """Adds one update's `replacement_rate * mature` to the count.

    Args:
        count: Int32 tensor of shape `(len(digits[1]),)` or longer, the
            fraction of a unit carried so far, most significant digit first.
        mature: Int32 scalar tensor, the number of mature units.
        digits: The result of `count_digits`.

    Returns:
        Tuple `(due, count)`: the int32 number of whole units now due, and the
        fraction that remains.
    """
    whole, fraction, base = _check_digits(digits)
    count = validation.check_integer_tensor("count", count)
    mature = validation.check_integer_tensor("mature", mature)
    shape = validation.shape_of(count)
    if not shape or shape[0] is None or shape[0] < len(fraction):
        raise ValueError(
            "`count` must have an entry for each of the "
            f"{len(fraction)} digits. Received: count.shape={shape}"
        )
    if validation.shape_of(mature) != shape[1:]:
        validation.check_shapes(
            count=shape[1:], mature=validation.shape_of(mature)
        )
    carry = ops.zeros_like(mature)
    remaining = []
    for i in reversed(range(len(fraction))):
        total = count[i] + fraction[i] * mature + carry
        carry = backend.quotient(total, base)
        remaining.append(total - carry * base)
    if remaining:
        known = ops.stack(remaining[::-1])
        # Digits beyond those of this rate are of one before it.
        rest = count[len(fraction) :]
        count = ops.concatenate([known, rest]) if rest.shape[0] else known
    return carry + whole * mature, count


def least_useful_unit(
    utility: Tensor, age: Tensor, maturity_threshold: float
) -> Tensor:
    """Index of the mature unit with the lowest utility.

    Args:
        utility: Float tensor of shape `(units,)`.
        age: Float tensor of shape `(units,)`, in updates.
        maturity_threshold: Integer. A unit is mature when it is older. At
            least one unit has to be.

    Returns:
        Integer scalar tensor. Of several equal units, the first. Utilities
        that are infinite or NaN count as the highest, and `-inf` as the
        lowest: a unit that is not known to be useless is replaced last.
    """
    utility, age, maturity_threshold = validation.check_tensors(
        utility=utility, age=age, maturity_threshold=maturity_threshold
    )
    _check_units(utility, age, maturity_threshold)
    utility = ops.cast(utility, "float32")
    # Not by `minimum`, in which NaN stays NaN.
    utility = ops.where(utility < _LARGEST_UTILITY, utility, _LARGEST_UTILITY)
    # JAX's `argmin` takes -0.0 for less than 0.0.
    utility = ops.where(utility == 0.0, 0.0, utility)
    return ops.argmin(
        ops.where(age > maturity_threshold, utility, float("inf"))
    )


def _check_units(
    utility: Tensor, age: Tensor, maturity_threshold: Tensor
) -> None:
    shape = validation.shape_of(utility)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            "`utility` must have an entry for each unit, and one at least. "
            f"Received: utility.shape={shape}"
        )
    if validation.shape_of(age) != shape:
        raise ValueError(
            "`age` must have the shape of `utility`. Received: "
            f"age.shape={validation.shape_of(age)}, utility.shape={shape}"
        )
    if validation.shape_of(maturity_threshold) != ():
        raise validation.error(
            "maturity_threshold", "a single number", maturity_threshold
        )


def _check_digits(digits: Any) -> Sequence[Any]:
    rule = "the result of `count_digits`"
    parts = validation.check_list("digits", digits, rule=rule)
    if len(parts) != 3:
        raise validation.error("digits", rule, digits)
    validation.check_list("digits", parts[1], rule=rule)
    return parts
