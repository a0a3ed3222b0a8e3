"""Base class of optimizers that reset all units a little."""

from typing import Any

import keras
from keras import ops

from keras_plasticity.optimizers.hidden_units import HiddenUnits
from keras_plasticity.optimizers.unit_reset_optimizer import UnitResetOptimizer
from keras_plasticity.types import Tensor


class PartialResetOptimizer(UnitResetOptimizer):
    """Base class of optimizers that reset all units a little, now and then.

    Of a layer that is due, each unit moves a part of the way to a new start,
    its own share of it: see `HiddenUnits.reset_partially`. Units age for ever,
    if a method does not say otherwise. Layers are reset in the order of the
    model.

    A method overrides `is_due` and `reset_share`, and may override
    `after_reset`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        reset_optimizer_state: Boolean, whether the slots of the inner optimizer
            move, too. Defaults to `False`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        reset_optimizer_state: bool = False,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            inner_optimizer,
            reset_optimizer_state=reset_optimizer_state,
            seed=seed,
            name=name,
            **kwargs,
        )

    def add_units(self, units):
        self.add_state(units)  # Nobody marks units.

    def is_due(self, units: HiddenUnits) -> Tensor:
        """Whether the units of a layer are reset in this update.

        Args:
            units: `HiddenUnits`.

        Returns:
            Boolean scalar tensor.
        """
        raise NotImplementedError

    def reset_share(self, units: HiddenUnits) -> Tensor:
        """How much of each unit is reset.

        Args:
            units: `HiddenUnits`.

        Returns:
            Tensor of shape `(units.size,)`, in [0, 1].
        """
        raise NotImplementedError

    def after_reset(self, units: HiddenUnits, share: Tensor):
        """Called after the units of a layer were reset.

        Args:
            units: `HiddenUnits`.
            share: What `reset_share` has returned.
        """

    def num_due(self, units):
        return ops.cast(self.is_due(units), "int32")

    def _replace_next(self, units):
        share = self.reset_share(units)
        units.reset_partially(share, move_slots=self.reset_optimizer_state)
        self.after_reset(units, share)
