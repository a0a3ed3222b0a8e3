"""Checks of arguments.

Each returns the value of an argument, or raises a `ValueError` that says what
was expected and what it received. `name` is the name of the argument, `value`
its value.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number of Python or NumPy."""
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def check_integer(
    name: str, value: Any, minimum: int, maximum: float = math.inf
):
    """Checks that an argument is an integer from `minimum` to `maximum`."""
    if not is_integer(value) or not minimum <= value <= maximum:
        end = "" if maximum == math.inf else f" and at most {maximum}"
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}{end}. "
            f"Received: {name}={value}"
        )
    return value


def check_positive_integer(name: str, value: Any):
    """Checks that an argument is an integer above 0."""
    if not is_integer(value) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value}"
        )
    return value


def check_positive(name: str, value: Any):
    """Checks that an argument is a finite number above 0."""
    if not is_number(value) or value <= 0:
        raise ValueError(
            f"`{name}` must be a positive number. Received: {name}={value}"
        )
    return value


def check_not_negative(name: str, value: Any):
    """Checks that an argument is a finite number of at least 0."""
    if not is_number(value) or value < 0:
        raise ValueError(
            f"`{name}` must be a number that is not negative. "
            f"Received: {name}={value}"
        )
    return value


def check_in_interval(name: str, value: Any, interval: str):
    """Checks that an argument is a finite number in an interval.

    Args:
        name: String.
        value: The argument.
        interval: String, such as `"[0, 1)"` or `"[0, inf)"`: a square bracket
            includes its end, a round one does not.
    """
    if not is_number(value) or not _lies_in(value, interval):
        raise ValueError(
            f"`{name}` must be a number in {interval}. Received: {name}={value}"
        )
    return value


def check_choice(name: str, value: Any, choices: Sequence):
    """Checks that an argument is one of `choices`."""
    if value not in choices:
        if len(choices) == 2:
            rule = " or ".join(map(repr, choices))
        else:
            rule = f"one of {tuple(choices)}"
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}")
    return value


def _lies_in(value, interval):
    low, high = map(float, interval[1:-1].split(","))
    is_above = low <= value if interval[0] == "[" else low < value
    is_below = value <= high if interval[-1] == "]" else value < high
    return is_above and is_below
