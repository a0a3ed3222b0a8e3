from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity import graph
from keras_plasticity.graph import activations
from keras_plasticity.graph import trace
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.optimizers.inner_optimizers import loss_scaler
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_list
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.weights import is_statistic


def _check_layers(name, value):
    rule = "`None`, or a list of the names of layers"
    if value is None:
        return None
    return tuple(check_list(name, value, str, rule))


@keras.saving.register_keras_serializable(package="keras_plasticity")
class EffectiveRank(OptimizerWrapper):
    """Optimizer wrapper that raises the effective rank of hidden features.

    After every `period` updates by the inner optimizer, weights descend

    `w <- w + rank_learning_rate * d(mean over layers of erank(H)) / dw`,

    where `H` is what a hidden layer makes of recent examples, after its
    activation, a matrix with a row for each example, and for each position of
    a convolution, and `erank` its effective rank
    (`keras_plasticity.functional.effective_rank`). It is a step of its own, on
    the weights as they are after the update: the inner optimizer and its slots
    have no part in it.

    Together with an L2 penalty this is L2-ER, which was proposed against the
    collapse of the spectrum of the loss's Hessian:
    `EffectiveRank(L2(SGD(...)))`.

    The examples are those that a `keras_plasticity.layers.RecentInputs` layer
    remembers, which has to be the model's first layer (for several inputs, the
    first one of each). In the authors' code they are all that was shown since
    the last such step: as many as `period` times the batch size. While fewer
    were seen the others count as zeros, which change no rank.

    The model is computed as in inference, by the optimizer. So no layer up to
    the last of those hidden layers may have a state of its own, as
    `BatchNormalization` has, or be frozen, and the model's `call` must be such
    that symbolic inputs can trace it.

    One such step is a forward and a backward pass on the remembered examples,
    and a singular value decomposition for each layer.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        rank_learning_rate: Float, not negative, or a schedule of Keras, the
            step size. Defaults to `1e-3`.
        period: Positive integer, the number of updates from one step to the
            next. Defaults to `100`.
        steps: Positive integer, how many steps are made then. Defaults to `1`.
        layers: List of strings, the names of the layers whose features are
            meant. Defaults to `None`: all hidden layers.
        name: String, the optimizer's name.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.RecentInputs(100),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    optimizer = keras_plasticity.optimizers.EffectiveRank(
        keras_plasticity.optimizers.L2(keras.optimizers.SGD(1e-2), l2=1e-3),
        rank_learning_rate=1e-3,
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ```

    References:

    - [Prakash, He, Guo et al., 2025](https://arxiv.org/abs/2509.22335)
    """

    rank_learning_rate = Hyperparameter(check_not_negative, schedules=True)
    period = Hyperparameter(check_positive_integer, dtype="int32")
    steps = Setting(check_positive_integer)
    layers = Setting(_check_layers)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        rank_learning_rate: float | Schedule = 1e-3,
        period: int = 100,
        steps: int = 1,
        layers: Sequence[str] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.rank_learning_rate = rank_learning_rate
        self.period = period
        self.steps = steps
        self.layers = layers
        self._network = None

    def _prepare_build(self, variables):
        if not self.built:
            self._network = _HiddenFeatures(self, variables)

    def make_step(self, grads, variables):
        pairs = list(zip(grads, variables))
        carriers = [pair for pair in pairs if _is_carrier(pair[1])]
        weights = [v for v in variables if not is_statistic(v)]
        self._remember(carriers, grads)
        pairs = [pair for pair in pairs if self._is_for_inner(pair[1])]
        grads = [gradient for gradient, _ in pairs]
        variables = [variable for _, variable in pairs]
        if self.always_updates:
            self.apply_inner(grads, variables)
            is_due = True
        else:
            is_due = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            iterations = ops.convert_to_tensor(self.iterations)
            period = ops.cast(self.now("period"), iterations.dtype)
            is_due = ops.logical_and(is_due, ops.equal(iterations % period, 0))
            backend.run_if(
                is_due,
                lambda: self._raise_rank(weights),
                [
                    *weights,
                    *(variable for _, variable in carriers),
                    *self.hyperparameter_variables(),
                    self.iterations,
                ],
            )

    def _remember(self, carriers, grads):
        """Keeps the examples of a step, unless loss scaling skips it."""
        scaler = loss_scaler(self.inner_optimizer)
        with backend.no_gradient():
            finite = None if scaler is None else scaler.check_finite(grads)
            for value, variable in carriers:
                if value is None:
                    continue
                if finite is not None:
                    before = ops.convert_to_tensor(variable)
                    value = ops.where(finite, value, before)
                variable.assign(value)

    def build_inner(self, variables):
        super().build_inner([v for v in variables if self._is_for_inner(v)])

    def _is_for_inner(self, variable):
        """Whether the inner optimizer has to know of a variable."""
        return not _is_carrier(variable) or any(
            isinstance(each, EffectiveRank)
            for each in wrapped(self.inner_optimizer)
        )

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(
            [v for v in var_list if self._is_for_inner(v)]
        )

    def _raise_rank(self, weights):
        step_size = self.now("rank_learning_rate")
        # Not within the function: on JAX it knows of the weights only.
        examples, mask = self._network.recent_examples()
        for _ in range(self.steps):
            gradients = backend.gradients(
                lambda: self._network.mean_rank(examples, mask), weights
            )
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    change = ops.cast(step_size, weight.dtype) * gradient
                    weight.assign(weight.value + change)

    def get_config(self) -> dict[str, Any]:
        names = ("rank_learning_rate", "period", "steps")
        layers = None if self.layers is None else list(self.layers)
        return {
            **super().get_config(),
            **self.settings(*names),
            "layers": layers,
        }


class _HiddenFeatures:
    """The features of a model's hidden layers, computed anew.

    An object of its own: a Keras optimizer takes every variable it finds in
    its attributes for one of its own.

    Args:
        optimizer: The `EffectiveRank`.
        variables: List of the trainable variables of one model.

    Raises:
        NotCalledError: If the model has to be called or compiled first.
        ValueError: If its features cannot be computed.
    """

    def __init__(self, optimizer, variables):
        recent = {
            id(layer): layer
            for layer in (
                v.recent_inputs() for v in variables if _is_carrier(v)
            )
        }
        name = type(optimizer).__name__
        if not recent:
            raise ValueError(
                f"`{name}` looks at recent examples again, which a layer has "
                "to remember. Let `keras_plasticity.layers.RecentInputs` be "
                "the first layer of the model. Received the variables: "
                f"{[v.path for v in variables]}"
            )
        layers = list(recent.values())
        model = graph.find_model(layers, variables, optimizer)
        try:
            if model is None:
                weights = [v for v in variables if not is_statistic(v)]
                traced = trace.trace_around(layers, weights)
            else:
                traced = trace.trace_model(model, whole_leaves=True)
        except trace.NotTraceableError as error:
            raise ValueError(
                f"`{name}` computes the model's features, for which its `call` "
                f"is traced with symbolic inputs: {error.reason}"
            ) from error
        found = activations.find_activations(model, traced, optimizer.layers)
        if not found:
            raise ValueError(
                f"`{name}` raises the rank of the features of hidden layers. "
                "Received: a model with the weights "
                f"{[v.path for v in variables if not is_statistic(v)]}"
            )
        self._axes = {each.value: each.unit_axis for each in found}
        self._examples = {
            call.outputs[0]: call.operation
            for call in traced.calls
            if id(call.operation) in recent
        }
        self._calls = activations.calls_up_to(
            traced.calls, self._axes, self._examples
        )
        self._check(name)
        self._forward = _Inference(self._compute, autocast=False)

    def _check(self, name):
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
                f"`{name}` needs all inputs of hidden layers. Put a "
                "`keras_plasticity.layers.RecentInputs` behind each input of "
                f"the model. Received: inputs of the shapes {missing} without"
            )
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
                    f"`{name}` computes hidden features within a training "
                    "step, which on JAX gives an optimizer trainable weights "
                    "only. Use a layer without a state of its own, such as "
                    "`keras.layers.LayerNormalization`, in place of a "
                    "`BatchNormalization`, and freeze no layer. Received: "
                    f"layer '{layer.name}' with {state}"
                )

    def recent_examples(self):
        """The examples that are remembered.

        Returns:
            Tuple of a dict from `trace.Value` to a tensor, and of the float32
            tensor that is 1 for each row that is an example, else 0.
        """
        examples = {}
        masks = []
        for value, layer in self._examples.items():
            rows, is_example = layer.recent()
            examples[value] = ops.cast(rows, layer.compute_dtype)
            masks.append(is_example)
        return examples, ops.cast(ops.all(ops.stack(masks), axis=0), "float32")

    def mean_rank(self, examples, mask):
        """Mean over the layers of the effective rank of their features.

        Args:
            examples: Dict, see `recent_examples`.
            mask: Tensor, likewise.

        Returns:
            Scalar tensor.
        """
        ranks = []
        features = self._forward(list(examples.values()), training=False)
        for rows, axis in zip(features, self._axes.values()):
            rows = ops.cast(rows, "float32")
            shape = (-1, *[1] * (len(rows.shape) - 1))
            rows = rows * ops.reshape(mask, shape)
            if axis != len(rows.shape) - 1:
                rows = ops.moveaxis(rows, axis, -1)
            rows = ops.reshape(rows, (-1, rows.shape[-1]))
            ranks.append(functional.effective_rank(rows))
        return sum(ranks) / len(ranks)

    def _compute(self, examples):
        found = {}
        tensors = dict(zip(self._examples, examples))
        wanted = set(self._axes)
        activations.compute(self._calls, tensors, wanted, found.__setitem__)
        return [found[value] for value in self._axes]


class _Inference(keras.layers.Layer):
    """Calls a function, and the layers in it with `training=False`."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self._function = function

    def call(self, inputs, training=None):
        return self._function(inputs)


def _is_carrier(variable):
    return hasattr(variable, "recent_inputs")
