"""Units are followed rightly through graphs that nobody has thought of.

For each layer whose units the package would replace, an experiment tells which
features of the layers that read it a unit reaches, and what the model returns
without the outgoing weights that are said to be the unit's.
"""

import contextlib
import functools
import math

import hypothesis
import keras
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from keras_plasticity import backend
from keras_plasticity import graph
from keras_plasticity import layers
from tests.helpers import changed_layer
from tests.helpers import to_numpy

_BATCH = 12
_MOST_FEATURES = 80
# To compute with new shapes takes long where each of them is compiled.
_SHARE = {"torch": 1, "tensorflow": 5, "jax": 12}[keras.backend.backend()]


# What may come between a unit and those who read it. Each takes `draw`, by
# which hypothesis chooses, and a tensor, and returns another one, or `None`
# where it does not fit. A unit must not be lost in what saturates: an
# experiment could not tell.


def _elementwise(draw, x):
    return draw(
        [
            lambda: keras.layers.LeakyReLU(0.2)(x),
            lambda: keras.layers.Activation("softsign")(x),
            lambda: keras.layers.Rescaling(0.5, 0.1)(x),
            lambda: keras.layers.Dropout(0.5)(x),
            lambda: keras.layers.BatchNormalization()(x),
            lambda: 1.0 - 0.5 * x,
            lambda: abs(x),
            lambda: x * ops.sigmoid(0.1 * x),
            lambda: ops.maximum(x, 0.1 * x),
            lambda: ops.where(x > 0.0, x, 0.3 * x),
        ]
    )()


def _flatten(draw, x):
    return keras.layers.Flatten()(x)


def _reshape(draw, x):
    shape = list(x.shape[1:])
    i = draw(range(len(shape)))
    if i and draw([True, False]):
        shape[i - 1 : i + 1] = [shape[i - 1] * shape[i]]
    else:
        parts = [n for n in range(1, shape[i] + 1) if shape[i] % n == 0]
        first = draw(parts)
        shape[i : i + 1] = [first, shape[i] // first]
    if len(shape) > 3:
        return None
    if draw([True, False]):
        return ops.reshape(x, (-1, *shape))
    return keras.layers.Reshape(shape)(x)


def _permute(draw, x):
    rank = len(x.shape)
    if rank == 2:
        return None
    i, j = draw([(i, j) for j in range(2, rank) for i in range(1, j)])
    order = list(range(1, rank))
    order[i - 1], order[j - 1] = order[j - 1], order[i - 1]
    if draw([True, False]):
        return ops.transpose(x, (0, *order))
    return keras.layers.Permute(order)(x)


def _through_the_batch(draw, x):
    """The batch is moved away, and back."""
    axis = draw(range(1, len(x.shape)))
    x = ops.swapaxes(x, 0, axis)
    return ops.swapaxes(1.0 - x, axis, 0)


def _move(draw, x):
    rank = len(x.shape)
    axis = draw(range(1, rank))
    size = x.shape[axis]

    def part(start, stop):
        index = [slice(None)] * rank
        index[axis] = slice(start, stop)
        return x[tuple(index)]

    at = draw(range(1, max(2, size)))
    cuts = [
        lambda: part(at, None),
        lambda: part(None, at),
        lambda: ops.concatenate([part(at, None), part(None, at)], axis=axis),
        lambda: ops.concatenate(ops.split(x, [at], axis), axis=axis),
    ]
    return draw(
        [
            lambda: ops.flip(x, axis=axis),
            lambda: ops.repeat(x, 2, axis=axis),
            lambda: ops.tile(x, [1 + (i == axis) for i in range(rank)]),
            lambda: ops.concatenate([x, -x], axis=axis),
            *([] if size == 1 else cuts),
            *([lambda: ops.squeeze(x, axis)] if size == 1 < rank - 1 else []),
            *([] if rank == 4 else [lambda: ops.expand_dims(x, axis)]),
            *([] if rank == 4 else [lambda: ops.stack([x, -x], axis=axis)]),
            *([lambda: keras.layers.RepeatVector(2)(x)] if rank == 2 else []),
        ]
    )()


def _reduce(draw, x):
    if len(x.shape) == 2:
        return None
    function = draw([ops.mean, ops.max, ops.sum])
    axis = draw(range(1, len(x.shape)))
    return function(x, axis=axis, keepdims=draw([True, False]))


def _positions(draw, x):
    dimensions = len(x.shape) - 2
    if dimensions == 0:
        return None
    name, *args = draw(
        [
            ("MaxPooling", 2, None, "same"),
            ("AveragePooling", 2, None, "same"),
            ("ZeroPadding", 1),
            ("UpSampling", 2),
            ("GlobalMaxPooling",),
            ("GlobalAveragePooling",),
            ("Cropping", (1, 0) if dimensions == 1 else ((1, 0), (0, 0))),
        ]
    )
    if name == "Cropping" and x.shape[1] == 1:
        return None
    return getattr(keras.layers, f"{name}{dimensions}D")(*args)(x)


def _plastic(draw, x):
    units = draw(range(1, 5))
    kinds = [lambda: layers.Dense(units)]
    if len(x.shape) == 3:
        kinds.append(lambda: layers.Conv1D(units, 2, padding="same"))
    if len(x.shape) == 4:
        kinds.append(lambda: layers.Conv2D(units, 2, padding="same"))
    return draw(kinds)()(x)


_ONE_INPUT = [
    _elementwise,
    _flatten,
    _reshape,
    _permute,
    _through_the_batch,
    _move,
    _move,
    _reduce,
    _positions,
    _plastic,
]
_MERGES = ["Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply"]


def _merge(draw, x, y):
    if x.shape == y.shape and x is not y:
        name = draw(_MERGES)
        return getattr(keras.layers, name)()([x, y])
    return None


def _concatenate(draw, x, y):
    if len(x.shape) != len(y.shape):
        return None
    axis = draw(range(1, len(x.shape)))
    sizes = [[n for i, n in enumerate(t.shape) if i != axis] for t in (x, y)]
    if sizes[0] != sizes[1]:
        return None
    return keras.layers.Concatenate(axis=axis)([x, y])


def _size(x):
    return math.prod(x.shape[1:])


def _model(draw):
    """A random model. What nobody reads is read by a head."""
    inputs = keras.Input(draw([(3,), (3, 2), (2, 3, 1)]))
    tensors = [_plastic(draw, inputs)]
    unread = {id(tensors[0]): tensors[0]}
    for _ in range(draw(range(1, 8))):
        used = [tensors[draw(range(len(tensors)))]]
        function = draw(_ONE_INPUT + 2 * [_merge, _concatenate])
        if function in (_merge, _concatenate):
            used.append(tensors[draw(range(len(tensors)))])
        new = function(draw, *used)
        if new is None or not 0 < _size(new) <= _MOST_FEATURES:
            continue
        tensors.append(new)
        for each in used:
            unread.pop(id(each), None)
        unread[id(new)] = new
    outputs = [
        layers.Dense(2)(keras.layers.Flatten()(each))
        for each in unread.values()
    ]
    return keras.Model(inputs, outputs)


def _note(noted, layer, h):
    noted[layer] = h
    return h


class _Experiment:
    """A model with random weights, and what it is told to do."""

    def __init__(self, model, seed):
        self.model = model
        self.rng = np.random.default_rng(seed)
        for weight in model.weights:
            if "kernel" in weight.name:
                value = self.rng.uniform(0.2, 0.8, weight.shape)
                weight.assign(value * self.rng.choice([-1, 1], weight.shape))
        self.x = self.inputs()

    def inputs(self):
        shape = (_BATCH, *self.model.input_shape[1:])
        return self.rng.normal(0, 1, shape).astype("float32")

    def record(self, consumers=(), outputs_of=None, x=None):
        """What the consumers receive, and all that the model returns.

        Args:
            consumers: List of layers.
            outputs_of: Dict from layers to functions that change outputs.
            x: Other inputs.
        """
        received = {}
        with contextlib.ExitStack() as stack:
            for layer in consumers:
                note = functools.partial(_note, received, layer)
                stack.enter_context(changed_layer(layer, before=note))
            for layer, change in (outputs_of or {}).items():
                stack.enter_context(changed_layer(layer, after=change))
            outputs = self.model(self.x if x is None else x, training=False)
        outputs = [to_numpy(each) for each in keras.tree.flatten(outputs)]
        return [to_numpy(received[layer]) for layer in consumers], outputs

    def outputs_of(self, layers):
        """Dict from layers to functions that return what they now return."""
        found = {}
        notes = {
            layer: functools.partial(_note, found, layer) for layer in layers
        }
        self.record(outputs_of=notes)
        return {layer: lambda h, y=y: y for layer, y in found.items()}

    def disturb(self, unit):
        """A function that changes one unit, in half of the examples upwards."""

        def change(h):
            noise = np.zeros(h.shape, "float32")
            noise[..., unit] = self.rng.uniform(3, 6, h.shape[:-1])
            noise[::2] *= -1
            return h + ops.convert_to_tensor(noise)

        return change


def _check(connections, experiment, plastic):
    layer, consumers = connections.layer, list(connections.consumers)
    maps = [each.unit_of_feature for each in connections.consumers.values()]
    received, _ = experiment.record(consumers)
    as_now = experiment.outputs_of(plastic)
    # No feature of these units depends on anything else, but on a gate.
    if not any(type(op).__name__ == "Multiply" for op in connections.through):
        others, _ = experiment.record(
            consumers, {layer: as_now[layer]}, experiment.inputs()
        )
        for h, other, units in zip(received, others, maps):
            np.testing.assert_allclose(
                h[..., units >= 0], other[..., units >= 0], atol=1e-5
            )
    for unit in range(layer.unit_view().size):
        # Not by way of another layer.
        changed = {**as_now, layer: experiment.disturb(unit)}
        disturbed, _ = experiment.record(consumers, changed)
        for h, other, units in zip(received, disturbed, maps):
            changes = np.abs(h - other).reshape(-1, h.shape[-1]).max(axis=0)
            assert not changes[units != unit].any()
            # Unless it cancels out, or another position is larger.
            hypothesis.event(f"all features: {changes[units == unit].all()}")
        _check_without(connections, experiment, unit)


def _check_without(connections, experiment, unit):
    """Without its outgoing weights, and only without them, a unit is gone."""
    weights = experiment.model.weights
    before = [to_numpy(weight) for weight in weights]
    expected = dict(zip(map(id, weights), [each.copy() for each in before]))
    for consumer, feature_map in connections.consumers.items():
        # All of these layers have their features in the last axis but one.
        features = feature_map.unit_of_feature == unit
        expected[id(consumer.kernel)][..., features, :] = 0
        view = consumer.feature_view()
        index = ops.convert_to_tensor(unit)
        with backend.no_gradient():
            for part, at in feature_map.slices(view, index):
                part.assign(at, ops.zeros(part.part_shape))
    for weight in weights:
        np.testing.assert_array_equal(to_numpy(weight), expected[id(weight)])
    _, without = experiment.record()
    _, disturbed = experiment.record(
        outputs_of={connections.layer: experiment.disturb(unit)}
    )
    for one, other in zip(without, disturbed):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for weight, value in zip(weights, before):
        weight.assign(value)


def _one_unit(draw):
    """A layer of one unit, whose elements are moved."""
    inputs = keras.Input((3, 4, 1))
    x = layers.Conv2D(1, 2)(inputs)
    for _ in range(draw(range(1, 5))):
        new = draw([_flatten, _reshape, _permute, _move])(draw, x)
        if new is not None and 0 < _size(new) <= _MOST_FEATURES:
            x = new
    return keras.Model(inputs, layers.Dense(2)(x))


def _find(model):
    keras.utils.clear_session(free_memory=False)
    plastic = [
        each
        for each in model._flatten_layers()
        if isinstance(each, layers.PlasticLayer)
    ]
    return plastic, graph.find_connections(plastic, model)


_few = settings(max_examples=max(1, settings().max_examples // _SHARE))


@_few
@given(st.data(), st.integers(0, 2**32))
def test_units_are_followed_through_any_graph(data, seed):
    model = _model(lambda choices: data.draw(st.sampled_from(choices)))
    experiment = _Experiment(model, seed)
    plastic, found = _find(model)
    for connections in found:
        reason = connections.skip_reason or connections.error
        hypothesis.event(reason or "followed")
        if reason is None:
            _check(connections, experiment, plastic)


@_few
@given(st.data())
def test_one_unit_is_followed_wherever_it_goes(data):
    model = _one_unit(lambda choices: data.draw(st.sampled_from(choices)))
    plastic, (producer, head) = _find(model)
    assert (producer.skip_reason, producer.error) == (None, None)
    _check(producer, _Experiment(model, 0), plastic)
