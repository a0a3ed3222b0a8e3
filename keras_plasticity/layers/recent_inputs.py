import weakref
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.units import backward_pass
from keras_plasticity.units.backward_pass import UNIT
from keras_plasticity.validation import check_positive_integer


@keras.saving.register_keras_serializable(package="keras_plasticity")
class RecentInputs(keras.layers.Layer):
    """Passes its inputs on, and remembers those of the last examples.

    Some methods look at examples again, some updates after the network was
    trained on them: `keras_plasticity.optimizers.EffectiveRank` computes what
    hidden layers make of a hundred examples, where a network may learn from
    one at a time. An optimizer is given gradients, not examples. This layer,
    the first of a model, hands them on.

    It changes nothing in what a model computes. Where it is called with
    `training=False`, nothing is remembered.

    What is remembered lies in two weights that take their values from the
    backward pass, in float32, so a model has one for each input of floating
    point numbers: `examples`, of shape `(num_examples, ...)`, the last of them
    at the end, and `scales`, of shape `(num_examples,)`, which they have to be
    divided by, and which is 0 where there was no example so far. (Whatever
    multiplies all gradients multiplies both.) Like the statistics of plastic
    layers they are no weights: see `keras_plasticity.weights_of`.

    Args:
        num_examples: Positive integer, how many examples are remembered.
            Defaults to `100`.
        name: String, the layer's name.

    Call arguments:
        inputs: Tensor of floating point numbers, of shape
            `(batch_size, ...)`.

    Returns:
        `inputs`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.RecentInputs(100),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    ```
    """

    def __init__(
        self, num_examples: int = 100, name: str | None = None, **kwargs: Any
    ):
        super().__init__(name=name, **kwargs)
        self.num_examples = check_positive_integer("num_examples", num_examples)
        self.supports_masking = True
        # As those of a plastic layer's statistics.
        self.callers = weakref.WeakKeyDictionary()

    def build(self, input_shape):
        shape = tuple(input_shape[1:])
        if None in shape:
            raise ValueError(
                f"Layer '{self.name}' remembers inputs, whose shape must be "
                "known but for the number of examples. Received: "
                f"input_shape={tuple(input_shape)}"
            )
        self.examples = backward_pass.add_overwritten_weight(
            self, "examples", (self.num_examples, *shape)
        )
        self.scales = backward_pass.add_overwritten_weight(
            self, "scales", (self.num_examples,)
        )
        for variable in self.carriers():
            variable.recent_inputs = weakref.ref(self)
        self.built = True

    def carriers(self):
        """The variables by which examples travel to the optimizer."""
        return [self.examples, self.scales]

    def call(self, inputs, training=None):
        keras_compat.note_caller(self, self.callers)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if "float" not in dtype:
            raise ValueError(
                f"Layer '{self.name}' remembers floating point numbers. Put it "
                "after the layer that makes such numbers of others. Received: "
                f"inputs of dtype {dtype}"
            )
        if training is False or keras_compat.is_inference():
            return inputs
        values = [variable.value for variable in self.carriers()]
        return backend.identity(inputs, values, self._remember)

    def compute_output_spec(self, inputs, training=None):
        keras_compat.note_caller(self, self.callers)
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def _remember(self, upstream, inputs, values):
        examples, scales = values
        new = UNIT * ops.cast(inputs, "float32")
        ones = ops.ones_like(ops.reshape(new, (ops.shape(new)[0], -1))[:, 0])
        return (
            upstream,
            self._append(examples, new),
            self._append(scales, UNIT * ones),
        )

    def _append(self, rows, new):
        if new.shape[0] is not None:  # Fewer are moved.
            rows = rows[min(new.shape[0], self.num_examples) :]
        return ops.concatenate([rows, new])[-self.num_examples :]

    def recent(self):
        """The examples that are remembered.

        Returns:
            Tuple of two tensors: the examples, of shape `(num_examples, ...)`,
            zeros where there is none, and booleans of shape
            `(num_examples,)`, whether there is one.
        """
        scales = ops.convert_to_tensor(self.scales)
        is_example = scales > 0
        factors = ops.where(is_example, 1.0 / ops.maximum(scales, 1e-30), 0.0)
        shape = (-1, *[1] * (len(self.examples.shape) - 1))
        examples = ops.convert_to_tensor(self.examples)
        return examples * ops.reshape(factors, shape), is_example

    def get_config(self):
        return {**super().get_config(), "num_examples": self.num_examples}
