from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.graph import activations
from keras_plasticity.optimizers.replay import ReplayOptimizer
from keras_plasticity.optimizers.replay import along_examples
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_list
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.validation import error
from keras_plasticity.validation import is_integer
from keras_plasticity.weights import is_statistic


def _check_layers(name, value):
    rule = "`None`, a positive integer, or a list of the names of layers"
    if value is None:
        return None
    if is_integer(value):
        if value < 1:
            raise error(name, rule, value)
        return int(value)
    return tuple(check_list(name, value, str, rule))


@keras.saving.register_keras_serializable(package="keras_plasticity")
class EffectiveRank(ReplayOptimizer):
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
            meant; or an integer, how many of the last hidden layers. Defaults
            to `None`: all hidden layers.
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
        layers: Sequence[str] | int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.rank_learning_rate = rank_learning_rate
        self.period = period
        self.steps = steps
        self.layers = layers
        self._axes = []

    def find_values(self, model, traced):
        last = self.layers if isinstance(self.layers, int) else 0
        names = None if last else self.layers
        found = activations.find_activations(model, traced, names)[-last:]
        self._axes = [each.unit_axis for each in found]
        return [each.value for each in found]

    def make_step(self, grads, variables):
        self.remember(grads, variables)
        weights = [v for v in variables if not is_statistic(v)]
        grads, variables = self.for_inner(grads, variables)
        if self.always_updates:
            self.apply_inner(grads, variables)
            is_due = True
        else:
            is_due = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            iterations = ops.convert_to_tensor(self.iterations)
            period = ops.cast(self.now("period"), iterations.dtype)
            is_due = ops.logical_and(is_due, ops.equal(iterations % period, 0))
            # Not within: a schedule reads what the inner optimizer counts.
            step_size = self.now("rank_learning_rate")
            backend.run_if(
                is_due,
                lambda: self._raise_rank(weights, step_size),
                [*weights, *self.replay.carriers],
            )

    def _raise_rank(self, weights, step_size):
        # Not within the function: on JAX it knows of the weights only.
        examples, mask = self.replay.recent_examples()
        for _ in range(self.steps):
            gradients = backend.gradients(
                lambda: self._mean_rank(examples, mask), weights
            )
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    change = ops.cast(step_size, weight.dtype) * gradient
                    weight.assign(weight.value + change)

    def _mean_rank(self, examples, mask):
        ranks = []
        for rows, axis in zip(self.replay.compute(examples), self._axes):
            rows = rows * along_examples(mask, rows)
            if axis != len(rows.shape) - 1:
                rows = ops.moveaxis(rows, axis, -1)
            rows = ops.reshape(rows, (-1, rows.shape[-1]))
            ranks.append(functional.effective_rank(rows))
        return sum(ranks) / len(ranks)

    def get_config(self) -> dict[str, Any]:
        names = ("rank_learning_rate", "period", "steps")
        layers = self.layers
        if isinstance(layers, tuple):
            layers = list(layers)
        return {
            **super().get_config(),
            **self.settings(*names),
            "layers": layers,
        }
