"""Checks of arguments, for the whole library.

Each returns the value of an argument in its plain form (a Python number, a
list, a NumPy array), or raises an error that says what was expected and what
was received: a `TypeError` where only some kind of object will do, and else a
`ValueError`. `name` is the name of the argument, `value` its value.

- Numbers of NumPy are numbers: `np.float32(1e-4)` is 0.0001.
- Booleans are no numbers, and nothing but booleans are booleans.
- NaN and infinity lie in no interval, and no number is beyond float32.
"""

import math
import numbers
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
from typing import Any

import keras
import numpy as np

from keras_plasticity.types import Tensor

# What an int32 holds, and the seeds that Keras takes on every backend.
LARGEST_INTEGER = 2**31 - 1
_LARGEST_FLOAT32 = float(np.finfo("float32").max)
_LONGEST_VALUE = 300


def received(name: str, value: Any) -> str:
    """The end of an error's message: an argument and its value."""
    is_string = isinstance(value, str)
    try:
        text = str(value) if is_string else repr(value)
    except Exception:  # An integer of too many digits; what a user's class may.
        text = f"an object of {type(value)}"
    if len(text) > _LONGEST_VALUE:
        text = f"{text[:_LONGEST_VALUE]}..."
    return f"Received: {name}={text}" + is_string * " (a string)"


def error(name: str, rule: str, value: Any) -> ValueError:
    """The error of an argument that is not what it must be."""
    return ValueError(f"`{name}` must be {rule}. {received(name, value)}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number of Python or NumPy."""
    number = _as_float(value)
    return number is not None and abs(number) <= _LARGEST_FLOAT32


def is_interval(value: Any) -> bool:
    """Whether a value is a string that `lies_in` takes."""
    if not isinstance(value, str):
        return False
    try:
        low, high = _ends(value)
    except ValueError:
        return False
    return low <= high and value[0] in "[(" and value[-1] in ")]"


def lies_in(value: float, interval: str) -> bool:
    """Whether a finite number lies in an interval, such as `"[0, 1)"`."""
    low, high = _ends(interval)
    is_above = low <= value if interval[0] == "[" else low < value
    is_below = value <= high if interval[-1] == "]" else value < high
    return is_above and is_below


def check_integer(
    name: str, value: Any, minimum: int, maximum: float = LARGEST_INTEGER
) -> int:
    """Checks that an argument is an integer from `minimum` to `maximum`."""
    rule = f"an integer of at least {minimum}"
    return _check_integer(name, value, rule, minimum, maximum)


def check_positive_integer(
    name: str, value: Any, maximum: int = LARGEST_INTEGER
) -> int:
    """Checks that an argument is an integer above 0."""
    return _check_integer(name, value, "a positive integer", 1, maximum)


def check_seed(name: str, value: Any) -> int | None:
    """Checks that an argument is a seed of Keras' generators, or `None`."""
    if value is None:
        return None
    rule = "`None`, or an integer of at least 0"
    return _check_integer(name, value, rule, 0, LARGEST_INTEGER)


def check_number(name: str, value: Any) -> float:
    """Checks that an argument is a finite number."""
    return _check_number(name, value, "a finite number", lambda n: True)


def check_positive(name: str, value: Any) -> float:
    """Checks that an argument is a finite number above 0."""
    return _check_number(name, value, "a positive number", lambda n: n > 0)


def check_not_negative(name: str, value: Any) -> float:
    """Checks that an argument is a finite number of at least 0."""
    rule = "a number that is not negative"
    return _check_number(name, value, rule, lambda n: n >= 0)


def check_in_interval(name: str, value: Any, interval: str) -> float:
    """Checks that an argument is a finite number in an interval.

    Args:
        name: String.
        value: The argument.
        interval: String, such as `"[0, 1)"` or `"[0, inf)"`: a square bracket
            includes its end, a round one does not.
    """
    rule = f"a number in {interval}"
    return _check_number(name, value, rule, lambda n: lies_in(n, interval))


def check_boolean(name: str, value: Any) -> bool:
    """Checks that an argument is `True` or `False`."""
    if not isinstance(value, (bool, np.bool_)):
        raise error(name, "`True` or `False`", value)
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence) -> Any:
    """Checks that an argument is one of `choices`: strings or integers."""
    plain = int(value) if is_integer(value) else value
    for choice in choices:
        # An array that is compared with a string is an array.
        is_alike = type(plain) is not bool and isinstance(plain, type(choice))
        if is_alike and plain == choice:
            return choice
    if len(choices) == 2:
        rule = " or ".join(map(repr, choices))
    else:
        rule = f"one of {tuple(choices)}"
    raise error(name, rule, value)


def check_dtype(name: str, value: Any) -> str:
    """Checks that an argument is the name of a dtype of Keras."""
    try:
        return keras.backend.standardize_dtype(value)
    except Exception:  # Of a value that cannot be looked up.
        raise error(name, "a dtype, such as 'float32'", value) from None


def check_string(name: str, value: Any) -> str:
    """Checks that an argument is a string."""
    if not isinstance(value, str):
        raise error(name, "a string", value)
    return str(value)


def check_path(name: str, value: Any) -> str:
    """Checks that an argument is the path of a file or a folder."""
    is_path = isinstance(value, (str, os.PathLike))
    path = str(os.fspath(value)) if is_path else ""
    if not path or "\0" in path:
        raise error(name, "a path, a string that is not empty", value)
    return path


def check_list(
    name: str, value: Any, kind: type = object, rule: str = "a list"
) -> list:
    """Checks that an argument is a list, tuple or set of objects of a kind."""
    if (
        not isinstance(value, (Sequence, Set))
        or isinstance(value, (str, bytes))
        or not all(isinstance(each, kind) for each in value)
    ):
        raise error(name, rule, value)
    return list(value)


def check_mapping(
    name: str, value: Any, keys: Iterable[str] = (), rule: str = "a dict"
) -> Mapping:
    """Checks that an argument is a dict that has some keys."""
    if not isinstance(value, Mapping) or not all(key in value for key in keys):
        raise error(name, rule, value)
    return value


def check_type(name: str, value: Any, kind: Any, rule: str) -> Any:
    """Checks that an argument is an object of a kind.

    Args:
        name: String.
        value: The argument.
        kind: Class, or tuple of classes.
        rule: String, what the argument must be, such as `"a keras.Model"`.
    """
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {rule}. {received(name, value)}")
    return value


def check_function(name: str, value: Any, rule: str = "a function") -> Callable:
    """Checks that an argument can be called."""
    return check_type(name, value, Callable, rule)


def check_model(name: str, value: Any) -> keras.Model:
    """Checks that an argument is a Keras model."""
    return check_type(name, value, keras.Model, "a `keras.Model`")


def as_array(name: str, value: Any, rule: str = "an array") -> np.ndarray:
    """Returns an argument as an array of any dtype."""
    try:
        # A tensor of PyTorch may have gradients, or lie on a GPU.
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        return np.asarray(value)
    except Exception:  # Of uneven lists, or whatever a tensor raises.
        raise error(name, rule, value) from None


def check_array(
    name: str, value: Any, rule: str = "an array of real numbers"
) -> np.ndarray:
    """Checks that an argument is an array of real numbers, finite or not."""
    array = as_array(name, value, rule)
    is_standard = array.dtype.kind in "fiub"
    # Such as bfloat16.
    if not is_standard and not np.can_cast(array.dtype, "float64"):
        raise error(name, rule, value)
    if array.dtype == np.longdouble:
        with np.errstate(over="ignore"):  # What is too large is infinite.
            array = array.astype("float64")
    return array


def check_arrays(name: str, value: Any, or_none: bool = False) -> list:
    """Checks that an argument is a list of arrays of real numbers.

    With `or_none`, or of `None`.
    """
    rule = "a list of arrays of real numbers"
    # Not all that has an index comes to an end: Keras' variables do not.
    is_list = isinstance(value, Iterable)
    if not is_list or isinstance(value, (str, bytes, Mapping)):
        raise error(name, rule, value)
    try:
        items = list(value)
    except Exception:  # Of a number, or whatever a tensor raises.
        raise error(name, rule, value) from None
    return [
        None if each is None and or_none else check_array(name, each, rule)
        for each in items
    ]


def check_tensors(**tensors: Any) -> list[Tensor]:
    """Checks that arguments are tensors of real numbers, of shapes that fit.

    The shapes fit if they are alike, or can be broadcast.

    Args:
        **tensors: The arguments, by name.

    Returns:
        List of the arguments as floating-point tensors of one dtype. Python
        numbers become Python floats.
    """
    result = [
        value
        if keras.ops.is_tensor(value) and _is_float(value)
        else _as_float_tensor(name, value)
        for name, value in tensors.items()
    ]
    kinds = [_kind(value) for value in result]
    if any(kind != kinds[0] for kind in kinds[1:]):
        check_shapes(**dict(zip(tensors, map(shape_of, result))))
        return _of_one_dtype(result)
    return result


def check_scalar(name: str, value: Any) -> Any:
    """Checks that an argument, a number or a tensor, is one number."""
    if shape_of(value):
        raise ValueError(
            f"`{name}` must be one number. Received: "
            f"{name}.shape={shape_of(value)}"
        )
    return value


def check_integer_tensor(name: str, value: Any) -> Tensor:
    """Checks that an argument is a tensor of integers."""
    if isinstance(value, keras.Variable):
        value = value.value
    if keras.ops.is_tensor(value):
        # Booleans are no integers.
        if "int" in str(value.dtype):
            return value
    else:
        array = as_array(name, value, "a tensor of integers")
        if array.dtype.kind in "iu" and (array == array.astype("int32")).all():
            return keras.ops.convert_to_tensor(array.astype("int32"))
    raise error(name, "a tensor of integers", value)


def check_shapes(**shapes: tuple[int | None, ...]):
    """Checks that the shapes of arguments are alike, or can be broadcast."""
    # What is not known may fit.
    known = [[1 if n is None else n for n in s] for s in shapes.values()]
    try:
        np.broadcast_shapes(*map(tuple, known))
    except ValueError:
        names = " and ".join(f"`{name}`" for name in shapes)
        given = ", ".join(f"{name}.shape={s}" for name, s in shapes.items())
        raise ValueError(
            f"{names} must be tensors of the same shape. Received: {given}"
        ) from None


def shape_of(value: Any) -> tuple[int | None, ...]:
    """The shape of a tensor, or of a number."""
    return tuple(getattr(value, "shape", ()))


def check_inputs(name: str, value: Any) -> Any:
    """Checks that an argument is an array, or a nest of them, for a model."""
    rule = "an array of examples, or a list or dict of such arrays"

    def check(each):
        if not keras.ops.is_tensor(each):
            each = check_array(name, each, rule)
        if not len(each.shape):
            raise error(name, rule, value)
        return each

    if not keras.tree.flatten(value):
        raise error(name, rule, value)
    return keras.tree.map_structure(check, value)


def check_finite(name: str, array: np.ndarray, remedy: str = "") -> np.ndarray:
    """Checks that the entries of an array are finite.

    Args:
        name: String.
        array: NumPy array of real numbers.
        remedy: String, the end of the message.
    """
    if not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` must be finite numbers. Received: an array with "
            f"{np.count_nonzero(~np.isfinite(array))} NaN or infinite values."
            + remedy
        )
    return array


def check_deserialized(
    name: str, value: Any, get: Callable, rule: str, optional: bool = False
) -> Any:
    """Checks that an argument is a Keras object or the name of one.

    Args:
        name: String.
        value: The argument.
        get: Keras' function, such as `keras.initializers.get`.
        rule: String, such as `"a Keras initializer or the name of one"`.
        optional: Boolean, whether `None` is allowed. Defaults to `False`.
    """
    if value is None and optional:
        return None
    if isinstance(value, np.ndarray):
        check_array(name, value, rule)
    try:
        result = get(value)
    except Exception as cause:  # Of a config, whatever its class may raise.
        raise error(name, rule, value) from cause
    if not callable(result):
        raise error(name, rule, value)
    return result


def _ends(interval):
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def _check_integer(name, value, rule, minimum, maximum):
    if is_integer(value) and minimum <= value <= maximum:
        return int(value)
    is_above = is_integer(value) and value > maximum
    if is_above or maximum not in (LARGEST_INTEGER, math.inf):
        rule += f" and at most {maximum}"
    raise error(name, rule, value)


def _check_number(name, value, rule, is_right):
    number = _as_float(value)
    if number is not None and abs(number) > _LARGEST_FLOAT32:
        raise error(name, f"{rule}, within the range of float32", value)
    if number is None or not is_right(number):
        raise error(name, rule, value)
    return number


def _is_float(tensor):
    return "float" in str(tensor.dtype)


def _kind(value):
    return getattr(value, "shape", None), getattr(value, "dtype", None)


def _as_float_tensor(name, value):
    if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        value = keras.ops.convert_to_tensor(value)
        return value if _is_float(value) else keras.ops.cast(value, "float32")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # What float32 does not hold is infinite, as in an array.
        if abs(value) > _LARGEST_FLOAT32:
            return math.inf if value > 0 else -math.inf
        return float(value)
    array = check_array(name, value, "a tensor of real numbers")
    with np.errstate(over="ignore"):
        return keras.ops.convert_to_tensor(array.astype("float32"))


def _of_one_dtype(values):
    dtypes = {
        keras.backend.standardize_dtype(value.dtype)
        for value in values
        if not isinstance(value, float)
    }
    if len(dtypes) < 2:
        return values
    dtype = keras.backend.result_type(*dtypes)
    return [
        value if isinstance(value, float) else keras.ops.cast(value, dtype)
        for value in values
    ]


def _as_float(value):
    """The Python float of a real number; `None` if it is none, or infinite."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        # As a person would write it: 1e-4 in float32 is 9.9999997e-05.
        is_numpy = isinstance(value, np.floating)
        number = float(str(value)) if is_numpy else float(value)
    except OverflowError:  # Of an integer that no float is as large as.
        return None
    return number if math.isfinite(number) else None
