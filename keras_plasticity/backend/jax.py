"""Loops and in-place writes on JAX."""

import contextlib

import jax
import keras


def no_gradient():
    return contextlib.nullcontext()


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


def assign_index(variable, axis, index, value):
    """Writes `value` at `index` of `axis`; XLA does so in place."""
    old = keras.ops.convert_to_tensor(variable)
    value = keras.ops.cast(value, old.dtype)
    variable.assign(
        jax.lax.dynamic_update_index_in_dim(old, value, index, axis)
    )
