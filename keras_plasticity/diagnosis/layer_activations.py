"""Statistics of the activations of a model's layers on a probe."""

import dataclasses
import math
import weakref

import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.diagnosis.constants import Identity
from keras_plasticity.diagnosis.constants import constants_of
from keras_plasticity.diagnosis.differentiation import compilation_of
from keras_plasticity.diagnostics.linearity import LINEAR_FUNCTIONS
from keras_plasticity.diagnostics.linearity import linear_regions
from keras_plasticity.diagnostics.units import UnitActivity
from keras_plasticity.graph import activations
from keras_plasticity.graph import trace
from keras_plasticity.training import nests
from keras_plasticity.training.program_settings import structure_of

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
        function: String, the name of the layer's non-linearity, or `None`.
        num_examples: Integer, of all batches together.
        max_rows: Integer, the number of rows kept for singular values.

    Attributes:
        units: `UnitActivity` of all rows.
        extremes: Tuple of the floats that bound the activations, or `None`.
        num_regions: Integer, the regions where the non-linearity is linear.
    """

    def __init__(self, function, num_examples, max_rows):
        self.extremes = _EXTREMES.get(function)
        self.units = UnitActivity(
            None, self.extremes, _tolerance(function), _regions(function)
        )
        self.num_regions = len(_regions(function))
        self._num_examples = num_examples
        self._max_rows = max_rows
        self._num_rows = 0
        self._kept = []

    def rows_to_keep(self, num_rows, num_examples):
        """Which rows of the next batch are kept.

        Args:
            num_rows: Integer, the rows of the batch.
            num_examples: Integer, the examples of the batch.

        Returns:
            Array of indices, and the integer how many of them count. The rest
            makes the array as long for all batches of this size.
        """
        total = num_rows // num_examples * self._num_examples
        kept = min(total, self._max_rows)
        # Evenly spaced; all rows if there are few enough.
        chosen = np.linspace(0, total - 1, kept, dtype="int64")
        chosen -= self._num_rows
        chosen = chosen[(chosen >= 0) & (chosen < num_rows)]
        most = min(num_rows, math.ceil(num_rows * kept / total) + 1)
        indices = np.zeros(most, "int32")
        indices[: len(chosen)] = chosen
        return indices, len(chosen)

    def add(self, summary, num_rows, rows):
        """Adds a batch.

        Args:
            summary: What `_summary` returns for it, as arrays.
            num_rows: Integer, the rows of the batch.
            rows: Array of shape `(rows, units)`, those to keep.
        """
        if not summary["is_finite"]:
            raise NotFinite
        self.units.add_sums(
            num_rows,
            summary["num_nonzero"],
            summary["magnitude"],
            float(summary["largest"]),
            summary.get("num_saturated"),
            summary.get("num_linear"),
        )
        self._kept.append(rows)
        self._num_rows += num_rows

    def rows(self):
        """Array of shape `(rows, units)`, at most `max_rows` of all."""
        return np.concatenate(self._kept)


class Programs:
    """Programs that compute activations, compiled once and kept.

    Models whose configs tell all about them share the programs of the first
    one of the same config, as the learners of an `OnlineTrainer` do.
    """

    def __init__(self):
        self._programs = {}
        self._structures = weakref.WeakKeyDictionary()

    def get(self, model, batch, layers):
        """The program for a model and for inputs of the shapes of a batch.

        Args:
            model: A built `keras.Model`.
            batch: Nest of arrays: inputs, as the model takes them.
            layers: List of names; `None` for all hidden layers.

        Returns:
            `_LayersProgram`.
        """
        names = list(activations.layer_names(model).values())
        chosen = layers and tuple(
            names.index(each) if each in names else each for each in layers
        )
        return self._kept(_LayersProgram, model, batch, layers, chosen)

    def hidden_layers(self, model, x, layers, batch_size):
        """The names of the layers whose activations are computed."""
        batch = next(_batches(_as_inputs(model, x), batch_size))
        return self.get(model, batch, layers).names(model)

    def outputs(self, model, x, batch_size):
        """The outputs of a model in inference mode.

        Args:
            model: A built `keras.Model`.
            x: Nest of arrays: inputs.
            batch_size: Integer.

        Returns:
            List of arrays, in float32 or float64.
        """
        batches = [
            self._kept(_OutputsProgram, model, batch).run(model, batch)
            for batch in _batches(_as_inputs(model, x), batch_size)
        ]
        return [np.concatenate(arrays) for arrays in zip(*batches)]

    def _kept(self, kind, model, batch, *arguments):
        structure = self._structure(model)
        shapes = [(a.shape, str(a.dtype)) for a in keras.tree.flatten(batch)]
        constants = constants_of(model)
        key = (kind, structure, constants, tuple(shapes), *arguments[1:])
        if key not in self._programs:
            program = kind(model, batch, *arguments[:1])
            if not program.may_be_kept:
                return program
            self._programs[key] = program
        return self._programs[key]

    def _structure(self, model):
        """What tells a model's programs from others, a part of their keys.

        It takes a while, so it is found anew only where the model has been
        compiled, or is made of other parts.
        """
        parts = [Identity(v) for v in model.variables]
        for layer in keras_compat.sublayers(model):
            parts += type(layer), id(layer)
        parts.append(compilation_of(model))
        known, structure = self._structures.get(model, (None, None))
        if known == parts:
            return structure
        # No other model has the programs of one whose config does not tell.
        if isinstance(structure, Identity):
            for key in [k for k in self._programs if k[1] is structure]:
                del self._programs[key]
        structure = structure_of(model) or Identity(object())
        self._structures[model] = parts, structure
        return structure


class _Program:
    """Computes values of a model's trace, for batches of one size.

    Args:
        model: A built `keras.Model`, which is not kept.
        traced: Its `trace.Trace`.
        wanted: List of `trace.Value`s.

    Attributes:
        may_be_kept: Boolean, whether it goes for other weights, too.
    """

    def __init__(self, model, traced, wanted):
        calls = activations.calls_up_to(traced.calls, set(wanted))
        # Tensors that were computed from weights while it was traced.
        self.may_be_kept = not any(
            hasattr(argument, "shape") and not isinstance(argument, trace.Value)
            for call in calls
            for argument in keras.tree.flatten((call.args, call.kwargs))
        )
        self._variables = model.variables
        self._traced = dataclasses.replace(traced, calls=calls)
        self._wanted = wanted
        self._compiled = self._compute
        if self.may_be_kept:
            self._compiled = backend.compiled(self._compute)

    def _call(self, model, *arguments):
        """What `_compute` returns for the weights of a model, as arrays."""
        values = [keras.ops.convert_to_tensor(v) for v in model.variables]
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, self._compiled(values, *arguments)
        )

    def _tensors(self, values, inputs):
        """Dict from each value that is wanted to its tensor."""
        tensors = {}
        activations.run(
            self._traced,
            inputs,
            set(self._wanted),
            tensors.__setitem__,
            list(zip(self._variables, values)),
        )
        return tensors


class _OutputsProgram(_Program):
    """Computes the outputs of a model."""

    def __init__(self, model, batch):
        traced = _trace(model, batch)
        made = [value for call in traced.calls for value in call.outputs]
        values = dict.fromkeys([*traced.inputs, *made])
        super().__init__(
            model, traced, [v for v in values if v in traced.outputs]
        )

    def run(self, model, batch):
        return self._call(model, keras.tree.flatten(batch))

    def _compute(self, values, inputs):
        tensors = self._tensors(values, inputs)
        # An output may be one of the inputs.
        tensors.update(
            (value, array)
            for value, array in zip(self._traced.inputs, inputs)
            if value in self._wanted
        )
        return [_at_least_float32(tensors[value]) for value in self._wanted]


class _LayersProgram(_Program):
    """Computes summaries of the activations of layers.

    Attributes:
        found: List of `activations.Activation`s.
    """

    def __init__(self, model, batch, layers):
        traced = _trace(model, batch)
        self.found = activations.find_activations(model, traced, layers)
        super().__init__(model, traced, [each.value for each in self.found])
        self._size = len(keras.tree.flatten(batch)[0])
        self._num_rows = {}  # Of positions in `found`, once they are known.
        names = list(activations.layer_names(model).values())
        # Of another model of this structure the names may be others.
        self._indices = [
            names.index(each.name) if each.name in names else None
            for each in self.found
        ]

    def names(self, model):
        """The names of a model's layers whose activations are computed."""
        names = list(activations.layer_names(model).values())
        return [
            each.name if index is None else names[index]
            for each, index in zip(self.found, self._indices)
        ]

    def num_rows(self, position):
        """The rows of the activations at a position in `found`.

        Before they are first computed it is a guess: a model may move the
        positions to the examples. `None` where there is nothing to guess by.
        """
        if position not in self._num_rows:
            each = self.found[position]
            sizes = [self._size, *each.value.shape[1:]]
            if len(sizes) > 1:
                del sizes[each.unit_axis]
            return None if None in sizes else math.prod(sizes)
        return self._num_rows[position]

    def run(self, model, inputs, indices):
        """Returns the summaries of a batch, in the order of `found`.

        Args:
            model: The model, or another one of its structure.
            inputs: List of arrays.
            indices: List of arrays of indices, the rows to keep. Without any,
                all rows are returned.

        Returns:
            List of dicts; `None` if a number of rows was guessed wrong.
        """
        summaries = self._call(model, inputs, indices)
        guesses = [self.num_rows(i) for i in range(len(self.found))]
        for i, each in enumerate(summaries):
            self._num_rows[i] = int(each.pop("num_rows"))
        if any(
            guess not in (None, self._num_rows[i])
            for i, guess in enumerate(guesses)
        ):
            return None
        return summaries

    def _compute(self, values, inputs, indices):
        tensors = self._tensors(values, inputs)
        return [
            _summary(tensors[each.value], each, rows)
            for each, rows in zip(self.found, indices)
        ]


def layer_activations(
    model, x, layers=None, batch_size=2000, max_rows=2000, programs=None
):
    """Computes the activations of a model's layers in inference mode.

    Args:
        model: A built `keras.Model`. Nothing in it changes.
        x: Array, or list or dict of arrays: inputs of the model.
        layers: List of names; `None` for all hidden layers.
        batch_size: Integer.
        max_rows: Integer; see `LayerActivations`.
        programs: `Programs` that are kept. Defaults to new ones.

    Returns:
        Dict from the name of each layer to its `LayerActivations`.

    Raises:
        NotFinite: If an activation is not finite.
        ValueError: If the inputs do not fit the model, if it cannot be
            traced, or if it has no layer of a name.
    """
    programs = programs or Programs()
    inputs = _as_inputs(model, x)
    num_examples = len(keras.tree.flatten(inputs)[0])
    results = {}
    for batch in _batches(inputs, batch_size):
        arrays = keras.tree.flatten(batch)
        program = programs.get(model, batch, layers)
        if not results:
            results = {
                name: LayerActivations(each.function, num_examples, max_rows)
                for name, each in zip(program.names(model), program.found)
            }
        _add_batch(program, model, arrays, [*results.values()])
    return results


def _add_batch(program, model, arrays, layers):
    """Adds the activations of a batch to the `LayerActivations` of layers."""
    size = len(arrays[0])
    summaries = None
    while summaries is None:
        chosen = []
        for i, layer in enumerate(layers):
            num_rows = program.num_rows(i)
            indices = np.zeros(0, "int32"), 0
            if num_rows is not None:
                indices = layer.rows_to_keep(num_rows, size)
            chosen.append((num_rows, *indices))
        indices = [each[1] for each in chosen]
        summaries = program.run(model, arrays, indices)
    for layer, summary, (num_rows, _, count) in zip(layers, summaries, chosen):
        rows = summary["rows"][:count]
        if num_rows is None:
            num_rows = len(summary["rows"])
            indices, count = layer.rows_to_keep(num_rows, size)
            rows = summary["rows"][indices[:count]]
        layer.add(summary, num_rows, rows)


def _summary(tensor, activation, indices):
    """What the measures need of a layer's activations on a batch.

    Args:
        tensor: The activations.
        activation: `activations.Activation`.
        indices: Integer tensor, the rows to return.

    Returns:
        Dict of tensors. The sums of magnitudes are divided by the largest one,
        so that they do not overflow.
    """
    ops = keras.ops
    tensor = _at_least_float32(tensor)
    if len(tensor.shape) == 1:
        tensor = ops.expand_dims(tensor, 1)
    else:
        tensor = ops.moveaxis(tensor, activation.unit_axis, -1)
    rows = ops.reshape(tensor, (-1, tensor.shape[-1]))
    magnitudes = ops.abs(rows)
    largest = ops.max(magnitudes)
    divisor = ops.where(largest > 0, largest, ops.ones_like(largest))
    summary = {
        "is_finite": ops.all(ops.isfinite(rows)),
        "largest": largest,
        "magnitude": ops.sum(magnitudes / divisor, axis=0),
        "num_nonzero": _count(rows != 0),
        "num_rows": ops.shape(rows)[0],
        "rows": ops.take(rows, indices, axis=0) if indices.shape[0] else rows,
    }
    extremes = _EXTREMES.get(activation.function)
    if extremes is not None:
        tolerance = _tolerance(activation.function)
        is_near = [
            (rows > extreme - tolerance) & (rows < extreme + tolerance)
            for extreme in extremes
        ]
        summary["num_saturated"] = _count(is_near[0] | is_near[1])
    regions = _regions(activation.function)
    if regions:
        summary["num_linear"] = ops.stack(
            [_count((rows > low) & (rows < high)) for low, high in regions]
        )
    return summary


def _at_least_float32(tensor):
    if keras.backend.standardize_dtype(tensor.dtype) == "float64":
        return tensor
    return keras.ops.cast(tensor, "float32")


def _count(is_so):
    """How many of each unit's rows are true."""
    return keras.ops.sum(keras.ops.cast(is_so, "int32"), axis=0)


def _regions(function):
    """The intervals of activations in which a non-linearity is linear."""
    return linear_regions(function) if function in LINEAR_FUNCTIONS else []


def _tolerance(function):
    """How near to an extreme is saturated."""
    low, high = _EXTREMES.get(function, (0.0, 0.0))
    return _TOLERANCE * (high - low)


def _batches(inputs, batch_size):
    """Yields the parts of a nest of arrays."""
    for start in range(0, len(keras.tree.flatten(inputs)[0]), batch_size):
        yield nests.take(inputs, slice(start, start + batch_size))


def _trace(model, batch):
    size = len(keras.tree.flatten(batch)[0])
    is_graph = keras_compat.is_graph_model(model)
    inputs = None
    # Where lengths are not known, the graph may hold another one: layers may
    # make masks and positions of the length with which they were traced.
    if not is_graph or any(None in t.shape[1:] for t in model.inputs):
        inputs = keras.tree.map_structure(
            lambda array: keras.KerasTensor(array.shape, str(array.dtype)),
            batch,
        )
        if is_graph:
            inputs = keras.tree.pack_sequence_as(model.input, inputs)
    try:
        return trace.trace_model(model, inputs, size, whole_leaves=True)
    except trace.NotTraceableError as error:
        shapes = [array.shape for array in keras.tree.flatten(batch)]
        raise ValueError(
            f"The layers of model '{model.name}' (`{type(model).__name__}`) "
            f"cannot be found: its `call` does not take symbolic inputs of "
            f"shapes {shapes}: {error.reason}. Give it `probe_data` that fit, "
            "write its `call` with layers and `keras.ops` alone, or choose "
            "`measures` of weights only, such as 'weight_magnitude'."
        ) from error


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
    # Not by the number of examples, which come in batches.
    return len(shape) == len(expected) and all(
        size in (None, received)
        for size, received in zip(expected[1:], shape[1:])
    )
