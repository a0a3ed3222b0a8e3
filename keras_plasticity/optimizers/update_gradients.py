"""The gradients of an update, however many steps it is made of."""

from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.inner_optimizers import loss_scaler


class UpdateGradients:
    """The gradients that the inner optimizer makes its updates with.

    With gradient accumulation an update is made with the mean over several
    steps, which this keeps too; a loss scale is taken out. On several replicas
    they are those of the whole batch.

    An object of its own, and not a dict on the optimizer: Keras takes the
    variables that it finds in attributes for the optimizer's own.
    """

    def __init__(self):
        self._accumulators = {}
        self._steps = None

    def build(self, optimizer, variables):
        """Adds the variables that are needed, if any.

        Args:
            optimizer: The `OptimizerWrapper`, its inner optimizer built.
            variables: List of the variables whose gradients are asked for.
        """
        inner = innermost(optimizer.inner_optimizer)
        self._steps = inner.gradient_accumulation_steps
        if self._steps is None:
            return
        for variable in variables:
            self._accumulators[id(variable)] = (
                optimizer.add_variable_from_reference(
                    variable, name="accumulator"
                )
            )

    def take_in(self, inner_optimizer, variables, gradients, all_gradients):
        """The gradients of the update that a step may complete.

        To be called once in a step, and before the inner optimizer, which may
        then have another scale.

        Args:
            inner_optimizer: The inner optimizer.
            variables: List of variables.
            gradients: List of their gradients in this step, as the inner
                optimizer is given them; `None` for a variable that took no
                part.
            all_gradients: List of all gradients that the inner optimizer is
                given. If one is not finite, loss scaling skips the step.

        Returns:
            List of tensors, or `None` for a variable that took no part.
        """
        known = [g for g in gradients if g is not None]
        with backend.no_gradient():
            if known:
                known = _unscaled(
                    backend.sum_over_replicas(known), inner_optimizer
                )
            known = iter(known)
            gradients = [None if g is None else next(known) for g in gradients]
            if not self._accumulators:
                return gradients
            scaler = loss_scaler(inner_optimizer)
            finite = None
            if scaler is not None:
                finite = scaler.check_finite(all_gradients)
            return [
                self._accumulate(self._accumulators[id(variable)], g, finite)
                for variable, g in zip(variables, gradients)
            ]

    def _accumulate(self, accumulator, gradient, finite):
        total = ops.convert_to_tensor(accumulator)
        if gradient is None:
            return ops.copy(total)
        part = gradient / self._steps
        if finite is not None:
            part = ops.where(finite, part, 0.0)
        total = total + part
        accumulator.assign(total)
        return total

    def end_step(self, is_update):
        """Begins again after an update.

        Args:
            is_update: Boolean scalar tensor.
        """
        for accumulator in self._accumulators.values():
            value = ops.convert_to_tensor(accumulator)
            accumulator.assign(ops.where(is_update, 0.0, value))


def _unscaled(gradients, inner_optimizer):
    scale = inner_optimizer.scale_loss(1.0)
    if isinstance(scale, float) and scale == 1.0:
        return gradients
    return [
        gradient / ops.cast(scale, gradient.dtype) for gradient in gradients
    ]
