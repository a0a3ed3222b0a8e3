"""Backend-specific operations: loops and in-place writes, and the device.

All other modules that run in a training step use `keras.ops` only. A step that
replaces units needs a few operations which `keras.ops` does not have:

- `repeat(times, body, variables)`: runs `body()` a number of times that is
  only known while the step runs, where `body` reads and assigns `variables`.
- `run_if(condition, body, variables)`: the same, once or not at all.
- `only_if(condition, body, variables)`: the same, without a branch: parts of
  variables that `assign_part` writes keep what they hold where the condition
  is false, other assignments are undone. Where `avoids_branches()`, it is
  cheaper.
- `keep_if(condition, body, variables)`: runs `body()`, whose assignments to
  `variables`, and the integer it returns (else 0), hold where a condition is
  true. For small things that are computed in almost every step.
- `known_value(variable)`: a variable's value as a NumPy array; `None` while a
  step is being traced.
- `are_positive(values)`: which scalar tensors are above zero, each a boolean
  tensor or, in eager code, a boolean.
- `assign_part(variable, shape, axes, indices, value)`: writes one row, column
  or channel of a variable, viewed in another shape, and leaves the rest.
- `assign_whole(variable, value)`: writes all of a variable, in loops and
  branches too.
- `add_to_rows(variable, columns, amount)`: adds a number to each row of a
  matrix, each in its own column, and leaves the rest.
- `window(vector, start, size)`: `size` entries of a vector, from `start` on, an
  int32 tensor of shape `(1,)`.
- `quotient(number, divisor)`: an int32 tensor that is not negative, divided by
  a positive integer without remainder.
- `no_gradient()`: a context in which assignments are not differentiated.
- `compile_small_loops_whole(batch_size)`: has loops of small steps compiled
  into one kernel each on a CPU, in the whole process, where the compiler was
  not used yet and does so well for steps of this batch size. The last call
  before the compiler is used counts.
- `keep_random_state()`: a context after which the backend's global generators
  of random numbers are what they were before. JAX has none, and TensorFlow does
  not tell the state of its own.
- `compute_now()`: a context in which operations are computed eagerly, even
  while a step is being traced.
- `count_true(masks)`: int32 tensor, how many entries of each of a list of
  boolean vectors are true.
- `identity(inputs, values, backward)`: returns `inputs`, with a backward pass
  of its own: `backward(upstream, inputs, values)` returns a tuple of the
  gradient of `inputs` and of those of `values`, a list of tensors. (Keras'
  `ops.custom_gradient` cannot be transformed by `torch.func`.)
- `warn_if_trained_elsewhere(layer, variable, message)`: warns where a layer's
  variable is trained by an optimizer of the backend's own, not Keras'. The
  message goes on after the optimizer's name.
- `after_backward(gradients)`: the gradients, at the end of back-propagation.
- `sum_over_replicas(values)`: sums over all devices that train on parts of the
  same batch.
- `column_magnitudes(matrix)`: sums of absolute values over the rows.
- `row_magnitudes(matrix)`: sums of absolute values over the columns.
- `compiled(function)`: a function of nests of arrays that computes
  `function` of the same nests of tensors. It is compiled once for each set of
  shapes; on PyTorch it is computed eagerly. A nest may hold `None`.
- `value_and_gradients(function, tensors)`: the scalar `function(tensors)`, and
  its gradient by each tensor of the list, `None` where it does not depend on
  it (on JAX zeros). `function` reads and assigns no variables.
- `hessian_vector_product(function, tensors, vectors)`: of the matrix of second
  derivatives of the scalar `function(tensors)` and a vector, which comes as a
  list of tensors like `tensors`, and so does the product, again with `None`.
- `gradients(loss_function, variables)`: gradients of what `loss_function()`
  returns, outside a step; its assignments to variables are discarded. `None`
  (on JAX zeros) for a variable that the loss does not depend on.

And what is settled once, for the whole process:

- `platform()`: where computation now happens, `"cpu"`, `"gpu"` or `"tpu"`.
- `use_device(name)`: has everything computed on the `"cpu"` or the `"gpu"` from
  now on, in all threads. It is for programs, before they compute anything.
- `set_matmul_precision(precision)`: in which a GPU multiplies matrices and
  computes convolutions, `"float32"` or `"tensorfloat32"`, which rounds what is
  multiplied to 10 bits after the point, where float32 has 23.
- `free_memory()`: bytes free where learners are trained; `None` if unknown.
- `share_memory(processes)`: has `free_memory` count an equal share at most, for
  as many processes on one machine, which start at about the same time.

Only the file of the active backend imports that backend.
"""

import importlib

import keras

from keras_plasticity import validation
from keras_plasticity.backend import host_memory

DEVICES = ("cpu", "gpu")
MATMUL_PRECISIONS = ("float32", "tensorfloat32")
_BACKENDS = ("jax", "tensorflow", "torch")
# See `share_memory`.
_processes = 1

if keras.backend.backend() not in _BACKENDS:
    raise ImportError(
        "keras_plasticity trains on the backends 'jax', 'tensorflow' and "
        "'torch'. Set the environment variable `KERAS_BACKEND` to one of them. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}"
    )

_active = importlib.import_module(f"{__name__}.{keras.backend.backend()}")

add_to_rows = _active.add_to_rows
after_backward = _active.after_backward
are_positive = _active.are_positive
assign_part = _active.assign_part
assign_whole = _active.assign_whole
column_magnitudes = _active.column_magnitudes
compiled = _active.compiled
compile_small_loops_whole = _active.compile_small_loops_whole
compute_now = _active.compute_now
count_true = _active.count_true
gradients = _active.gradients
hessian_vector_product = _active.hessian_vector_product
identity = _active.identity
keep_random_state = _active.keep_random_state
known_value = _active.known_value
no_gradient = _active.no_gradient
only_if = _active.only_if
platform = _active.platform
quotient = _active.quotient
repeat = _active.repeat
row_magnitudes = _active.row_magnitudes
sum_over_replicas = _active.sum_over_replicas
value_and_gradients = _active.value_and_gradients
warn_if_trained_elsewhere = _active.warn_if_trained_elsewhere
window = _active.window


def run_if(condition, body, variables):
    """Runs `body()` if a boolean scalar tensor is true; see `repeat`."""
    repeat(keras.ops.cast(condition, "int32"), body, variables)


def avoids_branches():
    """Whether loops and conditions are dear that depend on what is computed.

    They are on an accelerator, which has to ask the host how to go on. On
    PyTorch, the host runs every step.
    """
    return keras.backend.backend() != "torch" and platform() != "cpu"


def keep_if(condition, body, variables):
    """See above; a condition that is a plain boolean costs nothing."""
    if isinstance(condition, bool):
        return body() if condition else 0
    return _active.keep_if(condition, body, variables)


def use_device(name):
    """Has everything computed on one kind of device from now on.

    Args:
        name: `"cpu"` or `"gpu"`.

    Raises:
        ValueError: If there is no such device.
        RuntimeError: On TensorFlow, if it has computed something elsewhere.
    """
    validation.check_choice("name", name, DEVICES)
    if not _active.use_device(name):
        raise ValueError(
            f"`name` must be a device that {keras.backend.backend()} can use "
            f"on this machine, which are: {', '.join(_active.platforms())}. "
            f"{validation.received('name', name)}"
        )


def set_matmul_precision(precision):
    """Sets how a GPU computes products of float32 matrices, convolutions too.

    Args:
        precision: `"float32"`, or `"tensorfloat32"` for faster products of
            numbers that are first rounded to 10 bits after the point.
    """
    validation.check_choice("precision", precision, MATMUL_PRECISIONS)
    _active.set_matmul_precision(precision)


def free_memory():
    """Bytes free where learners are trained; `None` if unknown."""
    if platform() == "cpu":
        amounts = host_memory.free_and_total()
    else:
        amounts = _active.free_and_total_memory()
    if amounts is None:
        return None
    free, total = amounts
    return min(free, total // _processes)


def share_memory(processes):
    """Has `free_memory` count an equal share of the memory at most.

    Processes that start together all see the same memory free.

    Args:
        processes: Integer, how many share it.
    """
    global _processes
    _processes = processes
