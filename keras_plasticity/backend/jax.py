"""Loops and in-place writes on JAX."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np

# Bit pattern of a NaN whose payload no computation produces.
_NEVER = np.int32(0x7FC5A3E1)
# Between these numbers of entries, slices of a matrix are faster to sum: with
# fewer there is nothing to gain, more are not in the cache.
_FEWEST_TO_SLICE = 1000
_MOST_TO_SLICE = 1_500_000


def no_gradient():
    return contextlib.nullcontext()


def compute_now():
    return jax.ensure_compile_time_eval()


def repeat(times, body, variables):
    """Runs `body()` `times` times inside one `jax.lax.while_loop`.

    A `while_loop` and not a `cond`: with zero iterations it touches nothing,
    also under `vmap`, where a `cond` would compute and then merge both of its
    branches for every learner.

    Args:
        times: Integer scalar tensor.
        body: Function of no arguments. It may read and assign `variables`,
            and no other variable.
        variables: List of `keras.Variable`s.
    """

    def step(state):
        i, values = state
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            body()
        return i + 1, [scope.get_current_value(v) for v in variables]

    values = [keras.ops.convert_to_tensor(v) for v in variables]
    _, values = jax.lax.while_loop(
        lambda state: state[0] < times, step, (0, values)
    )
    for variable, value in zip(variables, values):
        variable.assign(value)


def assign_part(variable, shape, axes, indices, value):
    """Writes `value` at `indices` of `axes`; XLA does so in place."""
    old = keras.ops.convert_to_tensor(variable)
    starts = [0] * len(shape)
    sizes = list(shape)
    for axis, index in zip(axes, indices):
        starts[axis] = index
        sizes[axis] = 1
    value = jnp.reshape(keras.ops.cast(value, old.dtype), sizes)
    new = jax.lax.dynamic_update_slice(
        jnp.reshape(old, shape), value, jnp.asarray(starts, "int32")
    )
    variable.assign(jnp.reshape(new, old.shape))


def after_backward(gradients):
    """Orders the update of each weight after back-propagation has read it.

    XLA may order the two as it likes where one does not need the other: the
    update of a layer's weights, and the product of these weights with a
    gradient that goes to the layer below. As it cannot tell that the product
    would come first, it copies all weights at every step. Here the gradient of
    a matrix is multiplied by a 1 that depends on the gradient before it in the
    list, which is one of the layer below, and which needs that product. (To
    depend on all of them would keep all of them in memory at once.)

    Args:
        gradients: List of tensors or `None`, in the order of the layers.

    Returns:
        List of the same values.
    """
    result = []
    before = None
    for gradient in gradients:
        if gradient is None or not isinstance(gradient, jax.core.Tracer):
            result.append(gradient)  # Nothing is compiled: it is in order.
            continue
        if before is not None and gradient.ndim > 1:
            one = _ones_like(before[(0,) * before.ndim].astype("float32"))
            result.append(gradient * one.astype(gradient.dtype))
        else:
            result.append(gradient)
        before = gradient
    return result


def mean_over_replicas(values):
    return values  # A sharded batch is one array.


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return _magnitudes(matrix, 0)


def row_magnitudes(matrix):
    """Sum of absolute values over the columns, for each row."""
    return _magnitudes(matrix, 1)


def _magnitudes(matrix, axis):
    """Sums of absolute values over one axis.

    XLA's CPU compiler makes a slow loop of a reduction, as it must not change
    the order in which numbers are added: one number at a time, or with strides
    through memory. So some twenty slices of the matrix are added first, which
    is one loop over whole vectors; what is left, a matrix as much smaller, is
    summed by a product with ones. To take away from XLA that these are ones,
    of which it would make a reduction again, they depend on the matrix.
    """
    size = matrix.shape[axis]
    is_sliced = _FEWEST_TO_SLICE <= matrix.size <= _MOST_TO_SLICE
    if jax.default_backend() != "cpu" or not is_sliced:
        return jnp.sum(jnp.abs(matrix), axis=axis)
    number = _number_of_slices(size)
    length = size // number
    starts = [i * length for i in range(number)]
    total = sum(
        jnp.abs(jax.lax.slice_in_dim(matrix, start, start + length, axis=axis))
        for start in starts
    )
    if length == 1:
        result = jnp.squeeze(total, axis)
    else:
        ones = _ones_like(jnp.ravel(matrix)[:length])
        result = ones @ total if axis == 0 else total @ ones
    for i in range(number * length, size):
        result += jnp.abs(jax.lax.index_in_dim(matrix, i, axis, False))
    return result


def _number_of_slices(size):
    """A number with few remaining, from 16 to 32 where there are as many."""
    most = min(size, 32)
    return min(range(min(size, 16), most + 1), key=lambda n: (size % n, -n))


def _ones_like(values):
    """Ones of which the compiler does not know that they are."""
    bits = jax.lax.bitcast_convert_type(values, "int32")
    return jnp.where(bits == _NEVER, 0.5, 1.0)


def gradients(loss_function, variables):
    """See `keras_plasticity.backend`."""

    def loss(values):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return loss_function()

    return jax.grad(loss)([v.value for v in variables])
