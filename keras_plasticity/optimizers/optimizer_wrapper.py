"""Base class of optimizers that wrap another optimizer."""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import weights
from keras_plasticity.optimizers.deferred_build import DeferredBuild
from keras_plasticity.optimizers.inner_attributes import InnerAttributes
from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.inner_optimizers import loss_scaler
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.settings import all_hyperparameters
from keras_plasticity.seeds import derived_seed
from keras_plasticity.types import Tensor
from keras_plasticity.validation import check_seed
from keras_plasticity.validation import check_string
from keras_plasticity.validation import check_type
from keras_plasticity.validation import error


@keras.saving.register_keras_serializable(package="keras_plasticity")
class OptimizerWrapper(InnerAttributes, keras.optimizers.Optimizer):
    """Base class of optimizers that add something to another optimizer's step.

    It is the base class for regularizers, projections and noise: methods that
    change the gradients before the inner optimizer's step, or the weights
    after it. (Methods that replace units derive from
    `keras_plasticity.optimizers.UnitResetOptimizer`.)

    Whatever a Keras optimizer offers (learning rate, clipping, weight decay,
    gradient accumulation, moving averages, loss scaling) is set on the inner
    optimizer, and works. A subclass overrides `make_step`, which calls
    `apply_inner`; `build`, if it has variables; and `get_config`.

    All of this can be read, set and called on the wrapper as well. It reaches
    the innermost optimizer, whatever is between, be it other wrappers or a
    `LossScaleOptimizer`:

    - `learning_rate` and `iterations`;
    - `weight_decay`, `clipnorm`, `global_clipnorm`, `clipvalue`, `use_ema`,
        `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor` and
        `gradient_accumulation_steps`;
    - `exclude_from_weight_decay`, `scale_loss` and
        `finalize_variable_values`;
    - `optimizers` of a `MultiOptimizer`.

    `variables`, `set_weights` and what is saved are of all these optimizers
    together. Arguments that only some optimizers have, such as `momentum`, are
    set on the inner optimizer; to set them on the wrapper is an error.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        name: String, the optimizer's name.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class PullBack(keras_plasticity.optimizers.OptimizerWrapper):
        # Pulls all weights towards their initial values.

        def __init__(self, inner_optimizer, strength=1e-3, **kwargs):
            super().__init__(inner_optimizer, **kwargs)
            self.strength = strength

        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            self._initial = {
                v.path: self.add_copy(v, "initial")
                for v in variables
                if not self.is_statistic(v)
            }

        def make_step(self, grads, variables):
            # As large as the gradients are, where the loss is scaled.
            strength = self.scale_loss(self.strength)
            grads = [
                g
                if g is None or self.is_statistic(v)
                else g
                + ops.cast(strength, v.dtype)
                * (v.value - self._initial[v.path].value)
                for g, v in zip(grads, variables)
            ]
            self.apply_inner(grads, variables)

        def get_config(self):
            return {**super().get_config(), "strength": self.strength}
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        name: str | None = None,
        **kwargs: Any,
    ):
        if kwargs:
            names = ", ".join(f"`{key}`" for key in kwargs)
            raise ValueError(
                f"`{type(self).__name__}` does not take {names}. Set arguments "
                "of an optimizer on the `inner_optimizer` instead. Received: "
                + ", ".join(f"{key}={value}" for key, value in kwargs.items())
            )
        check_type(
            "inner_optimizer",
            inner_optimizer,
            keras.optimizers.Optimizer,
            "a `keras.optimizers.Optimizer`",
        )
        if name is not None:
            name = check_string("name", name)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self._hides_inner = False
        # The ids of the variables of `add_copy`.
        self.copy_ids = set()
        # The ids of the statistics that are kept from the inner optimizer.
        self._stored = set()
        # Those of `add_seed_generator`, and the states of the generators.
        self._seeds = []
        self._seed_states = []
        self._deferred_build = DeferredBuild(self)
        # As Keras wraps the `build` of layers: this hides the method.
        self.build = self._deferred_build.around(self.build)

    def build(self, variables: list[keras.Variable]):
        """Creates the variables of this optimizer and of the inner one.

        Args:
            variables: List of the trainable variables of one model.
        """
        if self.built:
            return
        self.build_inner(variables)
        self._hides_inner = True
        super().build(variables)
        self._hides_inner = False
        for setting in all_hyperparameters(type(self)).values():
            setting.build(self)

    def _prepare_build(self, variables: list[keras.Variable]):
        """Finds out all that `build` needs to know. Creates nothing.

        Args:
            variables: List of the trainable variables of one model.

        Raises:
            ValueError: If the optimizer cannot be built, or not yet.
        """

    def build_inner(self, variables: list[keras.Variable]):
        """Creates the inner optimizer's variables.

        Args:
            variables: List of the trainable variables of one model.
        """
        if self._is_to_store():
            self._stored = {id(v) for v in variables if weights.is_statistic(v)}
        self.inner_optimizer.build(
            [v for v in variables if id(v) not in self._stored]
        )

    def _is_to_store(self):
        """Whether the wrapper stores statistics itself.

        An optimizer of Keras that keeps moving averages has none of those
        variables that take their values from the backward pass, and what reads
        the averages (the overwriting of weights on JAX, `SwapEMAWeights`) asks
        for one of each variable that it was built with.
        """
        return getattr(innermost(self), "use_ema", False) and not any(
            isinstance(each, OptimizerWrapper)
            for each in wrapped(self.inner_optimizer)
        )

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(
            [v for v in var_list if id(v) not in self._stored]
        )

    @property
    def variables(self) -> list[keras.Variable]:
        return super().variables + self.inner_optimizer.variables

    def add_seed_generator(
        self, seed: int | None
    ) -> keras.random.SeedGenerator:
        """Adds a generator of the seeds of all that the optimizer draws.

        What it draws has nothing in common with what other optimizers draw,
        be they of the same seed (one may wrap the other) or of seeds in a row,
        nor with initial weights of that seed. To be called in the constructor.

        Args:
            seed: Integer, or `None` for a random seed.

        Returns:
            `keras.random.SeedGenerator`. Its state is among the `variables`,
            or a JAX step would draw the same numbers for ever.
        """
        seed = check_seed("seed", seed)
        kind = type(self)
        number = sum(
            each._seeds.count(seed)
            for each in wrapped(self)
            if type(each) is kind
        )
        generator = keras.random.SeedGenerator(
            derived_seed(seed, kind.__name__, number)
        )
        self._seeds.append(seed)
        # Keras takes the variables that a list holds for the optimizer's own.
        self._seed_states.append(generator.state)
        return generator

    def now(self, name: str) -> Tensor:
        """The value of one of the optimizer's own settings in a step.

        Args:
            name: String, a setting that may be changed at any time.

        Returns:
            Scalar tensor.
        """
        known = all_hyperparameters(type(self))
        if not isinstance(name, str) or name not in known:
            raise error(
                "name", f"one of the hyper-parameters {list(known)}", name
            )
        return known[name].now(self)

    def hyperparameter_variables(self) -> list[keras.Variable]:
        """The variables from which the built optimizer reads its settings.

        Each is there once. Of a schedule it is the count of updates, which is
        the inner optimizer's.
        """
        found = [
            variable
            for setting in all_hyperparameters(type(self)).values()
            for variable in setting.read_variables(self)
        ]
        return list({id(variable): variable for variable in found}.values())

    def set_weights(self, weights: Sequence[Any]):
        """Sets the values of all variables, the inner optimizer's included.

        Where the optimizer is not built yet, it takes them once it is.

        Args:
            weights: List of arrays, one for each of `optimizer.variables`.

        Raises:
            ValueError: If they do not fit to the variables.
        """
        weights = [np.array(weight) for weight in weights]
        variables = self.variables
        expected = [tuple(variable.shape) for variable in variables]
        received = [weight.shape for weight in weights]
        if expected == received:
            self._deferred_build.keep(None)
            with backend.compute_now():  # TensorFlow may be tracing a step.
                for variable, weight in zip(variables, weights):
                    variable.assign(weight)
        elif not self.built:
            self._deferred_build.keep(weights)
        else:
            raise ValueError(
                "`weights` must be one array for each of the "
                f"{len(variables)} variables of this `{type(self).__name__}`, "
                f"of the same shapes. Expected: shapes {expected}. Received: "
                f"shapes {received}"
            )

    def save_own_variables(self, store):
        weights = self._deferred_build.weights
        if weights is None:
            super().save_own_variables(store)
            return
        for i, weight in enumerate(weights):
            store[str(i)] = weight

    def load_own_variables(self, store):
        number = len(store.keys())
        if self.built or number == 0:
            super().load_own_variables(store)
        else:
            self.set_weights([store[str(i)] for i in range(number)])

    def __dir__(self):
        # Keras also saves and loads what is inside the attributes named here:
        # those optimizers' variables are among this one's already.
        inside = ("inner_optimizer", "optimizers")
        return [name for name in super().__dir__() if name not in inside]

    def add_copy(
        self, reference_variable: keras.Variable, name: str = "copy"
    ) -> keras.Variable:
        """Adds a variable that starts as a copy of a model variable.

        Where a unit is replaced, the copy's entries start again as copies of
        the new weights. (Variables of `add_variable_from_reference` return to
        their initializer's values.) To be called in `build`.

        Args:
            reference_variable: `keras.Variable` of the model.
            name: String, the end of the new variable's name.

        Returns:
            `keras.Variable` of the same shape and dtype.
        """
        check_type(
            "reference_variable",
            reference_variable,
            keras.Variable,
            "a `keras.Variable`",
        )
        name = check_string("name", name)

        def initial_value(shape, dtype=None):
            # Not the same array: on JAX, `fit` gives the arrays of both away.
            return ops.copy(ops.convert_to_tensor(reference_variable, dtype))

        # Not assigned later: what TensorFlow does while it traces a step, it
        # does not do at once.
        copy = self.add_variable_from_reference(
            reference_variable, name=name, initializer=initial_value
        )
        self.copy_ids.add(id(copy))
        return copy

    @staticmethod
    def is_statistic(variable: keras.Variable) -> bool:
        """Whether a trainable variable is no weight.

        The statistics of plastic layers are among the trainable variables of
        a model, but the "gradient" of such a variable is its new value. They
        are handed on to the inner optimizer as they are.

        Args:
            variable: `keras.Variable` of the model.

        Returns:
            Boolean.
        """
        return weights.is_statistic(variable)

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ):
        """Makes one step of the inner optimizer, and what the wrapper adds.

        Args:
            grads: List of gradients, one for each variable.
            trainable_variables: List of the model's trainable variables.
                Defaults to those that the optimizer was built with.

        Raises:
            ValueError: If a variable belongs to another model.
        """
        if len(grads) == 0:
            return
        if trainable_variables is None:
            self._deferred_build.build_again()
            self._deferred_build.check()
            if not self.built:
                raise ValueError(
                    "When passing `grads` without `trainable_variables`, the "
                    "optimizer must already be built. Call "
                    "`optimizer.build(model.trainable_variables)` first."
                )
            trainable_variables = keras_compat.built_variables(self)
        trainable_variables = list(trainable_variables)
        if not self.built:
            self._deferred_build.build(trainable_variables)
        if len(grads) != len(trainable_variables):
            raise ValueError(
                "There must be one gradient for each variable. Received: "
                f"{len(grads)} gradients, {len(trainable_variables)} variables."
            )
        if not keras_compat.is_built_with(self, trainable_variables):
            raise ValueError(
                f"This `{type(self).__name__}` was built on another model. "
                "Use a new optimizer for each model."
            )
        self.make_step(list(grads), trainable_variables)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        if len(trainable_variables) == 0:
            return trainable_variables, optimizer_variables
        self._deferred_build.check()
        return super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )

    def make_step(self, grads: list[Tensor], variables: list[keras.Variable]):
        """Makes one step of the built optimizer.

        Args:
            grads: List of gradients, one for each variable.
            variables: List of variables.
        """
        raise NotImplementedError

    def apply_inner(
        self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]
    ):
        """Makes the inner optimizer's step.

        Args:
            grads: List of gradients.
            variables: List of variables.
        """
        inner = self.inner_optimizer
        if self._stored:
            grads, variables = self._store(grads, variables)
        if keras.backend.backend() != "jax" or loss_scaler(inner) is None:
            inner.apply(grads, variables)
            return
        # Loss scaling assigns variables within a condition, which JAX can only
        # trace in the stateless form.
        variables, inner_variables = list(variables), inner.variables
        new_values, new_inner_values = inner.stateless_apply(
            [ops.convert_to_tensor(v) for v in inner_variables],
            grads,
            [ops.convert_to_tensor(v) for v in variables],
        )
        for variable, value in zip(variables, new_values):
            variable.assign(value)
        for variable, value in zip(inner_variables, new_inner_values):
            variable.assign(value)

    def _store(self, grads, variables):
        """Stores statistics; returns the other gradients and variables."""
        scaler = loss_scaler(self.inner_optimizer)
        finite = None if scaler is None else scaler.check_finite(grads)
        rest = []
        for gradient, variable in zip(grads, variables):
            if id(variable) not in self._stored:
                rest.append((gradient, variable))
            elif gradient is not None:
                if finite is not None:
                    gradient = ops.where(finite, gradient, variable.value)
                variable.assign(gradient)
        return [g for g, _ in rest], [v for _, v in rest]

    @property
    def always_updates(self) -> bool:
        """Whether every step of the inner optimizer updates the weights.

        It does not where gradients are accumulated, or where loss scaling may
        skip a step.
        """
        return (
            innermost(self.inner_optimizer).gradient_accumulation_steps is None
            and loss_scaler(self.inner_optimizer) is None
        )

    def apply_inner_and_tell(
        self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]
    ) -> Tensor:
        """Makes the inner optimizer's step, and tells whether it was an update.

        The inner optimizer's public count of updates, and nothing else, tells.

        Args:
            grads: List of gradients.
            variables: List of variables.

        Returns:
            Boolean scalar tensor.
        """
        steps = ops.copy(ops.convert_to_tensor(self.iterations))
        self.apply_inner(grads, variables)
        return ops.not_equal(self.iterations, steps)

    def apply_gradients(self, grads_and_vars):
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def update_step(self, gradient, variable, learning_rate):
        raise NotImplementedError(
            f"A `{type(self).__name__}` does not update variables one by one. "
            "Call `apply` with the gradients of all of them."
        )

    def get_config(self) -> dict[str, Any]:
        # Not that of the base class: its settings are the inner one's.
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "name": self.name,
        }

    def settings(self, *names: str) -> dict[str, Any]:
        """Arguments of the constructor, for the config of a subclass.

        Args:
            *names: Strings, names of arguments that are attributes of the
                same name.

        Returns:
            Dict from name to value, serialized.
        """
        return {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in names
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Deeply: Keras' LossScaleOptimizer empties the config it is given.
        config = copy.deepcopy(config)
        for key, value in config.items():
            if isinstance(value, dict):
                config[key] = keras.saving.deserialize_keras_object(
                    value, custom_objects=custom_objects
                )
        return cls(**config)
