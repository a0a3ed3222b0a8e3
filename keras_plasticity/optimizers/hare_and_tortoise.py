import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.layers.batch_normalization import put_back
from keras_plasticity.layers.batch_normalization import received
from keras_plasticity.optimizers.settings import DecayRate
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.weights import is_moving_statistic


@keras.saving.register_keras_serializable(package="keras_plasticity")
class HareAndTortoise(WeightOptimizer):
    """Optimizer wrapper that returns weights to their running mean at times.

    The model's weights are the hare: the inner optimizer trains them. After
    each update the tortoise follows,

    `tortoise <- decay_rate * tortoise + (1 - decay_rate) * hare`,

    from the first weights on. After every `period`-th update the hare is put
    where the tortoise is. The state of the inner optimizer stays as it is.

    It is the tortoise that is meant to be evaluated and used. It is in the
    model within

    - `with optimizer.tortoise(): ...`, for `evaluate`, `predict` or `save`;
    - the callback `keras_plasticity.callbacks.EvaluateTortoise`, for the
        validation of `fit`.

    The authors put the hare back after the first epoch of each task and then
    after every tenth. `optimizer.reset_hare()` does it at any time. Two things
    in their code are not imitated: it never sets gradients to zero, so that
    they add up over steps; and after the hare is put back the two share their
    memory for one step, which moves both.

    The authors average the moving statistics of batch normalization, too, and
    put them back. So does this with those of
    `keras_plasticity.layers.BatchNormalization`, which an optimizer can see.
    What else a model holds that is not trainable, such as the statistics of
    `keras.layers.BatchNormalization`, is the hare's, also while the tortoise is
    evaluated.

    It is a close relative of Keras' own `use_ema=True` with
    `ema_overwrite_frequency`. Keras' averages begin with the weights after the
    first update, and at the end of each `fit` they take the place of the
    weights for good. Here the hare goes on from where it was.

    An update is one step that the inner optimizer makes. Variables whose
    gradient is `None` are left alone, as are those that are no weights:
    statistics marked `overwrite_with_gradient`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        decay_rate: Float in [0, 1), of the running mean. Defaults to `0.999`.
        period: Positive integer, the number of updates between two times that
            the hare is put back. Defaults to `2000`, about ten epochs of
            50,000 images in batches of 256.
        exclude: Strings. Weights have no running mean and are left to the
            inner optimizer whose path, such as `"sequential/output/kernel"`,
            has one of them in it. Defaults to `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.HareAndTortoise(
        keras.optimizers.Adam(1e-3), decay_rate=0.99, period=100
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    with optimizer.tortoise():
        model.evaluate(x, y)
    ```

    References:

    - [Lee et al., 2024](https://arxiv.org/abs/2406.02596)
    """

    decay_rate = DecayRate()
    period = Hyperparameter(check_positive_integer, dtype="int32")

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        decay_rate: float = 0.999,
        period: int = 2000,
        exclude: tuple[str, ...] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.decay_rate = decay_rate
        self.period = period
        # By the ids of weights.
        self._tortoises = {}
        # Of batch normalizations: their ids, and what came of them in a step.
        self._statistics = set()
        self._rows = {}

    def _choose(self, variables):
        chosen = super()._choose(variables)
        statistics = [
            variable
            for variable in variables
            if is_moving_statistic(variable)
            and not any(part in variable.path for part in self.exclude)
        ]
        self._statistics = {id(variable) for variable in statistics}
        return chosen + statistics

    def add_state(self, weights):
        for weight in weights:
            self._tortoises[id(weight)] = self.add_copy(weight, "tortoise")

    def make_step(self, grads, variables):
        new_grads = list(grads)
        for i, (gradient, variable) in enumerate(zip(grads, variables)):
            if gradient is None or id(variable) not in self._statistics:
                continue
            rows = received(gradient, variable.value)
            new_grads[i] = rows
            with backend.no_gradient():
                # In each step, also where gradients are accumulated.
                variable.assign(rows)
        super().make_step(new_grads, variables)

    def change_gradients(self, gradients, weights):
        self._rows = {
            id(weight): gradient
            for weight, gradient in zip(weights, gradients)
            if id(weight) in self._statistics
        }
        return gradients

    def after_update(self, weights, gradients, before):
        _, complement = ops.unstack(self.now("decay_rate"), 2)
        for weight in weights:
            tortoise = self._tortoises[id(weight)]
            value = tortoise.value
            hare = self._rows.get(id(weight))
            hare = weight.value if hare is None else received(hare, value)
            step = ops.cast(complement, weight.dtype)
            tortoise.assign(value + step * (hare - value))
        number = ops.cast(self.iterations, "int32")
        backend.run_if(
            ops.equal(number % self.now("period"), 0),
            lambda: self._put_back(weights),
            [*weights, *self.own_variables()],
        )

    def _put_back(self, weights):
        for weight in weights:
            # Not the same array: on JAX, `fit` gives the arrays of both away.
            value = ops.copy(self._tortoises[id(weight)].value)
            if id(weight) in self._statistics:
                value = put_back(value)
            weight.assign(value)

    def reset_hare(self):
        """Puts the hare, the model's weights, where the tortoise is.

        Raises:
            ValueError: If the optimizer is not built yet.
        """
        with backend.no_gradient():
            self._put_back(self._hares())

    @contextlib.contextmanager
    def tortoise(self) -> Iterator[None]:
        """Context in which the model has the weights of the tortoise.

        Afterwards it has again those it had before. Do not train in between.

        Raises:
            ValueError: If the optimizer is not built yet.
        """
        weights = self._hares()
        with backend.no_gradient():
            hares = [ops.copy(weight.value) for weight in weights]
            self._put_back(weights)
        try:
            yield
        finally:
            with backend.no_gradient():
                for weight, hare in zip(weights, hares):
                    weight.assign(hare)

    def _hares(self):
        if not self.built:
            raise ValueError(
                "There is no tortoise before the optimizer is built, which it "
                "is at the first step of training. Train the model, or call "
                "`optimizer.build(model.trainable_variables)`, first."
            )
        return [
            variable
            for variable in keras_compat.built_variables(self)
            if id(variable) in self._tortoises
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("decay_rate", "period"),
        }
