"""Optimizer wrappers that shrink weights and add noise to them."""

from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.l2 import add_l2_gradients
from keras_plasticity.optimizers.layer_weights import is_bias
from keras_plasticity.optimizers.layer_weights import kernel_of
from keras_plasticity.optimizers.new_weights import independent_initializer
from keras_plasticity.optimizers.noise import NoiseMagnitude
from keras_plasticity.optimizers.noise import NoiseTable
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.periods import ends_period
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_deserialized
from keras_plasticity.validation import check_in_interval
from keras_plasticity.validation import check_not_negative
from keras_plasticity.validation import check_positive_integer
from keras_plasticity.validation import check_seed
from keras_plasticity.weights import is_statistic


def _check_shrink(name, value):
    return check_in_interval(name, value, "[0, 1]")


class _PerturbingOptimizer(OptimizerWrapper):
    """Base class: after each update, `w <- shrink * w + perturb * noise`.

    How the noise is drawn: see `NoiseTable`.

    Args:
        inner_optimizer: The optimizer to wrap.
        noise_refresh_steps: Integer. With 1 there is no table.
        seed: Integer.
        name: String.
    """

    # What weights and what noise are multiplied by: the names of
    # hyper-parameters. `None` for weights that do not shrink.
    _shrink = None
    _perturb = None

    noise_refresh_steps = Setting(check_positive_integer)
    seed = Setting(check_seed)

    def __init__(
        self,
        inner_optimizer,
        noise_refresh_steps,
        seed,
        name,
        **kwargs,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.noise_refresh_steps = noise_refresh_steps
        self.seed = seed
        self._seed_generator = self.add_seed_generator(seed)
        # By the id of a variable that has noise.
        self._magnitudes = {}
        self._noise = None

    def build(self, variables: list[keras.Variable]):
        """Creates the variables of this optimizer and of the inner one.

        Args:
            variables: List of the trainable variables of one model.
        """
        if self.built:
            return
        super().build(variables)
        draw = None
        noisy = []
        # Without noise there is no table, either.
        has_noise = getattr(self, self._perturb) != 0
        weights = [v for v in variables if not is_statistic(v)]
        for variable in weights if has_noise else ():
            shape = self.noise_shape(variable, weights)
            initializer = self.noise_initializer(shape)
            if initializer is None:
                continue
            self._magnitudes[id(variable)] = _magnitude(initializer)
            draw = _of_magnitude_one(initializer, self._seed_generator)
            noisy.append(variable)
        self._noise = NoiseTable(self, self.noise_refresh_steps, noisy, draw)

    def noise_shape(self, variable, weights):
        """The shape that decides on a variable's noise.

        Args:
            variable: `keras.Variable`, a weight.
            weights: List of all weights of the model.
        """
        return tuple(variable.shape)

    def noise_initializer(self, shape):
        """The initializer that draws the noise of variables of a shape.

        It draws any number of independent numbers, from a distribution that
        is symmetric about zero, and the same for all shapes but for its
        magnitude. `None` for no noise.
        """
        raise NotImplementedError

    def change_gradients(self, grads, variables):
        """What the inner optimizer is given instead of `grads`."""
        return grads

    def make_step(self, grads, variables):
        grads = self.change_gradients(grads, variables)
        if self._shrink is None and not self._magnitudes:
            self.apply_inner(grads, variables)
            return
        weights = [
            variable
            for gradient, variable in zip(grads, variables)
            if gradient is not None and not is_statistic(variable)
        ]
        is_update = True
        if self.always_updates:
            self.apply_inner(grads, variables)
        else:
            is_update = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            # Not within: a schedule reads what the inner optimizer counts.
            factors = self._factors()
            is_due = self._is_due(is_update)
            if is_due is True:
                self._change_weights(weights, *factors)
                return
            backend.run_if(
                is_due,
                lambda: self._change_weights(weights, *factors),
                weights + self._noise_variables(),
            )

    def _is_due(self, is_update):
        """Whether weights change now: `True`, or a boolean tensor."""
        return is_update

    def _factors(self):
        """What weights and noise are multiplied by; `None` for no shrinking."""
        shrink = None if self._shrink is None else self.now(self._shrink)
        return shrink, self.now(self._perturb)

    def _noise_variables(self):
        return [*self.hyperparameter_variables(), *self._noise.variables]

    def _change_weights(self, weights, shrink, scale):
        scale = scale * self._noise.begin_update()
        for weight in weights:
            value = weight.value
            if shrink is not None:
                value = ops.cast(shrink, weight.dtype) * value
            if weight in self._noise:
                magnitude = self._magnitudes[id(weight)]
                numbers = self._noise.numbers(weight)
                value = value + ops.cast(
                    (scale * magnitude) * numbers, weight.dtype
                )
            if weight.constraint is not None:
                # The optimizer's own came before the noise.
                value = weight.constraint(value)
            weight.assign(value)
        self._noise.end_update()

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("noise_refresh_steps", "seed"),
        }


def _magnitude(initializer):
    """The limit of a uniform distribution, the deviation of a normal one."""
    if isinstance(initializer, keras.initializers.RandomUniform):
        return initializer.maxval
    return initializer.stddev


def _of_magnitude_one(initializer, seed):
    if isinstance(initializer, keras.initializers.RandomUniform):
        return keras.initializers.RandomUniform(-1.0, 1.0, seed=seed)
    return type(initializer)(mean=0.0, stddev=1.0, seed=seed)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ShrinkAndPerturb(_PerturbingOptimizer):
    """Optimizer wrapper that decays weights and adds noise to them.

    After each update by the inner optimizer, on the loss with an L2 penalty,

    `w <- w + noise_stddev * e`, with `e` from a standard normal distribution,

    for each trainable weight, biases included. This is "shrink and perturb" as
    in the papers on loss of plasticity, where the penalty is what shrinks: see
    `keras_plasticity.optimizers.L2`. It was proposed as one step at the
    beginning of each task, which is
    `keras_plasticity.callbacks.ShrinkAndPerturbTasks`.

    An update is one step that the inner optimizer makes: with gradient
    accumulation, there is noise once per accumulated step, and none after a
    step that loss scaling skips. Variables whose gradient is `None` are left
    alone, as are those that are no weights: statistics marked
    `overwrite_with_gradient`.

    To be fast, noise is drawn ahead for `noise_refresh_steps` updates, as a
    table of which each update reads another window, with a random sign. The
    table has a number for each weight, and one more for each further update,
    in half precision. The noise is exact in that

    - each number is drawn from the normal distribution, and rounded to 11
        binary digits;
    - in one update, the noise of all weights is independent;
    - from update to update, so is the noise of one weight.

    It is not exact in that the noise of two different weights in two different
    updates is uncorrelated but may not be independent: a weight's noise has the
    magnitude that its neighbour's had an update before. With
    `noise_refresh_steps=1` noise is drawn at each update, without a table: all
    of it is independent, and a step takes many times as long.

    Noise is added in the dtype of the weights. In bfloat16, which has 8
    binary digits, most noise far smaller than the weights is lost in rounding.

    It may be the inner optimizer of a `ContinualBackprop`, or wrap one. Inside,
    the outgoing weights of a new unit are zero until the next update; outside,
    as in the papers, they get noise at once.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        l2: Float, not negative, or a schedule of Keras, the strength of the
            penalty. With SGD, weights shrink by `learning_rate * l2` in each
            update. Defaults to `1e-4`.
        noise_stddev: Float, not negative, or a schedule of Keras, the standard
            deviation of the noise of one update. Defaults to `1e-5`.
        noise_refresh_steps: Integer, the number of updates that noise is drawn
            ahead for. Defaults to `10000`.
        seed: Integer, of the noise. Drawn at random by default.
        name: String, the optimizer's name.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ShrinkAndPerturb(
        keras.optimizers.SGD(0.003), l2=1e-4, noise_stddev=1e-5
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    - [Ash and Adams, 2020](https://arxiv.org/abs/1910.08475), between tasks
    """

    l2 = Hyperparameter(check_not_negative, schedules=True)
    noise_stddev = NoiseMagnitude(check_not_negative, schedules=True)
    _perturb = "noise_stddev"

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        l2: float | Schedule = 1e-4,
        noise_stddev: float | Schedule = 1e-5,
        noise_refresh_steps: int = 10_000,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer,
            noise_refresh_steps=noise_refresh_steps,
            seed=seed,
            name=name,
            **kwargs,
        )
        self.l2 = l2
        self.noise_stddev = noise_stddev

    def noise_initializer(self, shape):
        return keras.initializers.RandomNormal(stddev=1.0)

    def change_gradients(self, grads, variables):
        l2 = self.now("l2")
        return add_l2_gradients(grads, variables, l2, self.inner_optimizer)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings("l2", "noise_stddev"),
        }


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ShrinkAndPerturbByInitializer(_PerturbingOptimizer):
    """Optimizer wrapper that moves weights towards a new initialization.

    After each update by the inner optimizer,

    `w <- shrink * w + perturb * e`,

    for each trainable weight, with `e` drawn from the distribution that
    `initializer` has for a variable of that shape. Variables of fewer than two
    axes, such as biases and the scales of normalization layers, have no `e`:
    they shrink only. With `perturb_biases`, the bias of a layer with a kernel
    has an `e` from the distribution of that kernel. So it is in the code of
    Kumar et al., where a new network of PyTorch is drawn at each update: for
    that, take `keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")`.

    In `keras_plasticity.optimizers.ShrinkAndPerturb`, it is an L2 penalty that
    shrinks, in proportion to the learning rate, and all noise has the same
    standard deviation. Between tasks, rather than at each update, shrinks and
    perturbs `keras_plasticity.callbacks.ShrinkAndPerturbTasks`.

    With a `period` above 1, it is only every `period`-th update that weights
    change after. (In the code of the authors of `CPR` it is the update after
    that, with 0.999 and 0.005 every 1,000 updates, and biases stay as they
    are.)

    What an update is, how noise is drawn ahead and in what that is exact,
    which variables are left alone, and how to combine it with
    `ContinualBackprop`: all that is as in `ShrinkAndPerturb`.

    Choose `shrink` for the number of updates that a task has. It acts in every
    update, at any learning rate: what gradients do not maintain is halved in
    69,000 updates by the default of 0.99999, in 700 by 0.999. Kumar et al.
    found 0.999 and 0.01 best for Adam in tasks of 625 updates. In tasks of
    60,000 updates by SGD with a learning rate of 0.003, a network of three
    layers of 100 units stays at chance with these values, and learns with the
    defaults.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        shrink: Float in [0, 1], or a schedule of Keras, what weights are
            multiplied by in each update. Defaults to `0.99999`.
        perturb: Float, not negative, or a schedule of Keras, what the noise is
            multiplied by. Defaults to `0.001`.
        initializer: Keras initializer or its name. It must draw independent
            numbers from a distribution that is symmetric about zero. Its own
            seed is not used. Defaults to `"glorot_uniform"`.
        noise_refresh_steps: Integer, the number of updates that noise is drawn
            ahead for, of those that it is added in. Defaults to `10000`.
        seed: Integer, of the noise. Drawn at random by default.
        name: String, the optimizer's name.
        perturb_biases: Boolean, whether biases have noise. Defaults to `False`.
        period: Positive integer, the number of updates from one that weights
            change after to the next. Defaults to `1`.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ShrinkAndPerturbByInitializer(
        keras.optimizers.Adam(1e-3),
        shrink=0.9999,
        perturb=0.01,
        initializer="he_uniform",
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Kumar, Marklund and Van Roy, 2023](https://arxiv.org/abs/2308.11958)
    - [Ash and Adams, 2020](https://arxiv.org/abs/1910.08475), between tasks
    """

    shrink = Hyperparameter(_check_shrink, schedules=True)
    perturb = NoiseMagnitude(check_not_negative, schedules=True)
    initializer = Setting()
    perturb_biases = Setting(check_boolean)
    period = Setting(check_positive_integer)
    _shrink = "shrink"
    _perturb = "perturb"

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        shrink: float | Schedule = 0.99999,
        perturb: float | Schedule = 0.001,
        initializer: str | keras.initializers.Initializer = "glorot_uniform",
        noise_refresh_steps: int = 10_000,
        seed: int | None = None,
        name: str | None = None,
        perturb_biases: bool = False,
        period: int = 1,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer,
            noise_refresh_steps=noise_refresh_steps,
            seed=seed,
            name=name,
            **kwargs,
        )
        self.shrink = shrink
        self.perturb = perturb
        self.perturb_biases = perturb_biases
        self.period = period
        self.initializer = check_deserialized(
            "initializer",
            initializer,
            keras.initializers.get,
            "a Keras initializer or the name of one",
        )
        if not _is_symmetric(independent_initializer(self.initializer, (1, 1))):
            raise ValueError(
                "`initializer` must draw independent numbers from a "
                "distribution that is symmetric about zero, such as "
                "'glorot_uniform' or 'he_normal'. "
                f"Received: initializer={initializer}"
            )

    def _is_due(self, is_update):
        if self.period == 1:
            return is_update
        number = ops.cast(self.iterations, "int32")
        return ops.logical_and(is_update, ends_period(number, self.period))

    def noise_shape(self, variable, weights):
        if self.perturb_biases and is_bias(variable):
            kernel = kernel_of(variable, weights)
            if kernel is not None:
                return tuple(kernel.shape)
        return super().noise_shape(variable, weights)

    def noise_initializer(self, shape):
        if len(shape) < 2:
            return None
        return independent_initializer(self.initializer, shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.settings(
                "shrink", "perturb", "initializer", "perturb_biases", "period"
            ),
        }


def _is_symmetric(initializer):
    """Whether a shape-free initializer draws from `-x` as often as from `x`."""
    if isinstance(initializer, keras.initializers.RandomUniform):
        return initializer.minval == -initializer.maxval
    normal = (
        keras.initializers.RandomNormal,
        keras.initializers.TruncatedNormal,
    )
    return isinstance(initializer, normal) and initializer.mean == 0
