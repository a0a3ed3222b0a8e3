"""Values that people hand over by mistake, or that just look odd.

Functions, so that a value is never changed by what it was given to before.
"""

import decimal
import fractions
import math
import pathlib

import keras
import numpy as np


class _Nothing:
    """An object that has nothing to do with anything."""

    def __repr__(self):
        return "_Nothing()"


_NUMBERS = {
    str(number): lambda number=number: number
    for number in (-1, 0, 1, 2, 7, 1000, 2**31, 2**63, 2**70, 10**30, -(10**12))
} | {
    repr(number): lambda number=number: number
    for number in (-0.5, 0.0, 0.5, 1.0, 1.5, 1e-300, 5e-324, 1e300, -1e300)
}

ODD_VALUES = _NUMBERS | {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "1j": lambda: 1j,
    "Fraction(1, 3)": lambda: fractions.Fraction(1, 3),
    "Decimal('0.1')": lambda: decimal.Decimal("0.1"),
    "np.True_": lambda: np.True_,
    "np.float16(0.1)": lambda: np.float16(0.1),
    "np.float32(1e-4)": lambda: np.float32(1e-4),
    "np.float32(nan)": lambda: np.float32(math.nan),
    "np.float64(-inf)": lambda: np.float64(-math.inf),
    "np.longdouble('1e4000')": lambda: np.longdouble("1e4000"),
    "np.complex64(1)": lambda: np.complex64(1),
    "np.int8(-3)": lambda: np.int8(-3),
    "np.int64(2)": lambda: np.int64(2),
    "np.uint8(3)": lambda: np.uint8(3),
    "np.uint64(2**63)": lambda: np.uint64(2**63),
    "np.str_('a')": lambda: np.str_("a"),
    "np.datetime64": lambda: np.datetime64("2024-01-01"),
    "''": lambda: "",
    "'False'": lambda: "False",
    "'2'": lambda: "2",
    "'dense'": lambda: "dense",
    "'zeros'": lambda: "zeros",
    "'a/b'": lambda: "a/b",
    "'a\\0b'": lambda: "a\0b",
    "'long'": lambda: "long " * 1000,
    "b'2'": lambda: b"2",
    "[]": lambda: [],
    "[1, 2]": lambda: [1, 2],
    "[[1], [1, 2]]": lambda: [[1], [1, 2]],
    "['a', 'b']": lambda: ["a", "b"],
    "['a', 1]": lambda: ["a", 1],
    "[None]": lambda: [None],
    "[nan]": lambda: [math.nan],
    "[[1j]]": lambda: [[1j]],
    "()": lambda: (),
    "(1, 2)": lambda: (1, 2),
    "(0, (1,), 10)": lambda: (0, (1,), 10),
    "('a',)": lambda: ("a",),
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "{1: None}": lambda: {1: None},
    "{'a', 'b'}": lambda: {"a", "b"},
    "range(3)": lambda: range(3),
    "generator": lambda: (i for i in range(3)),
    "slice": lambda: slice(3),
    "array(0.5)": lambda: np.array(0.5),
    "zeros((0,))": lambda: np.zeros((0,)),
    "zeros((0, 3))": lambda: np.zeros((0, 3)),
    "zeros((2, 0))": lambda: np.zeros((2, 0)),
    "ones(3)": lambda: np.ones(3),
    "ones((2, 3))": lambda: np.ones((2, 3)),
    "ones((3, 4), float32)": lambda: np.ones((3, 4), "float32"),
    "ones((1, 2, 3, 4))": lambda: np.ones((1, 2, 3, 4)),
    "integers": lambda: np.arange(6).reshape(2, 3),
    "bytes": lambda: np.arange(12, dtype="uint8").reshape(3, 4),
    "booleans": lambda: np.array([[True, False, True], [False, False, True]]),
    "half precision": lambda: np.full((2, 3), 6e4, "float16"),
    "large": lambda: np.full((2, 3), 1e300),
    "tiny": lambda: np.full((2, 3), 5e-324),
    "nan and inf": lambda: np.array([[math.nan, math.inf, 1.0]] * 2),
    "complex": lambda: np.full((2, 3), 1j),
    "strings": lambda: np.array([["a", "b"]]),
    "objects": lambda: np.array([[None, 1], [2, "a"]], object),
    "records": lambda: np.zeros(3, [("a", "f4"), ("b", "i4")]),
    "masked": lambda: np.ma.masked_array([[1.0, 2.0]], [[True, False]]),
    "tensor": lambda: keras.ops.ones((2, 3)),
    "int tensor": lambda: keras.ops.ones((3,), "int32"),
    "bfloat16 tensor": lambda: keras.ops.ones((2, 3), "bfloat16"),
    "symbolic tensor": lambda: keras.KerasTensor((None, 4)),
    "variable": lambda: keras.Variable(np.ones((2, 3), "float32")),
    "object": _Nothing,
    "class": lambda: _Nothing,
    "int": lambda: int,
    "max": lambda: max,
    "function": lambda: lambda *args, **kwargs: None,
    "function of nothing": lambda: lambda: 3,
    "NotImplemented": lambda: NotImplemented,
    "path": lambda: pathlib.Path("odd", "path"),
    "layer": lambda: keras.layers.Dense(3),
    "model": lambda: keras.Sequential([keras.Input((4,)), _dense()]),
    "empty model": lambda: keras.Sequential(),
    "optimizer": lambda: keras.optimizers.SGD(0.1),
    "schedule": lambda: keras.optimizers.schedules.ExponentialDecay(
        0.1, 10, 0.9
    ),
    "initializer": lambda: keras.initializers.HeNormal(0),
    "regularizer": lambda: keras.regularizers.L2(0.1),
    "callbacks": lambda: [keras.callbacks.Callback()],
    "generator of numbers": lambda: np.random.default_rng(0),
}


def _dense():
    return keras.layers.Dense(3)
