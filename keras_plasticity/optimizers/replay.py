"""A model that computes recent examples again, within an optimizer's step."""

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import graph
from keras_plasticity.graph import activations
from keras_plasticity.graph import trace
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.optimizers.inner_optimizers import loss_scaler
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.weights import is_statistic


class ReplayOptimizer(OptimizerWrapper):
    """Base class of optimizers that look at recent examples again.

    A `keras_plasticity.layers.RecentInputs` remembers them. A subclass says by
    `find_values` what of the model it computes, and computes it by
    `self.replay`.
    """

    def __init__(self, inner_optimizer, name=None, **kwargs):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.replay = None

    def find_values(self, model, traced):
        """What of the model is computed again.

        Args:
            model: Keras model; `None` if it is not known.
            traced: Its `trace.Trace`.

        Returns:
            List of `trace.Value`s.
        """
        raise NotImplementedError

    def _prepare_build(self, variables):
        if not self.built:
            self.replay = Replay(self, variables)

    def build_inner(self, variables):
        super().build_inner([v for v in variables if self._is_for_inner(v)])

    def _inner_remembers(self):
        return any(
            isinstance(each, ReplayOptimizer)
            for each in wrapped(self.inner_optimizer)
        )

    def _is_for_inner(self, variable):
        """Whether the inner optimizer has to know of a variable."""
        return not _is_carrier(variable) or self._inner_remembers()

    def for_inner(self, grads, variables):
        """Gradients and variables, without those that only carry examples."""
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables)
            if self._is_for_inner(variable)
        ]
        return [g for g, _ in pairs], [v for _, v in pairs]

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(
            [v for v in var_list if self._is_for_inner(v)]
        )

    def remember(self, grads, variables):
        """Keeps the examples of a step, unless loss scaling skips it."""
        if self._inner_remembers():
            return  # It may want to know of those before, too.
        scaler = loss_scaler(self.inner_optimizer)
        pairs = list(zip(grads, variables))
        with backend.no_gradient():
            finite = None
            if scaler is not None:
                finite = scaler.check_finite(
                    [g for g, v in pairs if not _is_carrier(v)]
                )
            for value, variable in pairs:
                if value is None or not _is_carrier(variable):
                    continue
                if finite is not None:
                    before = ops.convert_to_tensor(variable)
                    value = ops.where(finite, value, before)
                variable.assign(value)


class Replay:
    """A model, of which some values can be computed again.

    An object of its own: a Keras optimizer takes every variable it finds in
    its attributes for one of its own.

    Args:
        optimizer: The `ReplayOptimizer`.
        variables: List of the trainable variables of one model.

    Attributes:
        carriers: List of the variables by which examples travel.

    Raises:
        NotCalledError: If the model has to be called or compiled first.
        ValueError: If it cannot be computed.
    """

    def __init__(self, optimizer, variables):
        self.carriers = [v for v in variables if _is_carrier(v)]
        layers = [v.recent_inputs() for v in self.carriers]
        layers = {id(layer): layer for layer in layers}
        name = type(optimizer).__name__
        if not layers:
            raise ValueError(
                f"`{name}` looks at recent examples again, which a layer has "
                "to remember. Let `keras_plasticity.layers.RecentInputs` be "
                "the first layer of the model. Received the variables: "
                f"{[v.path for v in variables]}"
            )
        weights = [v for v in variables if not is_statistic(v)]
        model = graph.find_model(list(layers.values()), variables, optimizer)
        try:
            if model is None:
                traced = trace.trace_around(list(layers.values()), weights)
            else:
                traced = trace.trace_model(model, whole_leaves=True)
        except trace.NotTraceableError as error:
            raise ValueError(
                f"`{name}` computes a part of the model again, for which its "
                f"`call` is traced with symbolic inputs: {error.reason}"
            ) from error
        self._wanted = optimizer.find_values(model, traced)
        if not self._wanted:
            raise ValueError(
                f"`{name}` acts on what hidden layers make. Received: a model "
                f"without any, with the weights {[v.path for v in weights]}"
            )
        self._examples = {
            call.outputs[0]: call.operation
            for call in traced.calls
            if id(call.operation) in layers
        }
        self._calls = activations.calls_up_to(
            traced.calls, self._wanted, self._examples
        )
        self._check_inputs(name)
        self._check_state(name)
        self._forward = _Inference(self._compute, autocast=False, name="replay")

    def _check_inputs(self, name):
        known = {value for call in self._calls for value in call.outputs}
        known |= set(self._examples)
        missing = [
            value.shape
            for call in self._calls
            for value in call.inputs
            if value not in known
        ]
        if missing:
            raise ValueError(
                f"`{name}` needs all inputs of the model. Put a "
                "`keras_plasticity.layers.RecentInputs` behind each of them. "
                f"Received: inputs of the shapes {missing} without"
            )

    def _check_state(self, name):
        for call in self._calls:
            layer = call.operation
            if not isinstance(layer, keras.Layer):
                continue
            state = [
                v.path
                for v in layer.non_trainable_variables
                # What only draws random numbers is not needed.
                if "seed_generator" not in v.path
            ]
            if state and not (
                isinstance(layer, PlasticLayer) and layer.trainable
            ):
                raise ValueError(
                    f"`{name}` computes a part of the model within a training "
                    "step, which on JAX gives an optimizer trainable weights "
                    "only. Use a layer without a state of its own, such as "
                    "`keras.layers.LayerNormalization`, in place of a "
                    "`BatchNormalization`, and freeze no layer. Received: "
                    f"layer '{layer.name}' with {state}"
                )

    def recent_examples(self):
        """The examples that are remembered.

        Returns:
            Tuple of a list of tensors, and of the float32 tensor of shape
            `(num_examples,)` that is 1 where there is an example, else 0.
        """
        examples = []
        masks = []
        for layer in self._examples.values():
            rows, is_example = layer.recent()
            examples.append(ops.cast(rows, layer.compute_dtype))
            masks.append(is_example)
        return examples, ops.cast(ops.all(ops.stack(masks), axis=0), "float32")

    def compute(self, examples):
        """What the model makes of examples, as in inference.

        Args:
            examples: List of tensors, see `recent_examples`.

        Returns:
            List of float32 tensors, one for each value that is wanted.
        """
        values = self._forward(examples, training=False)
        return [ops.cast(value, "float32") for value in values]

    def _compute(self, examples):
        found = {}
        tensors = dict(zip(self._examples, examples))
        wanted = set(self._wanted)
        activations.compute(self._calls, tensors, wanted, found.__setitem__)
        return [found[value] for value in self._wanted]


class _Inference(keras.layers.Layer):
    """Calls a function, and the layers in it with `training=False`."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self._function = function

    def call(self, inputs, training=None):
        return self._function(inputs)


def _is_carrier(variable):
    return hasattr(variable, "recent_inputs")


def along_examples(mask, tensor):
    """A tensor of shape `(examples,)`, to be multiplied with another one."""
    return ops.reshape(mask, (-1, *[1] * (len(tensor.shape) - 1)))
