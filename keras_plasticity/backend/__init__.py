"""What Keras leaves to each backend: loops and in-place writes inside a step.

Every other module of this package is written in `keras.ops` alone. A step
that replaces units needs three things which `keras.ops` cannot say:

- `repeat(times, body, variables)`: run `body()` a number of times that is
  only known while the step runs, where `body` reads and assigns `variables`.
- `assign_index(variable, axis, index, value)`: write one row or column of a
  variable without a pass over the rest of it.
- `no_gradient()`: a context in which assignments are not differentiated.

The file of the active backend is the only place that imports it.
"""

import keras

if keras.backend.backend() == "jax":
    from keras_plasticity.backend.jax import assign_index as assign_index
    from keras_plasticity.backend.jax import no_gradient as no_gradient
    from keras_plasticity.backend.jax import repeat as repeat
elif keras.backend.backend() == "tensorflow":
    from keras_plasticity.backend.tensorflow import assign_index as assign_index
    from keras_plasticity.backend.tensorflow import no_gradient as no_gradient
    from keras_plasticity.backend.tensorflow import repeat as repeat
elif keras.backend.backend() == "torch":
    from keras_plasticity.backend.torch import assign_index as assign_index
    from keras_plasticity.backend.torch import no_gradient as no_gradient
    from keras_plasticity.backend.torch import repeat as repeat
else:
    raise ImportError(
        "keras_plasticity trains on the backends 'jax', 'tensorflow' and "
        "'torch'. Set the environment variable `KERAS_BACKEND` to one of them. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}"
    )
