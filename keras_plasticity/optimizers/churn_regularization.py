import math
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.replay import ReplayOptimizer
from keras_plasticity.optimizers.replay import along_examples
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_not_negative
from keras_plasticity.weights import is_statistic

_DISTANCES = ("squared_error", "cross_entropy")
# As in the authors' code.
_EPSILON = 1e-8


def _check_distance(name, value):
    return check_choice(name, value, _DISTANCES)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ChurnRegularization(ReplayOptimizer):
    """Optimizer wrapper that penalizes churn: outputs that change by the way.

    An update on one batch changes what the network makes of all others. With

    `coefficient * mean((f(x) - f_before(x))**2)`

    added to the loss, what the last update has changed is a part of the
    gradient; for logits of a policy or of a classifier, with
    `distance="cross_entropy"`, it is the mean of

    `-sum(softmax(f_before(x)) * log(softmax(f(x)) + 1e-8))`.

    `x` are the examples that a
    `keras_plasticity.layers.RecentInputs` layer remembers, the first of the
    model, those of the present batch not among them; `f_before` is the network
    as it was before the last update; the mean is over the examples and all
    outputs. While there are no such examples, and in the first update, there
    is no penalty.

    This is the penalty of C-CHAIN: the first form for values and for continuous
    actions, the second for discrete ones. Its authors draw the examples from a
    replay buffer, and let the coefficient follow the ratio of the losses:
    `relative * mean(abs(loss)) / mean(churn)` over the last updates. An
    optimizer does not know the loss; to do as they do, set
    `optimizer.coefficient`, which acts at the next update. In reinforcement
    learning it was found to keep plasticity; elsewhere there are no published
    results.

    The model is computed as in inference, twice, and once more backwards. So
    no layer may have a state of its own, as `BatchNormalization` has, or be
    frozen, and the model's `call` must be such that symbolic inputs can trace
    it. A copy of all weights is kept.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        coefficient: Float, not negative, or a schedule of Keras, the weight of
            the penalty. Defaults to `1.0`.
        distance: String, `"squared_error"` or `"cross_entropy"`. Defaults to
            `"squared_error"`.
        name: String, the optimizer's name.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras_plasticity.layers.RecentInputs(32),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(
        keras_plasticity.optimizers.ChurnRegularization(
            keras.optimizers.Adam(1e-3), coefficient=0.1
        ),
        loss="mse",
    )
    ```

    References:

    - [Tang et al., 2025](https://arxiv.org/abs/2506.00592)
    """

    coefficient = Hyperparameter(check_not_negative, schedules=True)
    distance = Setting(_check_distance)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        coefficient: float | Schedule = 1.0,
        distance: str = "squared_error",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.coefficient = coefficient
        self.distance = distance
        self._before = {}

    def find_values(self, model, traced):
        return list(traced.outputs)

    def build(self, variables: list[keras.Variable]):
        """Creates the variables of this optimizer and of the inner one.

        Args:
            variables: List of the trainable variables of one model.
        """
        if self.built:
            return
        super().build(variables)
        self._before = {
            id(v): self.add_copy(v, "before")
            for v in variables
            if not is_statistic(v)
        }

    def make_step(self, grads, variables):
        weights = [
            v
            for v, gradient in zip(variables, grads)
            if gradient is not None and not is_statistic(v)
        ]
        with backend.no_gradient():
            added = self._gradients(weights)
            grads = [
                g if added.get(id(v)) is None else g + added[id(v)]
                for g, v in zip(grads, variables)
            ]
        self.remember(grads, variables)
        grads, variables = self.for_inner(grads, variables)
        with backend.no_gradient():
            values = [ops.copy(weight.value) for weight in weights]
        is_update = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            for weight, value in zip(weights, values):
                before = self._before[id(weight)]
                before.assign(ops.where(is_update, value, before.value))

    def _gradients(self, weights):
        """Dict from the id of a weight to its gradient of the penalty."""
        examples, mask = self.replay.recent_examples()
        factor = self.now("coefficient") / ops.maximum(ops.sum(mask), 1.0)
        factor = self.inner_optimizer.scale_loss(factor)
        before = [
            (weight, self._before[id(weight)].value) for weight in weights
        ]
        with keras.StatelessScope(state_mapping=before):
            targets = self.replay.compute(examples)

        def penalty():
            outputs = self.replay.compute(examples)
            total, number = 0.0, 0
            for output, target in zip(outputs, targets):
                churn = self._churn(output, ops.stop_gradient(target))
                total += ops.sum(along_examples(mask, churn) * churn)
                number += math.prod(churn.shape[1:])
            return total * (factor / number)

        gradients = backend.gradients(penalty, weights)
        return dict(zip(map(id, weights), gradients))

    def _churn(self, output, before):
        if self.distance == "squared_error":
            return ops.square(output - before)
        log_p = ops.log(ops.softmax(output) + _EPSILON)
        return -ops.sum(ops.softmax(before) * log_p, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("coefficient", "distance"),
        }
