"""Loops and in-place writes on TensorFlow."""

import contextlib

import tensorflow as tf


def no_gradient():
    return contextlib.nullcontext()


def repeat(times, body, variables):
    """Runs `body()` `times` times; see `keras_plasticity.backend`."""
    del variables  # A resource variable is assigned where it lies.

    def step(i):
        body()
        return (i + 1,)

    tf.while_loop(
        lambda i: i < tf.cast(times, tf.int32),
        step,
        (tf.constant(0),),
        parallel_iterations=1,
    )


def assign_index(variable, axis, index, value):
    """Writes `value` at `index` of `axis`, in place."""
    shape = tuple(variable.shape)
    axis = axis % len(shape)
    # One index tuple for each element written: the chosen index on `axis`,
    # all of the grid on the other axes.
    ranges = [
        tf.reshape(tf.cast(index, tf.int32), (1,))
        if i == axis
        else tf.range(size)
        for i, size in enumerate(shape)
    ]
    indices = tf.stack(
        [tf.reshape(g, (-1,)) for g in tf.meshgrid(*ranges, indexing="ij")],
        axis=-1,
    )
    value = tf.reshape(tf.cast(value, variable.dtype), (-1,))
    variable.value.scatter_nd_update(indices, value)


def after_backward(gradients):
    return gradients  # TensorFlow orders reads and writes of variables.


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return tf.reduce_sum(tf.abs(matrix), axis=0)
