"""The inner optimizer's slots: which belong to a variable, and how they begin.

Keras optimizers keep their momenta and the like in lists by position, under
names of their own. But every slot is made by `add_variable_from_reference`, a
public method, with the variable it belongs to. Listening to it while the
optimizer builds finds the slots of any optimizer, without knowing it.
"""

import contextlib
import dataclasses
import threading

import keras

from keras_plasticity.units.weight_view import WeightView

# Who listens changes the class of all optimizers: one thread at a time.
_LISTENING = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot of an optimizer.

    Attributes:
        variable: `keras.Variable`, the slot.
        axes: Tuple, for each axis of the slot the axis of the model variable
            it belongs to.
        initializer: Keras initializer of the slot; `None` if it starts as a
            copy of the model variable.
    """

    variable: keras.Variable
    axes: tuple
    initializer: object

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
            value = self.initializer(view.part_shape, self.variable.dtype)
        view.assign_in(self.variable, index, value)

    def _view_of_factor(self, view):
        """The view of a slot that lacks an axis of its variable, if any."""
        if view.shape != tuple(view.variable.shape) or len(view.axes) > 1:
            return None
        (axis,) = view.axes
        if axis not in self.axes:
            return None
        shape = tuple(self.variable.shape)
        return WeightView(self.variable, shape, (self.axes.index(axis),))


class SlotTable:
    """The slots that an optimizer makes while it builds, by model variable."""

    def __init__(self):
        self._slots = {}

    def of(self, variable):
        """List of the `Slot`s of a model variable."""
        return self._slots.get(id(variable), [])

    @contextlib.contextmanager
    def listen(self):
        """Context in which the slots that optimizers make are noted.

        All optimizers: a `MultiOptimizer` may make others while it builds.
        """
        kind = keras.optimizers.Optimizer
        # Adafactor makes the two factors of its second moment, which have the
        # shape of the variable less one axis, just before its full-shape slot.
        unclaimed = {}

        def note_variable(optimizer, *args, **kwargs):
            variable = super(kind, optimizer).add_variable(*args, **kwargs)
            unclaimed.setdefault(id(optimizer), []).append(variable)
            return variable

        def note_slot(
            optimizer, reference_variable, name=None, initializer="zeros"
        ):
            before = unclaimed.pop(id(optimizer), [])
            slot = super(kind, optimizer).add_variable_from_reference(
                reference_variable, name=name, initializer=initializer
            )
            unclaimed.pop(id(optimizer), None)
            if _starts_as_copy(optimizer, name):
                initializer = None
            else:
                initializer = keras.initializers.get(initializer)
            rank = len(reference_variable.shape)
            found = [Slot(slot, tuple(range(rank)), initializer)]
            zeros = keras.initializers.Zeros()
            found += [
                Slot(factor, axes, zeros)
                for factor, axes in zip(before, _factor_axes(rank))
                if tuple(factor.shape)
                == tuple(reference_variable.shape[i] for i in axes)
            ]
            self._slots.setdefault(id(reference_variable), []).extend(found)
            return slot

        with _LISTENING:
            kind.add_variable = note_variable
            kind.add_variable_from_reference = note_slot
            try:
                yield
            finally:
                # What they hid was inherited.
                del kind.add_variable
                del kind.add_variable_from_reference


def _starts_as_copy(optimizer, name):
    """Whether a slot begins as a copy of its variable.

    Moving averages of the weights do (their first step copies), and the
    iterate that ScheduleFreeAdamW keeps under the name of a momentum.
    """
    schedule_free = getattr(keras.optimizers, "ScheduleFreeAdamW", ())
    return name == "average" or (
        name == "momentum" and isinstance(optimizer, schedule_free)
    )


def _factor_axes(rank):
    """Axes of the row and of the column factor of a factored moment."""
    leading = tuple(range(rank - 2))
    return (*leading, rank - 2), (*leading, rank - 1)
