"""The truth by brute force about every kind of way from a unit to its readers.

A known unit of each model of `paths.py` is replaced. Which features of its
readers are that unit's is found by an experiment, and what has to follow is
computed in NumPy: nothing here asks the package where anything lies.
"""

import contextlib
import dataclasses
import re
from unittest import mock

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import functional
from tests.graph.paths import NEW_WEIGHT
from tests.graph.paths import PATHS
from tests.helpers import to_numpy

_UNIT = 2
_UNITS = 4
_BATCH = 24


def _axis(path, name):
    return path.axes.get(name, 1 if path.first else -1)


def _layers(model):
    return {layer.name: layer for layer in model._flatten_layers()}


def _set_random_weights(model, rng):
    """Nothing is zero, nothing is one, no two are the same."""
    for variable in model.weights:
        if "statistics" in variable.path:
            continue
        shape = variable.shape
        if variable.name in ("gamma", "scale", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif variable.name == "alpha":
            value = rng.uniform(0.1, 0.4, shape)
        elif "kernel" in variable.name:
            # Big enough for units to differ, none of them below the noise.
            value = rng.choice([-1, 1], shape) * rng.uniform(0.2, 0.8, shape)
        else:
            value = rng.normal(0, 0.5, shape)
        variable.assign(value)


def _values(model):
    return {v.path: to_numpy(v) for v in model.variables}


def _assign(model, values):
    for variable in model.variables:
        variable.assign(values[variable.path])


@contextlib.contextmanager
def _changed(layer, before=None, after=None):
    """Context in which a layer's input or output goes through a function."""
    call = layer.call

    def changed_call(x, *args, **kwargs):
        y = call(before(x) if before else x, *args, **kwargs)
        return after(y) if after else y

    with mock.patch.object(layer, "call", changed_call):
        yield


def _record(model, names, x, training=False):
    """What the model and those of its layers receive."""
    recorded = {}

    def note(name):
        def keep(h):
            recorded[name] = to_numpy(h)
            return h

        return keep

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(_changed(_layers(model)[name], note(name)))
        outputs = to_numpy(model(x, training=training))
    return recorded, outputs


def _disturbance(path, model, rng):
    """A function that changes another unit of each example, up and down."""

    def disturb(h):
        h = ops.convert_to_tensor(h)
        axis = _axis(path, "producer")
        noise = np.zeros(h.shape, "float32")
        by_unit = np.moveaxis(noise, axis, 1)
        for example in range(_BATCH):
            size = rng.uniform(4.0, 6.0, by_unit.shape[2:])
            sign = (-1) ** (example // _UNITS)
            by_unit[example, example % _UNITS] = sign * size
        return h + noise

    return disturb


def _features(path, name, h, disturbed):
    """The unit of each input feature of a layer, -1 for none."""
    if name in path.features:
        return np.array(path.features[name])
    change = np.abs(np.moveaxis(disturbed - h, _axis(path, name), 0)) > 1e-6
    changed_by = np.stack(
        [
            change[:, unit::_UNITS].reshape(len(change), -1).any(axis=1)
            for unit in range(_UNITS)
        ]
    )
    # No feature is of two units, and each unit is read.
    assert changed_by.sum(axis=0).max() == 1
    assert changed_by.any(axis=1).all()
    return np.where(changed_by.any(axis=0), changed_by.argmax(axis=0), -1)


# Where in a kernel the weights of a unit and of a feature lie.

_EINSUM_UNITS_FIRST = ("abc,dc->abd",)
_EINSUM_FEATURES_FIRST = ("abc,cd->abd", "...x,xy->...y", "abc,bd->adc")


def _incoming(layer, unit):
    """The weight that makes a unit, and where in it that unit lies."""
    kind = type(layer).__name__
    if kind.startswith("Separable"):
        return layer.pointwise_kernel, np.s_[..., unit]
    if kind.startswith("Depthwise"):
        channel, copy = divmod(unit, layer.depth_multiplier)
        return layer.kernel, np.s_[..., channel, copy]
    if kind.endswith("Transpose"):
        return layer.kernel, np.s_[..., unit, :]
    if kind == "EinsumDense" and layer.equation in _EINSUM_UNITS_FIRST:
        return layer.kernel, np.s_[unit, :]
    if kind == "EinsumDense":
        assert layer.equation in _EINSUM_FEATURES_FIRST
    return layer.kernel, np.s_[..., unit]


def _outgoing(layer, feature):
    """The weight that reads a feature, and where in it that feature lies."""
    kind = type(layer).__name__
    if kind.startswith("Separable"):
        return layer.depthwise_kernel, np.s_[..., feature, :]
    if kind.endswith("Transpose"):
        return layer.kernel, np.s_[..., feature]
    if kind == "EinsumDense" and layer.equation in _EINSUM_UNITS_FIRST:
        return layer.kernel, np.s_[:, feature]
    groups = getattr(layer, "groups", 1)
    if groups > 1 and not kind.startswith("Depthwise"):
        group, feature = divmod(feature, layer.kernel.shape[-2])
        size = layer.filters // groups
        units = slice(group * size, (group + 1) * size)
        return layer.kernel, np.s_[..., feature, units]
    return layer.kernel, np.s_[..., feature, :]


def _bias(layer, unit):
    """Where in a bias, if there is one for each unit, a unit's lies."""
    if layer.bias is None or getattr(layer, "bias_axes", None) == "b":
        return None
    if getattr(layer, "equation", None) == "abc,bd->adc":
        return np.s_[unit]
    return np.s_[..., unit]


# The experiment.


def _both(
    activation_magnitude,
    activation_deviation,
    outgoing_magnitude,
    incoming_magnitude,
):
    """Two utilities in one: on JAX each step takes a second to compile."""
    return functional.contribution(
        activation_magnitude, outgoing_magnitude
    ) + functional.overall(
        activation_deviation, outgoing_magnitude, incoming_magnitude
    )


@dataclasses.dataclass
class Experiment:
    """What was found out before a replacement, and what it has left.

    Attributes:
        path: `Path`.
        layers: Dict of all layers.
        units: Dict from the names of the readers, and of the layers with
            parameters, to the unit of each of their features.
        activations: Dict from the names of the readers to what they receive
            in training.
        before: Dict of the values of all variables before the replacement.
        after: Dict of those after it.
        output_before: Array, the model's output before the replacement.
        output_after: Array, that after it.
        output_without: Array, that of the model before with the unit cut out
            by hand.
        num_replaced: Dict, as the optimizer returns it.
    """

    path: object
    layers: dict
    units: dict
    activations: dict
    before: dict
    after: dict
    output_before: np.ndarray
    output_after: np.ndarray
    output_without: np.ndarray
    num_replaced: dict


def _try_out(model, x):
    """Skips what a backend cannot do at all, with its own reason."""
    try:
        model(x, training=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        pytest.skip(f"{keras.backend.backend()}: {reason}")


def _replace_a_unit(path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(len(path.name))
    model = path.build(lambda x: x)
    layers = _layers(model)
    x = rng.normal(0, 1, (_BATCH, *model.input_shape[1:])).astype("float32")
    if path.first:
        _try_out(model, x)
    _set_random_weights(model, rng)
    before = _values(model)

    names = path.readers + path.parameters
    inputs, output_before = _record(model, names, x)
    with _changed(layers["producer"], after=_disturbance(path, model, rng)):
        disturbed, _ = _record(model, names, x)
    units = {
        name: _features(path, name, inputs[name], disturbed[name])
        for name in names
    }
    activations, _ = _record(model, path.readers, x, training=True)
    _assign(model, before)

    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.0),
        replacement_rate=1.0,
        maturity_threshold=10,
        utility=_both,
    )
    model.compile(
        optimizer,
        loss="mse",
        # A TensorFlow graph takes longer to make than to do without.
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    age = np.zeros(_UNITS)
    age[_UNIT] = 100
    layers["producer"].age.assign(age)
    model.train_on_batch(x, np.zeros_like(output_before))
    after = _values(model)
    _, output_after = _record(model, (), x)
    num_replaced = optimizer.num_replaced()

    # What the forward pass alone keeps, a replacement has nothing to do with.
    start = {**before, **_of_the_forward_pass(after)}
    weight, places = _incoming(layers["producer"], _UNIT)
    if path.mixes:
        # The unit is gone, yet a mean over it and others is not.
        start[weight.path] = start[weight.path].copy()
        start[weight.path][places] = after[weight.path][places]
        bias = layers["producer"].bias
        start[bias.path] = start[bias.path].copy()
        start[bias.path][_UNIT] = after[bias.path][_UNIT]
    _assign(model, start)
    with contextlib.ExitStack() as stack:
        for name in path.readers:
            cut = _cutter(_axis(path, name), units[name] == _UNIT)
            stack.enter_context(_changed(layers[name], before=cut))
        output_without = to_numpy(model(x, training=False))
    return Experiment(
        path,
        layers,
        units,
        activations,
        before,
        after,
        output_before,
        output_after,
        output_without,
        num_replaced,
    )


def _of_the_forward_pass(values):
    return {
        key: value
        for key, value in values.items()
        if "moving_" in key or "seed" in key
    }


def _cutter(axis, is_unit):
    def cut(h):
        shape = [1] * len(h.shape)
        shape[axis] = -1
        keep = np.where(is_unit, 0.0, 1.0).astype("float32")
        return h * ops.convert_to_tensor(keep.reshape(shape))

    return cut


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def experiment(request):
    if keras.backend.backend() == "jax":
        import jax

        # Compilation is all the time that these tests take.
        jax.config.update("jax_disable_most_optimizations", True)
        request.addfinalizer(
            lambda: jax.config.update("jax_disable_most_optimizations", False)
        )
    return _replace_a_unit(request.param)


def test_that_unit_alone_is_replaced(experiment):
    replaced = experiment.num_replaced
    assert replaced.pop("producer") == 1
    assert not any(replaced.values())
    assert not set(replaced) & set(experiment.path.left_alone)
    age = experiment.after[experiment.layers["producer"].age.path]
    expected = np.ones(_UNITS)
    expected[_UNIT] = 0
    np.testing.assert_array_equal(age, expected)


def test_output_is_that_without_the_unit(experiment):
    np.testing.assert_allclose(
        experiment.output_after,
        experiment.output_without,
        rtol=1e-5,
        atol=1e-5,
    )
    # Which the unit was a part of.
    assert not np.allclose(
        experiment.output_before, experiment.output_without, atol=1e-3
    )


def _expected_parameters(experiment, expected):
    """The parameters of a unit on the way are as in the beginning."""
    for name in experiment.path.parameters:
        layer = experiment.layers[name]
        is_unit = experiment.units[name] == _UNIT
        for key, value in (
            ("gamma", 1),
            ("scale", 1),
            ("beta", 0),
            ("alpha", 0),
        ):
            variable = getattr(layer, key, None)
            if not isinstance(variable, keras.Variable):
                continue
            if len(variable.shape) == 1:
                expected[variable.path][is_unit] = value
            else:
                axis = _axis(experiment.path, name)
                axis += len(variable.shape) if axis < 0 else -1
                index = [slice(None)] * len(variable.shape)
                index[axis] = is_unit
                expected[variable.path][tuple(index)] = value


def test_no_other_weight_changes(experiment):
    layers = experiment.layers
    expected = {key: v.copy() for key, v in experiment.before.items()}
    expected.update(_of_the_forward_pass(experiment.after))
    weight, places = _incoming(layers["producer"], _UNIT)
    expected[weight.path][places] = NEW_WEIGHT
    bias = layers["producer"].bias
    places = _bias(layers["producer"], _UNIT)
    if places is not None:
        expected[bias.path][places] = 0
    for name in experiment.path.readers:
        for feature in np.flatnonzero(experiment.units[name] == _UNIT):
            weight, places = _outgoing(layers[name], feature)
            expected[weight.path][places] = 0
    _expected_parameters(experiment, expected)
    for key, value in experiment.after.items():
        if "statistics" not in key:
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_utility_is_that_of_the_recorded_activations(experiment):
    path, before, layers = experiment.path, experiment.before, experiment.layers
    utilities, means, widths = [], [], []
    for name in path.readers:
        h = np.moveaxis(experiment.activations[name], _axis(path, name), -1)
        h = h.reshape(-1, h.shape[-1]).astype("float64")
        utility, mean = np.zeros(_UNITS), np.zeros(_UNITS)
        for unit in range(_UNITS):
            weight, places = _incoming(layers["producer"], unit)
            incoming = np.abs(before[weight.path][places]).mean()
            features = np.flatnonzero(experiment.units[name] == unit)
            center = mean[unit] = h[:, features].mean()
            width = 0
            for feature in features:
                weight, places = _outgoing(layers[name], feature)
                outgoing = before[weight.path][places]
                width += outgoing.size
                outgoing = np.abs(outgoing).mean()
                magnitude = np.abs(h[:, feature]).mean()
                deviation = np.abs(h[:, feature] - center).mean()
                utility[unit] += magnitude * outgoing
                utility[unit] += deviation * outgoing / incoming
            utility[unit] /= len(features)
        utilities.append(utility)
        means.append(mean)
        widths.append(width)
    expected = np.average(utilities, axis=0, weights=widths)
    mean = np.mean(means, axis=0)
    # A replaced unit starts from nothing.
    expected[_UNIT] = mean[_UNIT] = 0
    producer = layers["producer"]
    for variable, value in (
        (producer.utility, expected),
        (producer.mean_activation, mean),
    ):
        np.testing.assert_allclose(
            experiment.after[variable.path], value, rtol=1e-4, atol=1e-6
        )


# What stands between and is not known.


class _Mixing(keras.layers.Layer):
    """A layer of one's own that adds units up."""

    def build(self, input_shape):
        size = input_shape[-1]
        self.mixture = self.add_weight(shape=(size, size))

    def call(self, x):
        return ops.matmul(x, self.mixture)


# The name of the kind of operation, what calls it, and the numbers of axes
# that it is for.
_ANY = (2, 3, 4, 5)
_UNKNOWN = [
    ("Lambda", lambda x: keras.layers.Lambda(lambda y: 2 * y)(x), _ANY),
    ("Softmax", lambda x: keras.layers.Softmax()(x), _ANY),
    ("Dense", lambda x: keras.layers.Dense(x.shape[-1])(x), _ANY),
    ("Matmul", lambda x: _Mixing()(x), _ANY),
    ("Cumsum", lambda x: ops.cumsum(x, axis=-1), _ANY),
    ("Sort", lambda x: ops.sort(x, axis=-1), _ANY),
    ("Softmax", lambda x: ops.softmax(x), _ANY),
    (
        "LSTM",
        lambda x: keras.layers.LSTM(x.shape[-1], return_sequences=True)(x),
        (3,),
    ),
    (
        "MultiHeadAttention",
        lambda x: keras.layers.MultiHeadAttention(1, 2)(x, x),
        (3, 4),
    ),
]


def _assert_refused(path, insert, kind):
    model = path.build(insert)
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.0)
    )
    message = rf"'producer' cannot be followed.*'\w+' \(`{kind}`\)"
    with pytest.raises(ValueError, match=message):
        optimizer.build(model.trainable_variables)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_something_unknown_on_the_way_is_refused(path):
    # Each path meets another of those that fit it.
    kinds = []

    def insert(x):
        fitting = [each for each in _UNKNOWN if len(x.shape) in each[2]]
        kind, call, _ = fitting[PATHS.index(path) % len(fitting)]
        kinds.append(kind)
        return call(x)

    model_path = dataclasses.replace(path)
    _assert_refused(model_path, insert, "|".join({k for k, _, _ in _UNKNOWN}))
    assert kinds


def test_names_of_paths_are_unique():
    assert len({path.name for path in PATHS}) == len(PATHS)


_ = re
