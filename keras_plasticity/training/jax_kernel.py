"""Many training steps as one kernel, on a CPU.

XLA calls a kernel for each operation of a program, or a few of them, and goes
from one to the next in a tenth of a microsecond, or in several where two
threads share them. A step of a small network has a hundred of them, each of
which computes for less than that. But XLA also compiles a call into one kernel,
loops and all, where an attribute says so, as it does itself for the smallest
loops. Such a kernel runs on one thread, and its products of matrices are plain
loops.
"""

import math

import jax
import jax.extend.core
from jax.experimental.xla_metadata import set_xla_metadata

_ATTRIBUTES = {"xla_cpu_small_call": "true", "inlineable": "false"}
# Operations that such a kernel cannot hold.
_CANNOT_HOLD = {
    "approx_top_k",
    "cholesky",
    "conv_general_dilated",
    "debug_callback",
    "eig",
    "eigh",
    "ffi_call",
    "fft",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "infeed",
    "io_callback",
    "lu",
    "lu_pivots_to_permutation",
    "outfeed",
    "pure_callback",
    "qr",
    "schur",
    "shard_map",
    "sort",
    "svd",
    "top_k",
    "triangular_solve",
    "tridiagonal",
    "tridiagonal_solve",
}
# Entries of the largest array. A larger one is worth a second thread.
_LARGEST_ARRAY = 2**17
# Multiplications of a product of two matrices, up to which a plain loop is
# fast enough. A product with a vector, or of two, always is.
_MOST_MULTIPLICATIONS = 2**11


def is_fast(program):
    """Whether one kernel can hold a program, and is faster than many.

    Args:
        program: `jax.extend.core.ClosedJaxpr`.
    """
    return all(map(_is_fast, _equations(program)))


def one_kernel(program):
    """A program as one kernel.

    Args:
        program: `jax.extend.core.ClosedJaxpr`.

    Returns:
        Function of the program's arguments that returns a list. Compiling it
        raises `jax.errors.JaxRuntimeError` where the kernel cannot hold the
        program after all.
    """
    function = jax.jit(jax.extend.core.jaxpr_as_fun(program))

    def call(*arguments):
        first, *rest = function(*arguments)
        # What is said of a value is said of the call that returns it.
        return [set_xla_metadata(first, **_ATTRIBUTES), *rest]

    return call


def _equations(program):
    """All equations of a program that hold no other, of inner ones too."""
    kinds = jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr
    for equation in getattr(program, "jaxpr", program).eqns:
        values = []
        for value in equation.params.values():
            values += value if isinstance(value, (tuple, list)) else [value]
        inner = [value for value in values if isinstance(value, kinds)]
        if not inner:
            yield equation
        for each in inner:
            yield from _equations(each)


def _is_fast(equation):
    name = equation.primitive.name
    if name in _CANNOT_HOLD or name.startswith("scatter"):
        return False
    sizes = [math.prod(atom.aval.shape) for atom in equation.outvars]
    if max(sizes, default=0) > _LARGEST_ARRAY:
        return False
    if name != "dot_general":
        return True
    sizes = _sizes_of_product(equation)
    return 1 in sizes or math.prod(sizes) <= _MOST_MULTIPLICATIONS


def _sizes_of_product(equation):
    """Rows and columns of a product of matrices, and how many are summed."""
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    length = math.prod(left[axis] for axis in contracted)
    number = math.prod(left[axis] for axis in batch)
    rows = math.prod(left) // max(length * number, 1)
    (product,) = equation.outvars
    columns = math.prod(product.aval.shape) // max(rows * number, 1)
    return rows, columns, length
