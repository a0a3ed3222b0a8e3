"""Loops and in-place writes, and the device, on TensorFlow."""

import contextlib
import math
import threading

import keras
import tensorflow as tf

from keras_plasticity.backend import slices
from keras_plasticity.backend import xla_flags

# The first version seen to compile larger loops whole.
_WHOLE_LOOPS = (2, 21)
# The largest array in which XLA writes a part by a selection on a CPU. It takes
# as long as some steps of the network, and happens once in hundreds of them.
_MOST_SELECTED = 2**17


class _ForXla(threading.local):
    """Whether a step is being traced that XLA compiles for a CPU."""

    is_on = False


_for_xla = _ForXla()


@contextlib.contextmanager
def tracing_for_xla():
    """Context in which a step is traced that XLA compiles."""
    before = _for_xla.is_on
    _for_xla.is_on = platform() == "cpu"
    try:
        yield
    finally:
        _for_xla.is_on = before


def no_gradient():
    return contextlib.nullcontext()


def keep_random_state():
    return contextlib.nullcontext()


def compute_now():
    return tf.init_scope()


def repeat(times, body, variables):
    """Runs `body()` `times` times; see `keras_plasticity.backend`."""
    del variables  # Resource variables are assigned in place.

    def step(i):
        body()
        return (i + 1,)

    tf.while_loop(
        lambda i: i < tf.cast(times, tf.int32),
        step,
        (tf.constant(0),),
        parallel_iterations=1,
    )


def keep_if(condition, body, variables):
    """See `keras_plasticity.backend`."""
    context = tf.distribute.get_replica_context()
    is_alone = context is None or context.num_replicas_in_sync == 1
    if is_alone and platform() == "cpu":
        return tf.cond(
            condition, lambda: tf.cast(body(), tf.int32), lambda: tf.constant(0)
        )
    # A branch is dear on an accelerator, and replicas cannot assign variables
    # within one.
    before = [tf.identity(v.value) for v in variables]
    result = body()
    for variable, value in zip(variables, before):
        variable.assign(tf.where(condition, variable.value, value))
    return tf.where(condition, result, 0)


class _Selection:
    """The condition of `only_if`, and whose parts were written under it.

    Attributes:
        condition: Boolean scalar tensor.
        written: Set of the ids of variables.
    """

    active = None

    def __init__(self, condition):
        self.condition = condition
        self.written = set()


def only_if(condition, body, variables):
    """See `keras_plasticity.backend`.

    A variable is either written by parts or assigned as a whole.
    """
    # Of those that are written by parts, nobody reads the copies, so that the
    # compiled step does not make them.
    before = [tf.identity(v.value) for v in variables]
    selection = _Selection(condition)
    outer, _Selection.active = _Selection.active, selection
    try:
        body()
    finally:
        _Selection.active = outer
    for variable, value in zip(variables, before):
        if id(variable) not in selection.written:
            variable.assign(tf.where(condition, variable.value, value))


def known_value(variable):
    return variable.value.numpy() if tf.executing_eagerly() else None


def are_positive(values):
    return [value > 0 for value in values]


def assign_part(variable, shape, axes, indices, value):
    """Writes `value` at `indices` of `axes`, in place."""
    if _for_xla.is_on and math.prod(shape) <= _MOST_SELECTED:
        _assign_by_selection(variable, shape, axes, indices, value)
        return
    # Positions in the flattened weight of the elements to write: the given
    # index along `axes`, every index along the other axes.
    position = tf.zeros((), tf.int32)
    stride = 1
    for axis in reversed(range(len(shape))):
        if axis in axes:
            index = tf.cast(indices[axes.index(axis)], tf.int32)
            position += index * stride
        else:
            steps = tf.range(shape[axis]) * stride
            position = (
                tf.reshape(steps, (-1,) + (1,) * position.shape.rank) + position
            )
        stride *= shape[axis]
    position = tf.reshape(position, (-1,))
    # Unraveled by hand: XLA does not know `tf.unravel_index`.
    coordinates = []
    for size in reversed(variable.shape):
        coordinates.insert(0, position % size)
        position //= size
    coordinates = tf.stack(coordinates, axis=1)
    value = tf.reshape(tf.cast(value, variable.dtype), (-1,))
    target = _on_this_replica(variable)
    selection = _Selection.active
    if selection is not None:
        # Not from the variable itself: XLA does not know that operation.
        before = tf.gather_nd(target.read_value(), coordinates)
        value = tf.where(selection.condition, value, before)
        selection.written.add(id(variable))
    target.scatter_nd_update(coordinates, value)


def _assign_by_selection(variable, shape, axes, indices, value):
    """Writes a part of an array, without the operation that is made for it.

    That is a scatter, which cannot be part of a larger kernel of XLA.
    """
    is_written = True
    sizes = list(shape)
    for axis, index in zip(axes, indices):
        sizes[axis] = 1
        along = [-1 if each == axis else 1 for each in range(len(shape))]
        is_here = tf.range(shape[axis]) == tf.cast(index, tf.int32)
        is_written = tf.logical_and(is_written, tf.reshape(is_here, along))
    target = _on_this_replica(variable)
    selection = _Selection.active
    if selection is not None:
        is_written = tf.logical_and(is_written, selection.condition)
        selection.written.add(id(variable))
    before = tf.reshape(target.read_value(), shape)
    value = tf.reshape(tf.cast(value, variable.dtype), sizes)
    after = tf.where(is_written, value, before)
    target.assign(tf.reshape(after, variable.shape))


def assign_whole(variable, value):
    """Not by Keras, which would ask the other replicas: see `keep_if`."""
    _on_this_replica(variable).assign(tf.cast(value, variable.dtype))


def add_to_rows(variable, columns, amount):
    """Adds a number to each row of a matrix, in place."""
    indices = tf.stack([tf.range(variable.shape[0]), columns], axis=1)
    amounts = tf.fill(columns.shape, tf.cast(amount, variable.dtype))
    _on_this_replica(variable).scatter_nd_add(indices, amounts)


def _on_this_replica(variable):
    """A replica's own copy of a variable. All replicas make the same writes."""
    variable = variable.value
    context = tf.distribute.get_replica_context()
    is_copied = isinstance(variable, tf.distribute.DistributedValues)
    if context is None or not is_copied:
        return variable
    copies = context.strategy.experimental_local_results(variable)
    replica = tf.get_static_value(context.replica_id_in_sync_group)
    return copies[replica % len(copies)]


def count_true(masks):
    """See `keras_plasticity.backend`."""
    counts = [tf.reduce_sum(tf.cast(mask, tf.int32)) for mask in masks]
    return tf.stack(counts)


def window(vector, start, size):
    """See `keras_plasticity.backend`."""
    return keras.ops.slice(vector, start, (size,))


def quotient(number, divisor):
    return number // divisor


def identity(inputs, values, backward):
    """See `keras_plasticity.backend`."""

    @tf.custom_gradient
    def function(inputs, *values):
        return inputs, lambda upstream: backward(upstream, inputs, values)

    return function(inputs, *values)


def warn_if_trained_elsewhere(layer, variable, message):
    """All optimizers on TensorFlow are those of Keras."""


def after_backward(gradients):
    return gradients  # TensorFlow orders reads and writes of variables.


def sum_over_replicas(values):
    """Sums over the replicas of a `tf.distribute` strategy."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return _magnitudes(matrix, 0)


def row_magnitudes(matrix):
    """Sum of absolute values over the columns, for each row."""
    return _magnitudes(matrix, 1)


def _magnitudes(matrix, axis):
    """Sums of absolute values over one axis; see `slices`."""
    if not _for_xla.is_on or not slices.is_sliced(matrix.shape):
        return tf.reduce_sum(tf.abs(matrix), axis=axis)
    size = matrix.shape[axis]
    number = slices.number_of_slices(size)
    length = size // number

    def part(start, stop):
        where = slice(start, stop)
        return tf.abs(matrix[where] if axis == 0 else matrix[:, where])

    whole = number * length
    total = sum(part(i, i + length) for i in range(0, whole, length))
    ones = _ones_like(tf.reshape(matrix, [-1])[:length])
    result = tf.linalg.matvec(total, ones, transpose_a=axis == 0)
    for i in range(whole, size):
        result += tf.squeeze(part(i, i + 1), axis)
    return result


def _ones_like(values):
    """Ones that the compiler cannot tell are ones."""
    bits = tf.bitcast(tf.cast(values, "float32"), "int32")
    ones = tf.where(bits == slices.NEVER, 0.5, 1.0)
    return tf.cast(ones, values.dtype)


def compiled(function):
    """See `keras_plasticity.backend`."""
    compute = tf.function(function)

    def on_tensors(*inputs):
        # Each NumPy array would be a constant of a program of its own.
        return compute(
            *keras.tree.map_structure(
                tf.convert_to_tensor, inputs, none_is_leaf=False
            )
        )

    return on_tensors


def value_and_gradients(function, tensors):
    """See `keras_plasticity.backend`."""
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(tensors)
    return value, _dense(tape.gradient(value, tensors))


def hessian_vector_product(function, tensors, vectors):
    """See `keras_plasticity.backend`."""
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            value = function(tensors)
        first = _dense(inner.gradient(value, tensors))
    known = [i for i, gradient in enumerate(first) if gradient is not None]
    return _dense(
        outer.gradient(
            [first[i] for i in known],
            tensors,
            output_gradients=[vectors[i] for i in known],
        )
    )


def _dense(gradients):
    """Gradients as tensors; that of an embedding is sparse."""
    return [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def gradients(loss_function, variables):
    """See `keras_plasticity.backend`."""
    tensors = [tf.convert_to_tensor(v.value) for v in variables]
    scope = keras.StatelessScope(
        state_mapping=list(zip(variables, tensors)), collect_losses=True
    )
    with tf.GradientTape() as tape, scope:
        tape.watch(tensors)
        loss = loss_function()
    return _dense(tape.gradient(loss, tensors))


def platform():
    # Visible devices, which unlike tensors can be asked for without computing
    # anything, after which no device can be hidden.
    for kind in ("TPU", "GPU"):
        if tf.config.get_visible_devices(kind):
            return kind.lower()
    return "cpu"


def platforms():
    """The kinds of devices that TensorFlow finds, hidden ones too."""
    kinds = {device.device_type for device in tf.config.list_physical_devices()}
    return [name for name in ("cpu", "gpu", "tpu") if name.upper() in kinds]


def use_device(name):
    """Returns whether there is such a device; if so, it is used."""
    gpus = tf.config.list_physical_devices("GPU")
    if name == "gpu" and not gpus:
        return False
    try:
        tf.config.set_visible_devices(gpus if name == "gpu" else [], "GPU")
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow's device must be chosen before TensorFlow has computed "
            f"anything. Received: name={name}, while it computes on the "
            f"{platform()}"
        ) from error
    return True


def compile_small_loops_whole(batch_size=1):
    """See `keras_plasticity.backend`."""
    if batch_size > 1:
        # Products of small matrices would take up to 26 times as long there.
        xla_flags.compile_small_loops_apart()
        return
    version = tf.__version__.split(".")[:2]
    if tuple(map(int, version)) >= _WHOLE_LOOPS:
        xla_flags.compile_small_loops_whole()


def set_matmul_precision(precision):
    tf.config.experimental.enable_tensor_float_32_execution(
        precision == "tensorfloat32"
    )


def free_and_total_memory():
    """Of an accelerator: `None`, as TensorFlow knows of no limit."""
    return None
