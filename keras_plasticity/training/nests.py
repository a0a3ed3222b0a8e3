"""Nests of arrays: lists, tuples and dicts of arrays, or of other nests.

The data of a task are a tuple of nests, `(x, y)` or `(x, y, sample_weight)`.
`None` stands for what is not there.
"""

from collections.abc import Callable
from typing import Any

import keras


def map_arrays(function: Callable, *nests: Any) -> Any:
    """Calls a function on the arrays of nests of the same structure.

    Args:
        function: Function of one array of each nest.
        *nests: Nests of arrays.

    Returns:
        Nest of what the function returns.
    """
    return keras.tree.map_structure(function, *nests, none_is_leaf=False)


def arrays(nest: Any) -> list:
    """List of the arrays of a nest."""
    return [a for a in keras.tree.flatten(nest) if a is not None]


def take(nest: Any, index: Any) -> Any:
    """The entries of all arrays at an index, or a slice, of their first axis.

    Args:
        nest: Nest of arrays.
        index: Integer, slice or integer scalar tensor.

    Returns:
        Nest of arrays.
    """
    return map_arrays(lambda array: array[index], nest)
