"""Loops and in-place writes on JAX."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np

# The bits of a float32 that is not a number, with a payload that no
# computation makes.
_NEVER = np.int32(0x7FC5A3E1)


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


def assign_part(variable, shape, axes, places, value):
    """Writes `value` at `places` of `axes`; XLA does so in place."""
    old = keras.ops.convert_to_tensor(variable)
    starts = [0] * len(shape)
    sizes = list(shape)
    for axis, place in zip(axes, places):
        starts[axis] = place
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
            first = before[(0,) * before.ndim].astype("float32")
            bits = jax.lax.bitcast_convert_type(first, "int32")
            one = jnp.where(bits == _NEVER, 0.5, 1.0).astype(gradient.dtype)
            result.append(gradient * one)
        else:
            result.append(gradient)
        before = gradient
    return result


def mean_over_replicas(values):
    return values  # A sharded batch is one array.


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column.

    XLA strides through a row-major matrix to reduce it over its rows. For a
    narrow one a loop over blocks of rows, each summed by vectors of columns,
    takes half the time; a wide one is limited by memory either way.
    """
    rows, columns = matrix.shape
    block = _row_block(rows)
    if columns > 512 or block < 8:
        return jnp.sum(jnp.abs(matrix), axis=0)

    def add_block(i, total):
        part = jax.lax.dynamic_slice(matrix, (i * block, 0), (block, columns))
        return total + sum(jnp.abs(part[j]) for j in range(block))

    zeros = jnp.zeros((columns,), matrix.dtype)
    return jax.lax.fori_loop(0, rows // block, add_block, zeros)


def _row_block(rows):
    """The largest divisor of `rows` that one loop body may hold."""
    return max(n for n in range(1, 51) if rows % n == 0)


def gradients(loss_function, variables):
    """See `keras_plasticity.backend`."""

    def loss(values):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return loss_function()

    return jax.grad(loss)([v.value for v in variables])
