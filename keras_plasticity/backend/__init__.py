"""Backend-specific operations: loops and in-place writes within a step.

All other modules that run in a training step use `keras.ops` only. A step that
replaces units needs a few operations which `keras.ops` does not have:

- `repeat(times, body, variables)`: runs `body()` a number of times that is
  only known while the step runs, where `body` reads and assigns `variables`.
- `run_if(condition, body, variables)`: the same, once or not at all.
- `keep_if(condition, body, variables)`: runs `body()`, whose assignments to
  `variables`, and the integer it returns (else 0), hold where a condition is
  true. For small things that are computed in almost every step.
- `known_value(variable)`: a variable's value as a NumPy array; `None` while a
  step is being traced.
- `are_positive(values)`: which scalar tensors are above zero, each a boolean
  tensor or, in eager code, a boolean.
- `assign_part(variable, shape, axes, indices, value)`: writes one row, column
  or channel of a variable, viewed in another shape, and leaves the rest.
- `add_to_rows(variable, columns, amount)`: adds a number to each row of a
  matrix, each in its own column, and leaves the rest.
- `quotient(number, divisor)`: an int32 tensor that is not negative, divided by
  a positive integer without remainder.
- `no_gradient()`: a context in which assignments are not differentiated.
- `compute_now()`: a context in which operations are computed eagerly, even
  while a step is being traced.
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
- `gradients(loss_function, variables)`: gradients of what `loss_function()`
  returns, outside a step; its assignments to variables are discarded. `None`
  (on JAX zeros) for a variable that the loss does not depend on.

Only the file of the active backend imports that backend.
"""

import importlib

import keras

_BACKENDS = ("jax", "tensorflow", "torch")

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
column_magnitudes = _active.column_magnitudes
compute_now = _active.compute_now
gradients = _active.gradients
identity = _active.identity
known_value = _active.known_value
no_gradient = _active.no_gradient
platform = _active.platform
free_memory = _active.free_memory
quotient = _active.quotient
repeat = _active.repeat
row_magnitudes = _active.row_magnitudes
sum_over_replicas = _active.sum_over_replicas
warn_if_trained_elsewhere = _active.warn_if_trained_elsewhere


def run_if(condition, body, variables):
    """Runs `body()` if a boolean scalar tensor is true; see `repeat`."""
    repeat(keras.ops.cast(condition, "int32"), body, variables)


def keep_if(condition, body, variables):
    """See above; a condition that is a plain boolean costs nothing."""
    if isinstance(condition, bool):
        return body() if condition else 0
    return _active.keep_if(condition, body, variables)
