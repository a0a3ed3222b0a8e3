"""Optimizer wrappers that shrink weights and add noise to them."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.l2 import add_l2_gradients
from keras_plasticity.optimizers.new_weights import independent_initializer
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.optimizer_wrapper import check_not_negative
from keras_plasticity.optimizers.optimizer_wrapper import is_number
from keras_plasticity.optimizers.optimizer_wrapper import is_overwritten
from keras_plasticity.types import Tensor


class _PerturbingOptimizer(OptimizerWrapper):
    """Base class: after each update, `w <- shrink * w + perturb * noise`.

    To draw a normal number takes far longer than to update a weight. So
    numbers for `noise_refresh_steps` updates are drawn at once: a table for
    each variable, a little longer than the variable. An update reads a window
    of it, which is one place further on at each update, times a random sign,
    the same for all variables. Hence

    - in one update, the noise of all weights is independent;
    - from update to update, so is the noise of one weight, which never meets
        the same number twice;
    - but the noise of a weight has the magnitude that its neighbour in memory
        had an update before. The signs make the two uncorrelated all the
        same. Without them, neighbours would drift together.

    Args:
        inner_optimizer: The optimizer to wrap.
        shrink: Float, what weights are multiplied by.
        perturb: Float, what noise is multiplied by.
        noise_refresh_steps: Integer.
        seed: Integer.
        name: String.
    """

    def __init__(
        self,
        inner_optimizer,
        shrink,
        perturb,
        noise_refresh_steps,
        seed,
        name,
        **kwargs,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        if not isinstance(noise_refresh_steps, int) or noise_refresh_steps < 1:
            raise ValueError(
                "`noise_refresh_steps` must be a positive integer. "
                f"Received: noise_refresh_steps={noise_refresh_steps}"
            )
        self.noise_refresh_steps = noise_refresh_steps
        self.seed = seed
        self._shrink = shrink
        self._perturb = perturb
        self._seed_generator = keras.random.SeedGenerator(seed)
        self._noise = {}

    def build(self, variables: list[keras.Variable]):
        """Creates the variables of this optimizer and of the inner one.

        Args:
            variables: List of the trainable variables of one model.
        """
        if self.built:
            return
        super().build(variables)
        if self._perturb == 0:
            return
        steps = self.noise_refresh_steps
        if steps > 1:
            self._position = self.add_variable(
                (1,), dtype="int32", name="position"
            )
            self._signs = self.add_variable((steps,), name="signs")
            self._scale = self.add_variable((), name="scale")
        for variable in variables:
            draw = None
            if not is_overwritten(variable):
                draw = self.noise_initializer(tuple(variable.shape))
            if draw is None:
                continue
            table = None
            if steps > 1:
                table = self.add_variable(
                    (math.prod(variable.shape) + steps - 1,),
                    name=variable.path.replace("/", "_") + "_noise",
                )
            self._noise[id(variable)] = _Noise(draw, table)

    def noise_initializer(self, shape):
        """The initializer that draws the noise of variables of a shape.

        It draws any number of independent numbers, from a distribution that
        is symmetric about zero. `None` for no noise.
        """
        raise NotImplementedError

    def change_gradients(self, grads, variables):
        """What the inner optimizer is given instead of `grads`."""
        return grads

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ):
        """Makes one step of the inner optimizer, then shrinks and perturbs.

        Args:
            grads: List of gradients, one for each variable.
            trainable_variables: List of the model's trainable variables.
                Defaults to those that the optimizer was built with.
        """
        if len(grads) == 0:
            return
        variables = self.prepare_to_apply(grads, trainable_variables)
        grads = self.change_gradients(grads, variables)
        if self._shrink == 1 and self._perturb == 0:
            self.apply_inner(grads, variables)
            return
        weights = [v for v in variables if not is_overwritten(v)]
        if self.always_updates:
            self.apply_inner(grads, variables)
            with backend.no_gradient():
                self._change_weights(weights)
            return
        is_update = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            backend.repeat(
                ops.cast(is_update, "int32"),
                lambda: self._change_weights(weights),
                weights + self._noise_variables(),
            )

    def _noise_variables(self):
        result = [self._seed_generator.state]
        if self._perturb != 0 and self.noise_refresh_steps > 1:
            result += [self._position, self._signs, self._scale]
            result += [each.table for each in self._noise.values()]
        return result

    def _change_weights(self, weights):
        position, scale = None, self._perturb
        if self._perturb != 0 and self.noise_refresh_steps > 1:
            position = ops.convert_to_tensor(self._position)
            backend.repeat(
                ops.cast(ops.equal(position[0], 0), "int32"),
                self._refresh,
                self._noise_variables(),
            )
            scale = ops.convert_to_tensor(self._scale)
        for weight in weights:
            value = weight.value
            if self._shrink != 1:
                value = self._shrink * value
            if id(weight) in self._noise:
                noise = self._noise[id(weight)].of_step(weight.shape, position)
                value = value + ops.cast(scale * noise, weight.dtype)
            weight.assign(value)
        if position is not None:
            position = (position + 1) % self.noise_refresh_steps
            self._position.assign(position)
            self._set_scale(position)

    def _set_scale(self, position):
        # Looked up for the next update, not for this one: on a CPU, XLA would
        # look it up once for each weight.
        sign = ops.reshape(ops.slice(self._signs.value, position, (1,)), ())
        self._scale.assign(self._perturb * sign)

    def _refresh(self):
        """Draws the tables and the signs of the next updates."""
        for each in self._noise.values():
            each.refresh()
        self._signs.assign(
            2.0
            * ops.cast(
                keras.random.randint(
                    self._signs.shape, 0, 2, seed=self._seed_generator
                ),
                self._signs.dtype,
            )
            - 1.0
        )
        self._set_scale(self._position.value)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "noise_refresh_steps": self.noise_refresh_steps,
            "seed": self.seed,
        }


class _Noise:
    """The noise of one variable."""

    def __init__(self, draw, table):
        self.draw = draw
        self.table = table

    def refresh(self):
        self.table.assign(self.draw(self.table.shape, self.table.dtype))

    def of_step(self, shape, position):
        if self.table is None:
            return self.draw(shape, "float32")
        table = ops.convert_to_tensor(self.table)
        window = ops.slice(table, position, (math.prod(shape),))
        return ops.reshape(window, shape)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ShrinkAndPerturb(_PerturbingOptimizer):
    """TODO"""

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        l2: float = 1e-4,
        noise_stddev: float = 1e-5,
        noise_refresh_steps: int = 1000,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer,
            shrink=1,
            perturb=noise_stddev,
            noise_refresh_steps=noise_refresh_steps,
            seed=seed,
            name=name,
            **kwargs,
        )
        check_not_negative("l2", l2)
        check_not_negative("noise_stddev", noise_stddev)
        self.l2 = l2
        self.noise_stddev = noise_stddev

    def noise_initializer(self, shape):
        return keras.initializers.RandomNormal(
            stddev=1.0, seed=self._seed_generator
        )

    def change_gradients(self, grads, variables):
        return add_l2_gradients(grads, variables, self.l2, self.inner_optimizer)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "l2": self.l2,
            "noise_stddev": self.noise_stddev,
        }


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ShrinkAndPerturbByInitializer(_PerturbingOptimizer):
    """TODO"""

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        shrink: float = 0.999,
        perturb: float = 0.01,
        initializer: str | keras.initializers.Initializer = "glorot_uniform",
        noise_refresh_steps: int = 1000,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if not is_number(shrink) or not 0 <= shrink <= 1:
            raise ValueError(
                "`shrink` must be a number in [0, 1]. "
                f"Received: shrink={shrink}"
            )
        check_not_negative("perturb", perturb)
        super().__init__(
            inner_optimizer,
            shrink=shrink,
            perturb=perturb,
            noise_refresh_steps=noise_refresh_steps,
            seed=seed,
            name=name,
            **kwargs,
        )
        self.shrink = shrink
        self.perturb = perturb
        self.initializer = keras.initializers.get(initializer)
        if not _is_symmetric(independent_initializer(self.initializer, (1, 1))):
            raise ValueError(
                "`initializer` must draw independent numbers from a "
                "distribution that is symmetric about zero, such as "
                "'glorot_uniform' or 'he_normal'. "
                f"Received: initializer={initializer}"
            )

    def noise_initializer(self, shape):
        if len(shape) < 2:
            return None
        return independent_initializer(
            self.initializer, shape, self._seed_generator
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shrink": self.shrink,
            "perturb": self.perturb,
            "initializer": keras.saving.serialize_keras_object(
                self.initializer
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
