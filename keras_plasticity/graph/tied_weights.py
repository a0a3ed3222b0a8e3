"""Weights of plastic layers that something else uses as well."""

import keras
import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.graph.units import describe
from keras_plasticity.graph.units import name_of
from keras_plasticity.layers.plastic_layer import PlasticLayer


class TiedWeights:
    """Finds who else uses the weights of plastic layers.

    A unit is replaced by what changes its own weights alone. Where a kernel is
    also that of another layer, or multiplies something in the `call` of a
    model, its columns are more than the incoming weights of a unit.

    Args:
        layers: List of plastic layers.
    """

    def __init__(self, layers):
        self._owners = {}
        self._variables = {}
        self._uses = {}
        self._values = {}
        for layer in layers:
            for variable in _kernels(layer):
                self._variables[id(variable)] = variable
                owner = self._owners.setdefault(id(variable), layer)
                if owner is not layer:
                    self._note(variable, f"layer '{name_of(layer)}'")

    def note_uses(self, call):
        """Notes what a call that is none of a plastic layer uses.

        Args:
            call: `Call`.
        """
        operation = call.operation
        if isinstance(operation, PlasticLayer):
            return
        for variable in getattr(operation, "variables", ()):
            if id(variable) in self._variables and not _holds(
                operation, self._owners[id(variable)]
            ):
                self._note(variable, describe(operation))
        for array in keras.tree.flatten((call.args, call.kwargs)):
            if len(getattr(array, "shape", ())) > 1 and not isinstance(
                array, type(call.outputs[0])
            ):
                self._note_array(array, operation)

    def use_of(self, layer, consumers):
        """Why the weights of a layer's units are not theirs alone.

        Args:
            layer: A plastic layer.
            consumers: The layers that read its units.

        Returns:
            String; `None` if they are.
        """
        for each in (layer, *consumers):
            for variable in _kernels(each):
                if id(variable) in self._uses:
                    return (
                        f"the weights '{variable.path}' are tied: "
                        f"{self._uses[id(variable)]} uses them as well, so "
                        "that no unit has weights of its own"
                    )
        return None

    def _note(self, variable, use):
        self._uses.setdefault(id(variable), use)

    def _note_array(self, array, operation):
        """Notes an array that is a kernel, or is made of one.

        What is computed of a weight alone is no part of a graph: a transposed
        kernel is an array that has its values.
        """
        if isinstance(array, keras.Variable):
            if id(array) in self._variables:
                self._note(array, describe(operation))
            return
        shape = tuple(array.shape)
        fitting = [
            (key, variable)
            for key, variable in self._variables.items()
            if tuple(variable.shape) in (shape, shape[::-1])
        ]
        if not fitting:
            return
        array = _to_numpy(array)
        if array is None:
            return
        for key, variable in fitting:
            if key not in self._values:
                self._values[key] = _to_numpy(variable)
            value = self._values[key]
            if (
                value is not None
                and np.any(value)
                and (
                    np.array_equal(array, value)
                    or np.array_equal(array.T, value)
                )
            ):
                self._note(variable, describe(operation))


def _to_numpy(array):
    try:
        with backend.compute_now():
            return np.asarray(ops.convert_to_numpy(array))
    except Exception:  # It has no value while a function is compiled.
        return None


def _kernels(layer):
    """The weights of a layer's units, and those that read its inputs."""
    views = [layer.feature_view()]
    if isinstance(layer, PlasticLayer):  # Or a part of one, which reads units.
        views.append(layer.unit_view())
    return {
        id(view.variable): view.variable for view in views if view is not None
    }.values()


def _holds(layer, part):
    """Whether a layer is a part of another one, at any depth."""
    return isinstance(layer, keras.Layer) and any(
        part is each for each in keras_compat.sublayers(layer)
    )
