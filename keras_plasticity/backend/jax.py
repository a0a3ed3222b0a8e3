"""Loops and in-place writes, and the device, on JAX."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_plasticity.backend import slices
from keras_plasticity.backend import xla_flags

# With this one and larger ones quotients of an int32 are below 2**22, where
# float32 is exact to a quarter.
_SMALLEST_DIVISOR = 2**9
# The first version seen to compile larger loops whole. The XLA of 0.7 ends the
# process.
_WHOLE_LOOPS = (0, 10, 0)
# The largest array in which a CPU writes a part by a selection. Those of
# learners side by side are smaller.
_MOST_SELECTED = 2**12


def no_gradient():
    return contextlib.nullcontext()


def keep_random_state():
    return contextlib.nullcontext()


def compute_now():
    return jax.ensure_compile_time_eval()


def repeat(times, body, variables):
    """Runs `body()` `times` times inside one `jax.lax.while_loop`.

    A `while_loop` and not a `cond`: with zero iterations it touches nothing,
    even under `vmap`, where a `cond` would compute both branches for every
    learner and then select.

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


def keep_if(condition, body, variables):
    """Runs `body()` and selects; XLA drops what is known when it compiles."""
    before = [keras.ops.convert_to_tensor(v) for v in variables]
    result = body()
    for variable, value in zip(variables, before):
        after = keras.ops.convert_to_tensor(variable)
        if after is not value:
            variable.assign(jnp.where(condition, after, value))
    return jnp.where(condition, result, 0)


class _Selection:
    """The condition of `only_if`, and which values obey it already.

    Attributes:
        condition: Boolean scalar tensor.
        selected: Dict from the id of a variable to a value that is the old one
            where the condition is false.
    """

    active = None

    def __init__(self, condition, variables):
        self.condition = condition
        self.selected = {
            id(v): keras.ops.convert_to_tensor(v) for v in variables
        }

    def obeys(self, variable, value):
        return self.selected.get(id(variable)) is value


def only_if(condition, body, variables):
    """See `keras_plasticity.backend`."""
    selection = _Selection(condition, variables)
    before = dict(selection.selected)
    outer, _Selection.active = _Selection.active, selection
    try:
        body()
    finally:
        _Selection.active = outer
    for variable in variables:
        value = keras.ops.convert_to_tensor(variable)
        if not selection.obeys(variable, value):
            value = jnp.where(condition, value, before[id(variable)])
            variable.assign(value)


def known_value(variable):
    value = variable.value
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def are_positive(values):
    return [value > 0 for value in values]


def assign_part(variable, shape, axes, indices, value):
    """Writes `value` at `indices` of `axes`; XLA does so in place."""
    old = keras.ops.convert_to_tensor(variable)
    starts = [0] * len(shape)
    sizes = list(shape)
    for axis, index in zip(axes, indices):
        starts[axis] = index
        sizes[axis] = 1
    starts = jnp.asarray(starts, "int32")
    value = jnp.reshape(keras.ops.cast(value, old.dtype), sizes)
    whole = jnp.reshape(old, shape)
    selection = _Selection.active
    obeys = selection is not None and selection.obeys(variable, old)
    if obeys:
        part = jax.lax.dynamic_slice(whole, starts, sizes)
        value = jnp.where(selection.condition, value, part)
    if platform() == "cpu" and whole.size <= _MOST_SELECTED:
        new = _written_by_selection(whole, value, starts)
    else:
        new = jax.lax.dynamic_update_slice(whole, value, starts)
    variable.assign(jnp.reshape(new, old.shape))
    if obeys:
        new = keras.ops.convert_to_tensor(variable)
        selection.selected[id(variable)] = new


def _written_by_selection(whole, part, starts):
    """Writes a part of an array, without the operation that is made for it.

    Learners side by side have each an index of its own, of which JAX makes a
    scatter. It cannot be part of a larger kernel on a CPU.
    """
    is_written = True
    for axis, size in enumerate(part.shape):
        if size < whole.shape[axis]:
            index = jax.lax.broadcasted_iota("int32", whole.shape, axis)
            is_written &= index == starts[axis]
    return jnp.where(is_written, part, whole)


def assign_whole(variable, value):
    variable.assign(value)


def add_to_rows(variable, columns, amount):
    """Adds a number to each row of a matrix; XLA does so in place."""
    old = keras.ops.convert_to_tensor(variable)
    rows = jnp.arange(old.shape[0])
    variable.assign(old.at[rows, columns].add(amount))


def count_true(masks):
    """See `keras_plasticity.backend`.

    XLA makes two kernels of a sum on a CPU, for each vector. So there they lie
    side by side, and a product with ones sums all of them.
    """
    longest = max(mask.shape[0] for mask in masks)
    if platform() != "cpu" or len(masks) == 1 or longest >= 2**24:
        return jnp.stack([jnp.sum(mask, dtype="int32") for mask in masks])
    rows = [
        jnp.pad(mask.astype("float32"), (0, longest - mask.shape[0]))
        for mask in masks
    ]
    return (jnp.stack(rows) @ jnp.ones(longest)).astype("int32")


def window(vector, start, size):
    """See `keras_plasticity.backend`."""
    return keras.ops.slice(vector, start, (size,))


def quotient(number, divisor):
    """See `keras_plasticity.backend`.

    XLA does not fuse divisions of integers with what is around them, and a
    small network's step takes its time by the number of fusions. So a float
    divides, which is at most one off, and the remainder corrects it.
    """
    if divisor < _SMALLEST_DIVISOR:
        return number // divisor
    estimate = (number.astype("float32") * (1.0 / divisor)).astype("int32")
    rest = number - estimate * divisor
    more = (rest >= divisor).astype("int32")
    return estimate + more - (rest < 0).astype("int32")


def identity(inputs, values, backward):
    """See `keras_plasticity.backend`."""

    @jax.custom_vjp
    def function(inputs, values):
        return inputs

    def forward(inputs, values):
        return inputs, (inputs, values)

    def vjp(residuals, upstream):
        inputs, values = residuals
        gradient, *new_values = backward(upstream, inputs, values)
        return gradient, new_values

    function.defvjp(forward, vjp)
    return function(inputs, values)


def warn_if_trained_elsewhere(layer, variable, message):
    """Nobody on JAX tells of the steps that are made."""


def after_backward(gradients):
    """Orders the update of each weight after back-propagation has read it.

    The update of a layer's weights and the product of these weights with the
    gradient that goes to the layer below do not depend on each other, so XLA
    may run them in any order, and to be safe copies all weights at every step.
    Here the gradient of a matrix is multiplied by a 1 that depends on the
    previous gradient in the list, which belongs to the layer below and needs
    that product. (Depending on all of them would keep all of them in memory.)

    Args:
        gradients: List of tensors or `None`, in the order of the layers.

    Returns:
        List of the same values.
    """
    result = []
    before = None
    for gradient in gradients:
        if gradient is None or not isinstance(gradient, jax.core.Tracer):
            result.append(gradient)  # Eager operations run in order.
            continue
        if before is not None and gradient.ndim > 1:
            one = _ones_like(before[(0,) * before.ndim].astype("float32"))
            result.append(gradient * one.astype(gradient.dtype))
        else:
            result.append(gradient)
        before = gradient
    return result


def sum_over_replicas(values):
    return values


def column_magnitudes(matrix):
    """Sum of absolute values over the rows, for each column."""
    return _magnitudes(matrix, 0)


def row_magnitudes(matrix):
    """Sum of absolute values over the columns, for each row."""
    return _magnitudes(matrix, 1)


def _magnitudes(matrix, axis):
    """Sums of absolute values over one axis; see `slices`."""
    size = matrix.shape[axis]
    if platform() != "cpu" or not slices.is_sliced(matrix.shape):
        return jnp.sum(jnp.abs(matrix), axis=axis)
    number = slices.number_of_slices(size)
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


def _ones_like(values):
    """Ones that the compiler cannot tell are ones."""
    bits = jax.lax.bitcast_convert_type(values, "int32")
    return jnp.where(bits == slices.NEVER, 0.5, 1.0)


def compiled(function):
    """See `keras_plasticity.backend`."""
    return jax.jit(function)


def value_and_gradients(function, tensors):
    """See `keras_plasticity.backend`."""
    return jax.value_and_grad(function)(list(tensors))


def hessian_vector_product(function, tensors, vectors):
    """See `keras_plasticity.backend`."""
    tensors, vectors = list(tensors), list(vectors)
    _, products = jax.jvp(jax.grad(function), (tensors,), (vectors,))
    return products


def gradients(loss_function, variables):
    """See `keras_plasticity.backend`."""

    def loss(values):
        mapping = list(zip(variables, values))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return loss_function()

    return jax.grad(loss)([v.value for v in variables])


def platform():
    return _device().platform


def platforms():
    """The kinds of devices that JAX finds."""
    return [name for name in ("cpu", "gpu", "tpu") if _devices(name)]


def use_device(name):
    """Returns whether there is such a device; if so, it is used."""
    if name == "cpu":
        # In time, before JAX has looked for devices, this keeps it from taking
        # most of a GPU's memory for nothing.
        jax.config.update("jax_platforms", "cpu")
    devices = _devices(name)
    if devices and platform() != name:
        # The default of all threads, unlike that of `jax.default_device(...)`.
        jax.config.update("jax_default_device", devices[0])
    return bool(devices)


def compile_small_loops_whole(batch_size=1):
    """See `keras_plasticity.backend`."""
    del batch_size  # It leaves products of matrices out.
    if jax.__version_info__ >= _WHOLE_LOOPS:
        xla_flags.compile_small_loops_whole()


def set_matmul_precision(precision):
    # Of convolutions as well.
    value = {"float32": "highest", "tensorfloat32": "tensorfloat32"}[precision]
    jax.config.update("jax_default_matmul_precision", value)


def free_and_total_memory():
    """Bytes that are free on an accelerator, and all; `None` if unknown."""
    stats = _device().memory_stats() or {}
    if not {"bytes_limit", "bytes_in_use"} <= stats.keys():
        return None
    total = stats["bytes_limit"]
    return total - stats["bytes_in_use"], total


def _device():
    """The device on which JAX computes what nobody has put elsewhere."""
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return device


def _devices(name):
    try:
        return jax.local_devices(backend=name)
    except RuntimeError:  # There are none of this kind.
        return []
