"""Maps each model variable to its optimizer slots and their initial values.

Keras optimizers keep their momenta and the like in lists by position, under
names of their own. But every slot is made by `add_variable_from_reference`, a
public method, with the variable it belongs to. Listening to it while the
optimizer builds finds the slots of any optimizer, without knowing it.
"""

import contextlib
import dataclasses
import math

import keras
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity.optimizers.new_weights import PartInitializer
from keras_plasticity.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_plasticity.units.weight_view import WeightView


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot of an optimizer.

    Attributes:
        variable: `keras.Variable`, the slot.
        axes: Tuple, for each axis of the slot the axis of the model variable
            it belongs to.
        initializer: `PartInitializer` of the slot; `None` if it starts as a
            copy of the model variable.
    """

    variable: keras.Variable
    axes: tuple
    initializer: PartInitializer | None

    def reset(self, view, index, value):
        """Sets the entries of one unit or feature back to their beginning.

        Args:
            view: `WeightView` of the model variable.
            index: Integer scalar tensor, an index of the view.
            value: Tensor, what the model variable now holds there.
        """
        if tuple(self.variable.shape) != tuple(view.variable.shape):
            view = self._view_of_factor(view)
            if view is None:
                return
        if self.initializer is not None:
            value = self.initializer(view, index, self.variable.dtype)
        view.assign_in(self.variable, index, value)

    def move(self, view, share):
        """Moves the entries of each unit or feature a part of the way back.

        Momenta move towards zero. Other slots, such as Adam's second moment,
        without which a step would be large, move towards the mean of the
        entries of those that move by less than a half. Copies of the weight,
        and slots of another shape, stay as they are.

        Args:
            view: `WeightView` of the model variable.
            share: Tensor of shape `(size,)`, in [0, 1].
        """
        if self.initializer is None:
            return
        if tuple(self.variable.shape) != tuple(view.variable.shape):
            return
        target = None
        if not self.variable.name.endswith("momentum"):
            stays = ops.cast(share < 0.5, "float32")
            total = ops.sum(stays * view.sum(self.variable.value))
            number = ops.sum(stays) * math.prod(view.part_shape)
            mean = ops.cast(
                total / ops.maximum(number, 1.0), self.variable.dtype
            )
            target = ops.broadcast_to(mean, self.variable.shape)
        view.move_in(self.variable, share, target)

    def _view_of_factor(self, view):
        """The view of a slot that lacks an axis of its variable, if any."""
        if view.shape != tuple(view.variable.shape):
            return None
        if not set(view.axes) <= set(self.axes):
            return None
        axes = [self.axes.index(axis) for axis in view.axes]
        return WeightView.of(self.variable, *axes)


class SlotTable:
    """The slots that an optimizer makes while it builds, by model variable."""

    def __init__(self):
        self._slots = {}

    def of(self, variable):
        """List of the `Slot`s of a model variable."""
        return self._slots.get(id(variable), [])

    @contextlib.contextmanager
    def listen(self):
        """Context in which the slots that optimizers make are noted."""
        optimizers = {}
        # Adafactor makes the two factors of its second moment, which have the
        # shape of the variable less one axis, just before its full-shape slot.
        unclaimed = {}

        def note_variable(optimizer, variable):
            unclaimed.setdefault(id(optimizer), []).append(variable)

        def note_slot(optimizer, slot, reference, initializer):
            optimizers[id(optimizer)] = optimizer
            before = unclaimed.pop(id(optimizer), [])
            # A slot is made by `add_variable`, too.
            factors = [each for each in before if each is not slot]
            shape = tuple(reference.shape)
            found = [
                Slot(
                    slot,
                    tuple(range(len(shape))),
                    PartInitializer(keras.initializers.get(initializer), shape),
                )
            ]
            found += [
                Slot(
                    factor,
                    axes,
                    PartInitializer(
                        keras.initializers.Zeros(), tuple(factor.shape)
                    ),
                )
                for factor, axes in zip(factors, _factor_axes(len(shape)))
                if tuple(factor.shape) == tuple(shape[i] for i in axes)
            ]
            self._slots.setdefault(id(reference), []).extend(found)

        with keras_compat.listen_to_slots(note_variable, note_slot):
            yield
        copies = set().union(*map(_copies, optimizers.values()))
        for slots in self._slots.values():
            slots[:] = [
                dataclasses.replace(slot, initializer=None)
                if id(slot.variable) in copies
                else slot
                for slot in slots
            ]


def _copies(optimizer):
    """The ids of the slots that start as copies of their variables."""
    if isinstance(optimizer, OptimizerWrapper):
        return optimizer.copy_ids
    return {id(slot) for slot in keras_compat.slots_that_copy(optimizer)}


def _factor_axes(rank):
    """Axes of the row and of the column factor of a factored moment."""
    leading = tuple(range(rank - 2))
    return (*leading, rank - 2), (*leading, rank - 1)
