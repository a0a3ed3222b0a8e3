import numpy as np
import pytest

from keras_plasticity import validation

_NO_NUMBERS = [None, True, "1", float("nan"), float("inf"), 1j, [1.0]]


@pytest.mark.parametrize(
    ("check", "good", "bad", "rule"),
    [
        (
            lambda *args: validation.check_integer(*args, minimum=2),
            [2, np.int64(3)],
            [1, 2.0, -5],
            "an integer of at least 2",
        ),
        (
            validation.check_positive_integer,
            [1, np.uint8(3)],
            [0, 1.0, np.float32(2)],
            "a positive integer",
        ),
        (
            validation.check_positive,
            [1, 1e-9, np.float32(2)],
            [0, -1.0],
            "a positive number",
        ),
        (
            validation.check_not_negative,
            [0, 0.5, np.float32(0), np.int32(4)],
            [-1e-9, -1],
            "a number that is not negative",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "[0, 1)"),
            [0, 0.0, 0.999],
            [1, 1.0, -0.1],
            r"a number in \[0, 1\)",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "(0, 1]"),
            [1e-9, 1],
            [0, 1.001],
            r"a number in \(0, 1\]",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "[0, inf)"),
            [0, 1e30],
            [-1],
            r"a number in \[0, inf\)",
        ),
    ],
)
def test_numbers(check, good, bad, rule):
    for value in good:
        check("rate", value)
    for value in bad + _NO_NUMBERS:
        with pytest.raises(ValueError, match=f"^`rate` must be {rule}. Rec"):
            check("rate", value)


def test_the_error_ends_with_what_was_received():
    with pytest.raises(ValueError, match=r"\. Received: rate=-3$"):
        validation.check_not_negative("rate", -3)


def test_choice():
    validation.check_choice("size", 8, (8, 16))
    with pytest.raises(ValueError, match="^`size` must be 8 or 16. .*size=9$"):
        validation.check_choice("size", 9, (8, 16))
    with pytest.raises(ValueError, match="must be one of .'a', 'b', 'c'.. Rec"):
        validation.check_choice("kind", "d", ["a", "b", "c"])
