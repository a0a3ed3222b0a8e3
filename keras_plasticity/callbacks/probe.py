"""Statistics of the activations of a model's layers on probe data."""

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity.diagnostics.units import UnitActivity
from keras_plasticity.graph import activations
from keras_plasticity.graph import trace

# The bounds of bounded non-linearities.
_EXTREMES = {
    "hard_sigmoid": (0.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
}
# Fraction of the range. The authors' code calls tanh saturated where |h| > 0.9,
# which is within 5 % of its range of 2.
_TOLERANCE = 0.05


class NotFinite(Exception):
    """An activation is NaN or infinite: the network has diverged."""


class LayerActivations:
    """The activations of one layer, batch by batch.

    Args:
        activation: `activations.Activation`.
        num_examples: Integer, of all batches together.
        max_rows: Integer, the number of rows kept for singular values.

    Attributes:
        units: `UnitActivity` of all rows.
        extremes: Tuple of the floats that bound the activations, or `None`.
    """

    def __init__(self, activation, num_examples, max_rows):
        self.units = None
        self.extremes = _EXTREMES.get(activation.function)
        self._unit_axis = activation.unit_axis
        self._num_examples = num_examples
        self._max_rows = max_rows
        self._num_rows = 0
        self._kept = []

    def add(self, tensor):
        """Adds the activations of a batch of examples."""
        array = keras.ops.convert_to_numpy(tensor)
        if array.dtype != "float64":
            array = np.asarray(array, "float32")
        examples = len(array)
        if array.ndim == 1:
            array = array[:, None]
        else:
            array = np.moveaxis(array, self._unit_axis, -1)
        rows = array.reshape(-1, array.shape[-1])
        if not np.isfinite(rows).all():
            raise NotFinite
        if self.units is None:
            tolerance = 0.0
            if self.extremes is not None:
                tolerance = _TOLERANCE * (self.extremes[1] - self.extremes[0])
            self.units = UnitActivity(rows, self.extremes, tolerance)
        else:
            self.units.add(rows)
        total = len(rows) // examples * self._num_examples
        # Evenly spaced; all rows if there are few enough.
        chosen = np.linspace(
            0, total - 1, min(total, self._max_rows), dtype="int64"
        )
        chosen -= self._num_rows
        chosen = chosen[(chosen >= 0) & (chosen < len(rows))]
        self._kept.append(rows[chosen])
        self._num_rows += len(rows)

    def rows(self):
        """Array of shape `(rows, units)`, at most `max_rows` of all."""
        return np.concatenate(self._kept)


def layer_activations(model, x, layers, batch_size, max_rows):
    """Computes the activations of a model's layers in inference mode.

    Args:
        model: A built `keras.Model`. Nothing in it changes.
        x: Array, or list or dict of arrays: inputs of the model.
        layers: List of names; `None` for all hidden layers.
        batch_size: Integer.
        max_rows: Integer; see `LayerActivations`.

    Returns:
        Dict from the name of each layer to its `LayerActivations`.

    Raises:
        NotFinite: If an activation is not finite.
        ValueError: If the inputs do not fit the model, if it cannot be
            traced, or if it has no layer of a name.
    """
    inputs = _as_inputs(model, x)
    num_examples = len(keras.tree.flatten(inputs)[0])
    traces = {}
    results = {}
    for start in range(0, num_examples, batch_size):
        batch = keras.tree.map_structure(
            lambda array: array[start : start + batch_size], inputs
        )
        arrays = keras.tree.flatten(batch)
        size = len(arrays[0])
        if size not in traces:
            traces[size] = _trace(model, batch, layers)
        traced, found = traces[size]
        if start == 0:
            results = {
                each.name: LayerActivations(each, num_examples, max_rows)
                for each in found
            }
        names = {}
        for each in found:
            names.setdefault(each.value, []).append(each.name)

        def take(value, tensor):
            for name in names[value]:
                results[name].add(tensor)

        activations.run(traced, arrays, set(names), take)
    return results


def _trace(model, batch, layers):
    size = len(keras.tree.flatten(batch)[0])
    inputs = None
    if not keras_compat.is_graph_model(model):
        inputs = keras.tree.map_structure(
            lambda array: keras.KerasTensor(array.shape, str(array.dtype)),
            batch,
        )
    try:
        traced = trace.trace_model(model, inputs, size, whole_leaves=True)
    except trace.NotTraceableError as error:
        shapes = [array.shape for array in keras.tree.flatten(batch)]
        raise ValueError(
            f"The layers of model '{model.name}' (`{type(model).__name__}`) "
            f"cannot be found: its `call` does not take symbolic inputs of "
            f"shapes {shapes}: {error.reason}. Give it `probe_data` that fit, "
            "write its `call` with layers and `keras.ops` alone, or choose "
            "`measures` of weights only, such as 'weight_magnitude'."
        ) from error
    return traced, activations.find_activations(model, traced, layers)


def _as_inputs(model, x):
    """The inputs as arrays, in the structure and order the model takes."""
    if not keras_compat.is_graph_model(model):
        return keras.tree.map_structure(_as_array, x)
    expected = model.inputs
    if isinstance(x, dict) and all(t.name in x for t in expected):
        arrays = [x[tensor.name] for tensor in expected]
    else:
        arrays = keras.tree.flatten(x)
    fits = len(arrays) == len(expected) and all(
        _fits(np.shape(array), tensor.shape)
        for array, tensor in zip(arrays, expected)
    )
    if not fits:
        raise ValueError(
            f"`probe_data` must fit the inputs of model '{model.name}'. "
            f"Expected shapes: {[t.shape for t in expected]}. Received: "
            f"{[np.shape(array) for array in arrays]}"
        )
    return [
        np.asarray(array, tensor.dtype)
        for array, tensor in zip(arrays, expected)
    ]


def _as_array(array):
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = array.astype(keras.config.floatx())
    return array


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        size in (None, received) for size, received in zip(expected, shape)
    )
