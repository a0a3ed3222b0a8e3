"""What Keras leaves to each backend: loops and in-place writes inside a step.

Every other module that a step runs is written in `keras.ops` alone. A step
that replaces units needs a few things which `keras.ops` cannot say:

- `repeat(times, body, variables)`: run `body()` a number of times that is
  only known while the step runs, where `body` reads and assigns `variables`.
- `assign_part(variable, shape, axes, indices, value)`: write one row, column or
  channel of a variable, seen in another shape, without a pass over the rest.
- `no_gradient()`: a context in which assignments are not differentiated.
- `compute_now()`: a context in which operations compute at once, also while a
  step is being traced.
- `after_backward(gradients)`: the gradients, at the end of back-propagation.
- `mean_over_replicas(values)`: means over all devices that train on a part of
  the same batch.
- `column_magnitudes(matrix)`: sums of absolute values over the rows.
- `row_magnitudes(matrix)`: sums of absolute values over the columns.
- `gradients(loss_function, variables)`: gradients of what `loss_function()`
  returns, outside a step; what it assigns to variables is forgotten. `None`
  (on JAX zeros) for a variable that the loss does not depend on.

The file of the active backend is the only place that imports it.
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

after_backward = _active.after_backward
assign_part = _active.assign_part
column_magnitudes = _active.column_magnitudes
compute_now = _active.compute_now
gradients = _active.gradients
mean_over_replicas = _active.mean_over_replicas
no_gradient = _active.no_gradient
repeat = _active.repeat
row_magnitudes = _active.row_magnitudes
