from typing import Any

import keras
from keras import ops

from keras_plasticity import functional
from keras_plasticity.functional.running_mean import step_size_by_log
from keras_plasticity.optimizers.noise import NoiseMagnitude
from keras_plasticity.optimizers.noise import NoiseTable
from keras_plasticity.optimizers.settings import DecayRate
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.weight_optimizer import WeightOptimizer
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.validation import check_seed


def _check_scope(name, value):
    return check_choice(name, value, ("global", "local"))


@keras.saving.register_keras_serializable(package="keras_plasticity")
class UPGD(WeightOptimizer):
    """Optimizer wrapper that protects useful weights and perturbs the others.

    Utility-based perturbed gradient descent. The utility of a weight is what
    the loss would rise by without it, to first order, `-gradient * weight`,
    with the weight as it was before the update. With `u` its bias-corrected
    running mean after `t` updates, a weight is protected by

    - `S = sigmoid(u / ((1 - utility_decay**t) * max(u)))`, the maximum being
        over all weights of the model (`scope="global"`), or
    - `S = sigmoid(u / norm(u))`, the Euclidean norm being over the weights that
        the same unit reads with, or over the whole bias (`scope="local"`).

    With `D` the change that the inner optimizer makes, and `e` from a standard
    normal distribution, the new weight is

    `w <- (1 - learning_rate * decay) * w
    + (1 - S) * (D - learning_rate * noise_stddev * e)`.

    Weights of no utility take half of the inner optimizer's step, and half of
    the noise; useful ones take less, and those that do harm take more. With
    `protecting=False` the step is not gated, but the noise is:
    `D - (1 - S) * learning_rate * noise_stddev * e`. The decay is never gated.
    All weights, biases and the output layer included, are treated alike.
    `keras_plasticity.optimizers.UnitUPGD` protects hidden units in their place.

    With `keras.optimizers.SGD` inside it is the method of the paper. Around
    Adam it is the authors' adaptive one, which they use in reinforcement
    learning; they divide by `sqrt(v / (1 - beta_2**t)) + 1e-5`, where
    `keras.optimizers.Adam` has its epsilon beside `sqrt(v)`, which is another
    number in the first updates. Theirs makes steps twice as long as its
    learning rate says: double the learning rate, and halve `decay`.

    That the maximum, unlike `u` above it, is that of the running mean without
    correction is how the authors' code has it: in the first updates, `S` is
    close to 0 or 1 for many weights. Their code has no guard for a maximum that
    is not positive, where signs would flip. Here, `S` is 0.5 for all weights
    then, for none is known to be useful. The local norm is over all inputs of
    a unit, and in a convolution only over the width of its kernel, as there.

    An update is one step that the inner optimizer makes: with gradient
    accumulation, utilities are those of the accumulated gradient. Variables
    whose gradient is `None` are left alone, as are those that are no weights:
    statistics marked `overwrite_with_gradient`. A weight decay of the inner
    optimizer is a part of `D`, so that it is gated.

    To be fast, noise is drawn ahead for `noise_refresh_steps` updates, as in
    `keras_plasticity.optimizers.ShrinkAndPerturb`, which says in what it is
    exact.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        scope: `"global"` (default) or `"local"`, which weights are compared.
        protecting: Boolean, whether the inner optimizer's step is gated, too.
            Defaults to `True`.
        utility_decay: Float in [0, 1), the decay rate of the running mean of
            the utility. Defaults to `0.999`.
        decay: Float, not negative, or a schedule of Keras: the part of a
            weight that a step of size 1 takes off. Defaults to `0.001`.
        noise_stddev: Float, not negative, or a schedule of Keras, the standard
            deviation of the noise that is added to the gradient. Defaults to
            `0.001`.
        noise_refresh_steps: Integer, the number of updates that noise is drawn
            ahead for. Defaults to `10000`.
        seed: Integer, of the noise. Drawn at random by default.
        exclude: Strings. Weights are left to the inner optimizer whose path,
            such as `"sequential/output/kernel"`, has one of them in it.
            Defaults to `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.UPGD(
        keras.optimizers.SGD(0.01),
        utility_decay=0.9999,
        decay=0.01,
        noise_stddev=0.1,
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Elsayed and Mahmood, 2024](https://arxiv.org/abs/2404.00781)
    """

    needs_gradients = True

    scope = Setting(_check_scope)
    protecting = Setting(check_boolean)
    utility_decay = DecayRate()
    decay = Hyperparameter(check_not_negative, schedules=True)
    noise_stddev = NoiseMagnitude(check_not_negative, schedules=True)
    noise_refresh_steps = Setting(check_positive_integer)
    seed = Setting(check_seed)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        scope: str = "global",
        protecting: bool = True,
        utility_decay: float = 0.999,
        decay: float | Schedule = 0.001,
        noise_stddev: float | Schedule = 0.001,
        noise_refresh_steps: int = 10_000,
        seed: int | None = None,
        exclude: tuple[str, ...] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, exclude=exclude, name=name, **kwargs)
        self.scope = scope
        self.protecting = protecting
        self.utility_decay = utility_decay
        self.decay = decay
        self.noise_stddev = noise_stddev
        self.noise_refresh_steps = noise_refresh_steps
        self.seed = seed
        self._seed_generator = self.add_seed_generator(seed)
        # By the ids of weights.
        self._utilities = {}
        self._noise = None

    def add_state(self, weights):
        for weight in weights:
            self._utilities[id(weight)] = self.add_variable_from_reference(
                weight, name="utility"
            )
        self._add_noise(weights)

    def _add_noise(self, weights):
        self._noise = NoiseTable(
            self,
            self.noise_refresh_steps,
            weights if self.noise_stddev != 0 else (),
            keras.initializers.RandomNormal(0.0, 1.0, self._seed_generator),
        )

    def before_update(self, weights):
        # Of the step to come, where it follows a schedule.
        rate = ops.cast(self.learning_rate, "float32")
        return rate, [ops.copy(ops.convert_to_tensor(w)) for w in weights]

    def after_update(self, weights, gradients, before):
        rate, values = before
        log_decay, complement = ops.unstack(self.now("utility_decay"), 2)
        number = ops.cast(self.iterations, "float32")
        step = step_size_by_log(number, log_decay, complement)
        protections = self._find_protections(
            weights, values, gradients, step, complement / step
        )
        self._change_weights(rate, weights, values, protections)

    def _find_protections(self, weights, values, gradients, step, correction):
        """Takes in the utilities of an update.

        Args:
            weights: List of variables.
            values: List of tensors, what they were before the update.
            gradients: List of tensors.
            step: Scalar tensor, the step size of running means.
            correction: Scalar tensor, by which a corrected running mean is
                larger than one without correction.

        Returns:
            List of tensors from 0 to 1 that broadcast to the weights; `None`
            for a weight that is not gated.
        """
        utilities = [
            self._update_utility(
                self._utilities[id(weight)],
                functional.first_order_utility(value, gradient),
                step,
            )
            for weight, value, gradient in zip(weights, values, gradients)
        ]
        return self._protect(utilities, correction)

    def _update_utility(self, variable, utility, step):
        utility = functional.running_mean(
            variable.value, utility, ops.cast(step, variable.dtype)
        )
        variable.assign(utility)
        return utility

    def _change_weights(self, rate, weights, values, protections):
        decay = rate * self.now("decay")
        scale = rate * self.now("noise_stddev") * self._noise.begin_update()
        for weight, old, protection in zip(weights, values, protections):
            value = ops.convert_to_tensor(weight)
            if protection is not None:
                protection = ops.cast(protection, weight.dtype)
                if self.protecting:
                    value = value - protection * (value - old)
            value = value - ops.cast(decay, weight.dtype) * old
            if weight in self._noise:
                noise = ops.cast(scale * self._draw_noise(weight), weight.dtype)
                value = value - (1.0 - protection) * noise
            if weight.constraint is not None:
                # The optimizer's own came before the noise.
                value = weight.constraint(value)
            weight.assign(value)
        self._noise.end_update()

    def _protect(self, utilities, correction):
        """How far each of the utilities protects: tensors from 0 to 1."""
        if self.scope == "local":
            return [functional.local_protection(each) for each in utilities]
        largest = ops.max(
            ops.stack([ops.cast(ops.max(u), "float32") for u in utilities])
        )
        return [
            functional.global_protection(each, correction * largest)
            for each in utilities
        ]

    def _draw_noise(self, weight):
        """Standard normal numbers for a weight, once in each update."""
        return self._noise.numbers(weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("scope", "protecting", "utility_decay", "decay"),
            **self.settings("noise_stddev", "noise_refresh_steps", "seed"),
        }
