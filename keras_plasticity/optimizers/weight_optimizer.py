"""Base class of optimizers that act on single weights or whole kernels."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import backend
from keras_plasticity.optimizers.inner_optimizers import counts
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.optimizers.update_gradients import UpdateGradients
from keras_plasticity.types import Tensor
from keras_plasticity.validation import check_list
from keras_plasticity.weights import is_statistic


def _check_exclude(name, value):
    rule = "a list of strings, parts of the paths of variables"
    return tuple(check_list(name, value, str, rule))


@keras.saving.register_keras_serializable(package="keras_plasticity")
class WeightOptimizer(OptimizerWrapper):
    """Base class of optimizers that change weights around an inner update.

    A method acts on the weights that `acts_on` accepts, less those that the
    user excludes. It overrides any of

    - `add_state(weights)`: adds variables, when the optimizer is built;
    - `change_gradients(gradients, weights)`: returns the gradients that the
        inner optimizer is given, of these weights, as a penalty on the loss
        would change them;
    - `before_update(weights)`: returns whatever has to be known of the weights
        as they were before the update;
    - `after_update(weights, gradients, before)`: changes the weights, or the
        optimizer's own variables, after an update.

    One update is one step that the inner optimizer makes: with gradient
    accumulation `after_update` is called once per accumulated step, with the
    mean of the gradients of all steps in it; a step that loss scaling skips
    counts for nothing. Gradients in `after_update` are those of the loss,
    without a loss scale.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.

    Attributes:
        needs_gradients: Boolean, whether `after_update` is given gradients.
            Defaults to `False`.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class DecayKernels(keras_plasticity.optimizers.WeightOptimizer):
        # Shrinks kernels, and nothing else, after each update.

        def __init__(self, inner_optimizer, rate=1e-4, **kwargs):
            super().__init__(inner_optimizer, **kwargs)
            self.rate = rate

        def acts_on(self, variable):
            return len(variable.shape) > 1

        def after_update(self, weights, gradients, before):
            for weight in weights:
                weight.assign((1 - self.rate) * weight.value)

        def get_config(self):
            return {**super().get_config(), "rate": self.rate}
    ```
    """

    needs_gradients = False
    exclude = Setting(_check_exclude)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        exclude: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, name=name, **kwargs)
        self.exclude = exclude
        # Ids, for Keras takes variables in attributes for the optimizer's own.
        self._chosen = set()
        self._update_gradients = UpdateGradients()

    def acts_on(self, variable: keras.Variable) -> bool:
        """Whether the method acts on a weight.

        Args:
            variable: `keras.Variable` of the model, a weight.

        Returns:
            Boolean. Defaults to `True`.
        """
        return True

    def choose(self, weights: list[keras.Variable]) -> list[keras.Variable]:
        """The weights that the method acts on, if the user excludes none.

        To be overridden where that depends on the other weights of a layer,
        else `acts_on`.

        Args:
            weights: List of the variables of the model that are weights.

        Returns:
            List of some of them. Defaults to those that `acts_on` accepts.
        """
        return [variable for variable in weights if self.acts_on(variable)]

    def add_state(self, weights: list[keras.Variable]):
        """Adds the method's variables.

        Args:
            weights: List of the variables that it acts on.
        """

    def change_gradients(
        self, gradients: list[Tensor], weights: list[keras.Variable]
    ) -> list[Tensor]:
        """The gradients for the inner optimizer.

        If the inner optimizer scales the loss, these gradients are scaled:
        multiply what is added by `self.inner_optimizer.scale_loss(1.0)`.

        Args:
            gradients: List of tensors.
            weights: List of the variables that they belong to.

        Returns:
            List of tensors. Defaults to `gradients`.
        """
        return gradients

    def before_update(self, weights: list[keras.Variable]) -> Any:
        """What `after_update` needs of the time before.

        Args:
            weights: List of variables.

        Returns:
            A nest of tensors. Defaults to `None`.
        """
        return None

    def after_update(
        self,
        weights: list[keras.Variable],
        gradients: list[Tensor] | None,
        before: Any,
    ):
        """Called after an update of the weights.

        It may read and assign `weights` and the optimizer's own variables, and
        none of the inner optimizer's, such as `iterations`. Schedules depend
        on that: what `now` says of them is known in `before_update`.

        Args:
            weights: List of variables.
            gradients: List of tensors, with which the update was made;
                `None` unless `needs_gradients`.
            before: What `before_update` has returned.
        """

    def build(self, variables: list[keras.Variable]):
        """Creates the variables of this optimizer and of the inner one.

        Args:
            variables: List of the trainable variables of one model.

        Raises:
            ValueError: If there is no weight to act on, or none that a string
                in `exclude` excludes.
        """
        if self.built:
            return
        chosen = self._choose(variables)
        super().build(variables)
        self._chosen = {id(variable) for variable in chosen}
        self.add_state(chosen)
        if self.needs_gradients:
            self._update_gradients.build(self, chosen)

    def _choose(self, variables):
        weights = [v for v in variables if not is_statistic(v)]
        for part in self.exclude:
            if not any(part in variable.path for variable in weights):
                raise ValueError(
                    "Each string in `exclude` must be a part of the path of a "
                    f"weight. Received: exclude={list(self.exclude)}, of which "
                    f"'{part}' is in none of {[v.path for v in weights]}"
                )
        chosen = [
            variable
            for variable in self.choose(weights)
            if not any(part in variable.path for part in self.exclude)
        ]
        if not chosen:
            raise ValueError(
                f"`{type(self).__name__}` has no weight to act on. Received: "
                f"exclude={list(self.exclude)}, and the weights "
                f"{[(v.path, tuple(v.shape)) for v in weights]}"
            )
        return chosen

    def own_variables(self) -> list[keras.Variable]:
        """The variables of this optimizer, without those of the inner one."""
        inner = {id(v) for v in self.inner_optimizer.variables}
        return [v for v in self.variables if id(v) not in inner]

    def make_step(self, grads, variables):
        pairs = [
            (variable, gradient)
            for variable, gradient in zip(variables, grads)
            if gradient is not None and id(variable) in self._chosen
        ]
        weights = [variable for variable, _ in pairs]
        gradients = [gradient for _, gradient in pairs]
        with backend.no_gradient():
            changed = self.change_gradients(gradients, weights)
            new = {id(v): g for v, g in zip(weights, changed)}
            grads = [new.get(id(v), g) for v, g in zip(variables, grads)]
            before = self.before_update(weights)
        if type(self).after_update is WeightOptimizer.after_update:
            self.apply_inner(grads, variables)
            return
        gradients = None
        if self.needs_gradients:
            gradients = self._update_gradients.take_in(
                self.inner_optimizer, weights, changed, grads
            )
        if self.always_updates:
            self.apply_inner(grads, variables)
            with backend.no_gradient():
                self.after_update(weights, gradients, before)
            return
        is_update = self.apply_inner_and_tell(grads, variables)
        with backend.no_gradient():
            backend.run_if(
                is_update,
                lambda: self.after_update(weights, gradients, before),
                [*weights, *self.own_variables(), *counts(self)],
            )
            self._update_gradients.end_step(is_update)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "exclude": list(self.exclude)}
