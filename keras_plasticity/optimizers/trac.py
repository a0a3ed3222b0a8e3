import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import functional
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_list
from keras_plasticity.validation import check_positive
from keras_plasticity.validation import error

_ERFI = 0.9534382692512609  # Of sqrt(1 / 2).
# What the sums of all tuners begin with.
_FIRST_SUM = 1e-8


def _check_betas(name, value):
    rule = "one or more numbers in (0, 1)"
    betas = check_list(name, value, rule=rule)
    if not betas:
        raise error(name, rule, value)
    return tuple(check_in_interval(name, beta, "(0, 1)") for beta in betas)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class TRAC(WeightOptimizer):
    """Optimizer wrapper that decides how far weights go from the first ones.

    The inner optimizer says in which direction; a one-dimensional online
    learner without parameters says how far. Let `ref` be the weights when this
    optimizer was built, `w` the weights before an update with gradients `g`,
    and `u` the change that the inner optimizer makes. With `S` the scale of the
    update before (0 before the first),

    - `D = (w - ref) / (S + epsilon)`, and `h` the sum of `D * g` over all
        weights of the model, one number;
    - for each of the tuners, `variance <- beta**2 * variance + h**2` and
        `sum <- beta * sum - h`, from 0 and 1e-8, and its scale is
        `scale * erfi(sum / (sqrt(2 * variance) + epsilon)) / erfi(sqrt(1/2))`;
    - `S` is the sum over all tuners, or 0 if that is negative;
    - `w <- ref + (D + u) * S`.

    The state of the inner optimizer is that of the weights which it sees.

    Set after the fact, a learning rate decides little: the scale begins at
    about `scale` for each tuner and grows exponentially, as long as steps go on
    to help. Where they no longer do, weights return to `ref`. The authors use
    it for reinforcement learning that goes on for long.

    `ref` are the weights when the optimizer is built, which is at the first
    step, or when a model with a built optimizer is loaded. Changes that other
    methods make to the weights count as a part of `D`, but when `S` is 0: they
    are then undone.

    In float32, a weight of 0.1 cannot change by 1e-8, which is where the
    default `scale` begins. So what is lost in rounding is kept beside each
    weight, and the run is that of a higher precision. The authors'
    approximation of `erfi` is wrong by about 1 %; the one here is exact.

    An update is one step that the inner optimizer makes: with gradient
    accumulation, `g` is the accumulated gradient. Variables whose gradient is
    `None` are left alone, as are those that are no weights: statistics marked
    `overwrite_with_gradient`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        betas: Numbers in (0, 1), the discount factors of the tuners. Defaults
            to `(0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)`.
        scale: Float, positive, the scale of a tuner whose sum is as large as
            its deviation. Defaults to `1e-8`.
        epsilon: Float, positive. Defaults to `1e-8`.
        exclude: Strings. Weights are left to the inner optimizer whose path,
            such as `"sequential/output/kernel"`, has one of them in it.
            Defaults to `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.TRAC(keras.optimizers.Adam(1e-3))
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Muppidi, Zhang and Yang, 2024](https://arxiv.org/abs/2405.16642)
    """

    needs_gradients = True

    betas = Setting(_check_betas)
    scale = Hyperparameter(check_positive)
    epsilon = Hyperparameter(check_positive)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        betas: Sequence[float] = (
            0.9,
            0.99,
            0.999,
            0.9999,
            0.99999,
            0.999999,
        ),
        scale: float = 1e-8,
        epsilon: float = 1e-8,
        exclude: tuple[str, ...] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.betas = betas
        self.scale = scale
        self.epsilon = epsilon
        # By the ids of weights.
        self._references = {}
        self._remainders = {}

    def add_state(self, weights):
        for weight in weights:
            self._references[id(weight)] = self.add_copy(weight, "reference")
            self._remainders[id(weight)] = self.add_variable_from_reference(
                weight, name="remainder"
            )
        shape = (len(self.betas),)
        self._variances = self.add_variable(shape, name="variances")
        self._sums = self.add_variable(
            shape,
            initializer=keras.initializers.Constant(_FIRST_SUM),
            name="sums",
        )
        # Without any before, the distance is 0.
        self._total = self.add_variable((), name="total_scale")

    def before_update(self, weights):
        return [ops.copy(ops.convert_to_tensor(w)) for w in weights]

    def after_update(self, weights, gradients, before):
        distances = [
            old
            - self._references[id(weight)].value
            + self._remainders[id(weight)].value
            for weight, old in zip(weights, before)
        ]
        total = ops.convert_to_tensor(self._total)
        # With the scale at 0 weights are at the reference, or were changed by
        # something else.
        is_away = ops.greater(total, 0.0)
        divisor = ops.where(is_away, total + self.now("epsilon"), 1.0)
        inverse = ops.where(is_away, 1.0 / divisor, 0.0)
        product = inverse * sum(
            ops.sum(ops.cast(distance, "float32") * ops.cast(g, "float32"))
            for distance, g in zip(distances, gradients)
        )
        total = self._update_total(product)
        factor = total * inverse
        for weight, old, distance in zip(weights, before, distances):
            reference = self._references[id(weight)].value
            change = ops.convert_to_tensor(weight) - old
            dtype = weight.dtype
            distance = ops.cast(factor, dtype) * distance + (
                ops.cast(total, dtype) * change
            )
            value = reference + distance
            self._remainders[id(weight)].assign(distance - (value - reference))
            if weight.constraint is not None:
                value = weight.constraint(value)
            weight.assign(value)

    def _update_total(self, product):
        """The scale of this update, a float32 scalar tensor."""
        # The differences from 1, which float32 holds more digits of.
        lost = ops.convert_to_tensor(1 - np.array(self.betas), "float32")
        variances = self._variances.value
        variances = variances - lost * (2 - lost) * variances + product**2
        sums = self._sums.value
        sums = sums - lost * sums - product
        self._variances.assign(variances)
        self._sums.assign(sums)
        deviations = ops.sqrt(variances) * math.sqrt(2) + self.now("epsilon")
        scales = functional.erfi(sums / deviations)
        total = ops.maximum(self.now("scale") / _ERFI * ops.sum(scales), 0.0)
        self._total.assign(total)
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "betas": list(self.betas),
            **self.settings("scale", "epsilon"),
        }
