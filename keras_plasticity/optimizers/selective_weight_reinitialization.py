import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.optimizers import layer_weights
from keras_plasticity.optimizers.new_weights import PartInitializer
from keras_plasticity.optimizers.new_weights import check_optional_initializer
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.validation import check_seed


def _check_utility(name, value):
    return check_choice(name, value, ("gradient", "magnitude", "random"))


def _check_rule(name, value):
    return check_choice(name, value, ("threshold", "proportional"))


def _check_replacement(name, value):
    return check_choice(name, value, ("resample", "mean"))


def _check_decay_rate(name, value):
    return check_in_interval(name, value, "[0, 1)")


class _Factor(Hyperparameter):
    def validate(self, optimizer, value):
        if optimizer.rule == "proportional":
            return check_in_interval(self.name, value, "[0, 1]")
        return check_not_negative(self.name, value)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SelectiveWeightReinitialization(WeightOptimizer):
    """Optimizer wrapper that gives the least useful weights new values.

    The utility of a weight `w` with gradient `g` is

    - `|w * g|` with `utility="gradient"`, where `w` is the weight after the
        update and `g` the gradient that the update was made with;
    - `|w|` with `utility="magnitude"`;
    - a random number between 0 and 1 with `utility="random"`, with which the
        others are compared.

    With a `decay_rate` above 0, it is the running mean of that, from 0 and
    without bias correction: `u <- decay_rate * u + (1 - decay_rate) * |w * g|`.

    After every `period`-th update, in each variable of the model on its own,
    kernels and biases, the output layer's too, new values have

    - with `rule="threshold"`, the weights of `u <= factor * mean(u)`;
    - with `rule="proportional"`, the least useful ones, `factor` times the
        number of weights. The fraction that is left decides at random whether
        it is one more; nothing is carried over. Of equally useful weights,
        such as those of silent units, the ones of the first units go.

    A kernel's new values come from a normal distribution of the standard
    deviation `sqrt(2 / fan_in)`, or from `initializer`, or are the mean, 0,
    with `replacement="mean"`. The scales of normalization layers become 1, all
    other vectors, such as biases, 0. Running means of the whole variable begin
    at 0 again. The state of the inner optimizer stays as it is. Embeddings, and
    variables without an axis, are left alone.

    This is what the paper's released code does. For permuted MNIST it draws
    from the normal distribution, and in a vision transformer from what the
    layers began with, mostly uniform distributions: for queries, keys and
    values `"glorot_uniform"`, which is Keras' own, and within the blocks
    `keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")`, which is
    PyTorch's. (There the biases of these blocks are drawn, too. Here they
    become 0.)

    An earlier code of the authors had ages and a maturity threshold. There too,
    a weight of utility 0 goes with `rule="threshold"` whatever the factor is:
    with the gradient's utility, all weights of units that were silent for the
    whole batch. A `decay_rate` makes that all batches since the last time.

    An update is one step that the inner optimizer makes: with gradient
    accumulation, `g` is the accumulated gradient. Variables whose gradient is
    `None` are left alone, as are those that are no weights: statistics marked
    `overwrite_with_gradient`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        utility: `"gradient"` (default), `"magnitude"` or `"random"`.
        rule: `"threshold"` (default) or `"proportional"`.
        replacement: `"resample"` (default) or `"mean"`.
        factor: Float, not negative, or a schedule of Keras. At most 1 with
            `rule="proportional"`. Defaults to `1e-5`, the authors' choice for
            permuted MNIST, as are all other defaults.
        period: Positive integer, the number of updates between two times that
            weights are replaced. Defaults to `2048`.
        decay_rate: Float in [0, 1), of the running mean. Defaults to `0.0`:
            the utility is that of the last update.
        seed: Integer, of all that is drawn. Drawn at random by default.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.
        initializer: Keras initializer or the name of one, of the new values of
            kernels. Of no use with `replacement="mean"`. Defaults to `None`:
            the normal distribution.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.SelectiveWeightReinitialization(
        keras.optimizers.SGD(0.05), rule="proportional", factor=0.01, period=64
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Hernandez-Garcia et al., 2025](https://arxiv.org/abs/2508.00212)
    """

    utility = Setting(_check_utility)
    rule = Setting(_check_rule)
    replacement = Setting(_check_replacement)
    factor = _Factor(schedules=True)
    period = Hyperparameter(check_positive_integer, dtype="int32")
    decay_rate = Setting(_check_decay_rate)
    seed = Setting(check_seed)
    initializer = Setting(check_optional_initializer)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        utility: str = "gradient",
        rule: str = "threshold",
        replacement: str = "resample",
        factor: float | Schedule = 1e-5,
        period: int = 2048,
        decay_rate: float = 0.0,
        seed: int | None = None,
        exclude: tuple[str, ...] = (),
        name: str | None = None,
        initializer: str | keras.initializers.Initializer | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.utility = utility
        self.rule = rule
        self.replacement = replacement
        self.factor = factor
        self.period = period
        self.decay_rate = decay_rate
        self.seed = seed
        self.initializer = initializer
        self._seed_generator = self.add_seed_generator(seed)
        # By the ids of weights.
        self._means = {}
        self._initializers = {}

    @property
    def needs_gradients(self):
        return self.utility == "gradient"

    def acts_on(self, variable):
        return layer_weights.is_kernel(variable) or len(variable.shape) == 1

    def add_state(self, weights):
        if self.initializer is not None:
            self._initializers = {
                id(weight): PartInitializer(
                    self.initializer, tuple(weight.shape), self._seed_generator
                )
                for weight in filter(layer_weights.is_kernel, weights)
            }
        if self.decay_rate == 0:
            return
        for weight in weights:
            self._means[id(weight)] = self.add_variable_from_reference(
                weight, name="mean_utility"
            )

    def after_update(self, weights, gradients, before):
        gradients = gradients or [None] * len(weights)
        for weight, gradient in zip(weights, gradients):
            if id(weight) in self._means:
                mean = self._means[id(weight)]
                utility = self._utility(weight, gradient)
                mean.assign(
                    self.decay_rate * mean.value
                    + (1 - self.decay_rate) * utility
                )
        number = ops.cast(self.iterations, "int32")
        # Here, as it may follow a schedule.
        factor = self.now("factor")
        backend.run_if(
            ops.equal(number % self.now("period"), 0),
            lambda: self._replace_all(weights, gradients, factor),
            [*weights, *self.own_variables()],
        )

    def _utility(self, weight, gradient):
        if self.utility == "random":
            return self._draw_utility(weight)
        value = ops.convert_to_tensor(weight)
        return ops.abs(value if gradient is None else value * gradient)

    def _replace_all(self, weights, gradients, factor):
        for weight, gradient in zip(weights, gradients):
            mean = self._means.get(id(weight))
            if mean is None:
                utility = self._utility(weight, gradient)
            else:
                utility = mean.value
            is_replaced = self._choose_weights(utility, factor)
            value = ops.where(
                is_replaced, self._new_values(weight), weight.value
            )
            if weight.constraint is not None:
                value = weight.constraint(value)
            weight.assign(value)
            if mean is not None:
                mean.assign(ops.where(ops.any(is_replaced), 0.0, utility))

    def _choose_weights(self, utility, factor):
        if self.rule == "threshold":
            return functional.below_mean(
                utility, ops.cast(factor, utility.dtype)
            )
        number = factor * math.prod(utility.shape)
        whole = ops.floor(number)
        chance = keras.random.uniform((), seed=self._seed_generator)
        number = whole + ops.cast(chance < number - whole, number.dtype)
        # Unit by unit, as PyTorch's weights lie in memory.
        rank = len(utility.shape)
        order = [*range(rank)[::-1][:2], *range(rank - 2)]
        chosen = functional.least(
            ops.transpose(utility, order), ops.cast(number, "int32")
        )
        return ops.transpose(chosen, np.argsort(order).tolist())

    def _new_values(self, weight):
        """What replaces the values of a weight: a tensor, or one number."""
        if not layer_weights.is_kernel(weight):
            return 1.0 if layer_weights.is_gain(weight) else 0.0
        if self.replacement == "mean":
            return 0.0
        if id(weight) in self._initializers:
            return self._initializers[id(weight)].draw_whole(weight.dtype)
        stddev = math.sqrt(2 / layer_weights.num_inputs(weight))
        return ops.cast(self._draw(weight) * stddev, weight.dtype)

    def _draw_utility(self, weight):
        return keras.random.uniform(
            weight.shape, dtype=weight.dtype, seed=self._seed_generator
        )

    def _draw(self, weight):
        """Standard normal numbers for a kernel, each time it is replaced."""
        return keras.random.normal(
            weight.shape, dtype="float32", seed=self._seed_generator
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("utility", "rule", "replacement", "factor"),
            **self.settings("period", "decay_rate", "seed", "initializer"),
        }
