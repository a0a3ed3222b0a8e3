"""The truth by brute force about all ways from a unit to its consumers.

A known unit of each model of `paths.py` is replaced. Which features of its
consumers are that unit's is found by an experiment, and what has to follow is
computed in NumPy: nothing here asks the package where anything lies.
"""

import contextlib
import functools
import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import functional
from tests.graph.paths import NEW_WEIGHT
from tests.graph.paths import PATHS
from tests.helpers import changed_layer
from tests.helpers import to_numpy

_BATCH = 24
_UNITS = 4
_UNIT = 2  # The one to be replaced.


# Where in the weights of a layer those of a unit, and of a feature, lie.


def _incoming(layer, unit):
    """The weight that makes a unit, and the index of the unit in it."""
    kind = type(layer).__name__
    if kind.startswith("Separable"):
        return layer.pointwise_kernel, np.s_[..., unit]
    if kind.startswith("Depthwise"):
        channel, copy = divmod(unit, layer.depth_multiplier)
        return layer.kernel, np.s_[..., channel, copy]
    if kind.endswith("Transpose"):
        return layer.kernel, np.s_[..., unit, :]
    if kind == "EinsumDense" and layer.equation == "abc,dc->abd":
        return layer.kernel, np.s_[unit, :]
    return layer.kernel, np.s_[..., unit]


def _bias(layer, unit):
    """The index of a unit in the bias; `None` if there is no bias of it."""
    axes = getattr(layer, "bias_axes", None)
    if layer.bias is None or axes == "b":
        return None
    if getattr(layer, "equation", None) == "abc,bd->adc":
        return np.s_[unit]  # Of shape (units, 1).
    return np.s_[..., unit]


def _outgoing(layer, feature):
    """The weight that reads a feature, and the index of the feature in it."""
    kind = type(layer).__name__
    if kind.startswith("Separable"):
        return layer.depthwise_kernel, np.s_[..., feature, :]
    if kind.endswith("Transpose"):
        return layer.kernel, np.s_[..., feature]
    if kind == "EinsumDense" and layer.equation == "abc,dc->abd":
        return layer.kernel, np.s_[:, feature]
    if getattr(layer, "groups", 1) > 1:
        # A group of units reads a group of features.
        group, feature = divmod(feature, layer.kernel.shape[-2])
        size = layer.filters // layer.groups
        units = slice(group * size, (group + 1) * size)
        return layer.kernel, np.s_[..., feature, units]
    return layer.kernel, np.s_[..., feature, :]


# What layers are told to do.


def _without(features, axis):
    """A function that sets features to zero."""

    def cut(h):
        keep = np.where(features, 0.0, 1.0).astype("float32")
        shape = [1] * len(h.shape)
        shape[axis] = -1
        return h * ops.convert_to_tensor(keep.reshape(shape))

    return cut


def _disturbed(axis, rng):
    """A function that changes one unit of each example, up or down."""

    def disturb(h):
        noise = np.zeros(h.shape, "float32")
        by_unit = np.moveaxis(noise, axis, 1)
        for example in range(_BATCH):
            size = rng.uniform(4.0, 6.0, by_unit.shape[2:])
            sign = (-1) ** (example // _UNITS)
            by_unit[example, example % _UNITS] = sign * size
        return h + ops.convert_to_tensor(noise)

    return disturb


class Experiment:
    """A model, one unit of which is replaced.

    Values of variables are dicts from the id of the variable.

    Attributes:
        path: `Path`.
        model: The model.
        layers: Dict of all of its layers.
        unit_of_feature: Dict from the name of a layer to an array: the unit
            of each feature that it receives.
        activations: Dict from the name of each consumer to what it receives in
            training.
        before: Values of the model's variables before the replacement.
        after: Those after it.
        output_before: The model's output before the replacement.
        output_after: That after it.
        output_without: That of the model before, with the unit cut out.
        num_replaced: Dict, what the optimizer says.
        warnings: List of strings, what it warns of when it is built.
    """

    def __init__(self, path):
        # The same numbers on every backend.
        self.rng = np.random.default_rng(len(path.name))
        self.path = path
        self.model = path.build(lambda x: x)
        self.layers = {x.name: x for x in self.model._flatten_layers()}
        shape = (_BATCH, *self.model.input_shape[1:])
        self.x = self.rng.normal(0, 1, shape).astype("float32")

    def run(self):
        self._set_random_weights()
        self.before = self._values()
        self._find_features()
        # Random layers draw the same numbers twice: PyTorch's from a generator
        # of its own, the others as their variables say.
        keras.utils.set_random_seed(0)
        self.activations, _ = self._record(self.path.consumers, training=True)
        self._assign(self.before)
        keras.utils.set_random_seed(0)
        self._replace()
        self.after = self._values()
        _, self.output_after = self._record()
        self._cut_out()

    def axis(self, name):
        """Which axis of a layer's inputs counts the features."""
        return self.path.axes.get(name, 1 if self.path.first else -1)

    def features(self, name):
        """Which features of a layer are those of the unit."""
        return self.unit_of_feature[name] == _UNIT

    def _variables(self):
        """Those of the model, and what the optimizer keeps of the units."""
        kept = [
            variable
            for layer in self.layers.values()
            if hasattr(layer, "statistics")
            for variable in (layer.utility, layer.age, layer.mean_activation)
        ]
        return list({id(v): v for v in self.model.variables + kept}.values())

    def of_the_passes(self):
        """Values after the step of what the two passes themselves change."""
        return {
            id(v): self.after[id(v)]
            for v in self.model.variables
            if not v.trainable or v.overwrite_with_gradient
        }

    def _values(self):
        return {id(v): to_numpy(v) for v in self._variables()}

    def _assign(self, values):
        for variable in self._variables():
            variable.assign(values[id(variable)])

    def _set_random_weights(self):
        for variable in self.model.weights:
            shape = variable.shape
            if "statistics" in variable.path:
                continue
            if "kernel" in variable.name:
                # No unit without weight.
                value = self.rng.uniform(0.2, 0.8, shape)
                value *= self.rng.choice([-1, 1], shape)
            elif variable.name in (
                "alpha",
                "gamma",
                "scale",
                "moving_variance",
            ):
                value = self.rng.uniform(0.3, 1.5, shape)
            else:
                value = self.rng.normal(0, 0.5, shape)
            variable.assign(value)

    def _record(self, names=(), training=False):
        """What layers receive, and what the model returns."""
        recorded = {}

        def keep(name, h):
            recorded[name] = to_numpy(h)
            return h

        with contextlib.ExitStack() as stack:
            for name in names:
                note = functools.partial(keep, name)
                stack.enter_context(changed_layer(self.layers[name], note))
            outputs = self.model(self.x, training=training)
        return recorded, to_numpy(outputs)

    def _find_features(self):
        """Features of a unit are those that change when it does."""
        names = self.path.consumers + self.path.parameters
        inputs, self.output_before = self._record(names)
        disturb = _disturbed(self.axis("producer"), self.rng)
        with changed_layer(self.layers["producer"], after=disturb):
            disturbed, _ = self._record(names)
        self.unit_of_feature = {}
        for name in names:
            if name in self.path.features:
                self.unit_of_feature[name] = np.array(self.path.features[name])
                continue
            change = np.abs(disturbed[name] - inputs[name]) > 1e-6
            change = np.moveaxis(change, self.axis(name), 0)
            changed_by = np.stack(
                [
                    change[:, unit::_UNITS].reshape(len(change), -1).any(1)
                    for unit in range(_UNITS)
                ]
            )
            # No feature is of two units, and no unit without any.
            assert changed_by.sum(0).max() == 1 and changed_by.any(1).all()
            self.unit_of_feature[name] = np.where(
                changed_by.any(0), changed_by.argmax(0), -1
            )

    def _replace(self):
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=1.0,
            maturity_threshold=10,
            utility=_two_utilities,
        )
        self.model.compile(
            optimizer,
            loss="mse",
            # To make a TensorFlow graph takes longer than to do without.
            run_eagerly=keras.backend.backend() == "tensorflow",
        )
        # Without this, TensorFlow makes its first forward pass before the
        # optimizer knows which features have a mean in common.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.build(self.model.trainable_variables)
        self.warnings = [str(each.message) for each in caught]
        age = np.zeros(_UNITS)
        age[_UNIT] = 100
        self.layers["producer"].age.assign(age)
        self.model.train_on_batch(self.x, np.zeros_like(self.output_before))
        self.num_replaced = optimizer.num_replaced()

    def _cut_out(self):
        values = {**self.before, **self.of_the_passes()}
        if self.path.mixes:
            # The unit itself is not read any more, but changes the others.
            producer = self.layers["producer"]
            for variable, index in (
                _incoming(producer, _UNIT),
                (producer.bias, _bias(producer, _UNIT)),
            ):
                value = values[id(variable)].copy()
                value[index] = self.after[id(variable)][index]
                values[id(variable)] = value
            for name in self.path.parameters:
                for variable, _ in _parameters(self.layers[name]):
                    values[id(variable)] = self.after[id(variable)]
        self._assign(values)
        with contextlib.ExitStack() as stack:
            for name in self.path.consumers:
                cut = _without(self.features(name), self.axis(name))
                stack.enter_context(changed_layer(self.layers[name], cut))
            _, self.output_without = self._record()


def _two_utilities(
    activation_magnitude,
    activation_deviation,
    outgoing_magnitude,
    incoming_magnitude,
):
    """The sum of two: for each step, JAX compiles for a second."""
    return functional.contribution(
        activation_magnitude, outgoing_magnitude
    ) + functional.overall(
        activation_deviation, outgoing_magnitude, incoming_magnitude
    )


@pytest.fixture(scope="module", autouse=True)
def _fast_compilation():
    """Compiling is what takes the time here, once for each path, on JAX."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    yield
    jax.config.update(option, before)


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def experiment(request):
    experiment = Experiment(request.param)
    if request.param.first:
        # Not every backend can do all with the channels first.
        try:
            experiment.model(experiment.x, training=True)
        except Exception as error:
            reason = f"{keras.backend.backend()}: {error}"
            pytest.skip(" ".join(reason.split())[:300])
    experiment.run()
    return experiment


def test_that_unit_alone_is_replaced(experiment):
    num_replaced = dict(experiment.num_replaced)
    assert num_replaced.pop("producer") == 1
    assert not any(num_replaced.values())
    age = experiment.after[id(experiment.layers["producer"].age)]
    assert age.tolist() == [float(unit != _UNIT) for unit in range(_UNITS)]


def test_output_layers_and_the_like_are_skipped(experiment):
    plastic = {
        name
        for name, layer in experiment.layers.items()
        if isinstance(layer, keras_plasticity.layers.PlasticLayer)
    }
    path = experiment.path
    skipped = plastic - set(experiment.num_replaced)
    assert skipped == set(path.skipped + path.merged)
    # That nobody reads the output of a model goes without saying.
    named = {
        name
        for name in plastic
        if any(f"'{name}': " in warning for warning in experiment.warnings)
    }
    assert named == set(path.merged)


def test_output_is_that_without_the_unit(experiment):
    np.testing.assert_allclose(
        experiment.output_after,
        experiment.output_without,
        rtol=1e-5,
        atol=1e-5,
    )
    # It had a part in it.
    difference = experiment.output_before - experiment.output_without
    assert np.abs(difference).max() > 0.01


def test_no_other_weight_changes(experiment):
    layers = experiment.layers
    producer = layers["producer"]
    expected = {key: v.copy() for key, v in experiment.before.items()}
    expected.update(experiment.of_the_passes())
    weight, index = _incoming(producer, _UNIT)
    expected[id(weight)][index] = NEW_WEIGHT
    index = _bias(producer, _UNIT)
    if index is not None:
        expected[id(producer.bias)][index] = 0
    for name in experiment.path.consumers:
        for feature in np.flatnonzero(experiment.features(name)):
            weight, index = _outgoing(layers[name], feature)
            expected[id(weight)][index] = 0
    for name in experiment.path.parameters:
        for variable, value in _parameters(layers[name]):
            # Seen as if there were a batch axis and all the others.
            value_before = expected[id(variable)]
            if value_before.ndim == 1:
                value_before[experiment.features(name)] = value
                continue
            axis = experiment.axis(name)
            by_feature = np.moveaxis(value_before[None], axis, 0)
            by_feature[experiment.features(name)] = value
    for variable in experiment.model.weights:
        if "statistics" in variable.path:
            continue
        np.testing.assert_array_equal(
            experiment.after[id(variable)],
            expected[id(variable)],
            err_msg=variable.path,
        )


def _parameters(layer):
    """The parameters of a layer for each unit, and their initial values."""
    initial = {"gamma": 1, "scale": 1, "beta": 0, "alpha": 0}
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    for name, value in initial.items():
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            yield variable, value


def test_utility_is_that_of_the_recorded_activations(experiment):
    before, layers = experiment.before, experiment.layers
    producer = layers["producer"]
    utilities, means, widths = [], [], []
    for name in experiment.path.consumers:
        h = np.moveaxis(experiment.activations[name], experiment.axis(name), 0)
        h = h.reshape(len(h), -1).astype("float64")
        utility, mean = np.zeros(_UNITS), np.zeros(_UNITS)
        for unit in range(_UNITS):
            features = experiment.unit_of_feature[name] == unit
            mean[unit] = h[features].mean()
            magnitude = np.abs(h[features]).mean(1)
            center = mean[unit]
            if experiment.path.own_means:
                center = h[features].mean(1, keepdims=True)
            deviation = np.abs(h[features] - center).mean(1)
            weights = []
            for feature in np.flatnonzero(features):
                weight, index = _outgoing(layers[name], feature)
                weights.append(np.abs(before[id(weight)][index]).reshape(-1))
            outgoing = np.mean(weights, axis=1)
            weight, index = _incoming(producer, unit)
            incoming = np.abs(before[id(weight)][index]).mean()
            utility[unit] = np.mean(
                magnitude * outgoing + deviation * outgoing / incoming
            )
        utilities.append(utility)
        means.append(mean)
        widths.append(np.size(weights))
    utility = np.average(utilities, axis=0, weights=widths)
    mean = np.mean(means, axis=0)
    # A replaced unit starts from nothing.
    utility[_UNIT] = mean[_UNIT] = 0
    for variable, expected in (
        (producer.utility, utility),
        (producer.mean_activation, mean),
    ):
        np.testing.assert_allclose(
            experiment.after[id(variable)], expected, rtol=1e-4, atol=1e-6
        )


class _Mixing(keras.layers.Layer):
    """A layer of one's own that adds units up, whichever axis counts them."""

    def build(self, input_shape):
        self.mixtures = [
            self.add_weight((size, size), initializer="ones")
            for size in (input_shape[-1], input_shape[1])
            if size is not None
        ]

    def call(self, x):
        for mixture in self.mixtures:
            x = ops.matmul(x, mixture)
            x = ops.swapaxes(x, 1, -1)
        return ops.swapaxes(x, 1, -1) if len(self.mixtures) == 1 else x


def _all_axes(x):
    return tuple(range(1, len(x.shape)))


# What cannot be known to keep units apart: the kind, a call of it, and the
# numbers of axes that it takes.
_ANY = (2, 3, 4, 5)
_ONES = {"kernel_initializer": "ones"}
_UNKNOWN = [
    ("Lambda", lambda x: keras.layers.Lambda(lambda y: 2 * y)(x), _ANY),
    ("Softmax", lambda x: keras.layers.Softmax(_all_axes(x))(x), _ANY),
    ("Dense", lambda x: keras.layers.Dense(x.shape[-1], **_ONES)(x), _ANY),
    ("Matmul", lambda x: _Mixing(name="mixing")(x), _ANY),
    ("Cumsum", lambda x: ops.cumsum(x, axis=-1), _ANY),
    ("Sort", lambda x: ops.sort(x, axis=-1), _ANY),
    ("Softmax", lambda x: ops.softmax(x, _all_axes(x)), _ANY),
    (
        "LSTM",
        lambda x: keras.layers.LSTM(
            x.shape[-1],
            recurrent_initializer="ones",
            return_sequences=True,
            **_ONES,
        )(x),
        (3,),
    ),
    (
        "MultiHeadAttention",
        lambda x: keras.layers.MultiHeadAttention(1, 2, **_ONES)(x, x),
        (3, 4),
    ),
]


def _assert_refused(path, choose):
    """`choose` takes the number of axes where something is to be inserted."""
    chosen = []

    def insert(x):
        chosen.append(choose(len(x.shape)))
        return chosen[-1][1](x)

    model = path.build(insert)
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.0)
    )
    with pytest.raises(ValueError, match="'producer' cannot be followed") as e:
        optimizer.build(model.trainable_variables)
    assert re.search(rf"'\w+' \(`{chosen[-1][0]}`\)", str(e.value))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_no_path_with_something_unknown_is_followed(path):
    def choose(rank):
        fitting = [each for each in _UNKNOWN if rank in each[2]]
        return fitting[PATHS.index(path) % len(fitting)]

    _assert_refused(path, choose)


@pytest.mark.parametrize("unknown", _UNKNOWN, ids=lambda each: each[0])
def test_nothing_unknown_is_followed(unknown):
    (path,) = [path for path in PATHS if path.name == "dense-sequence"]
    _assert_refused(path, lambda rank: unknown)


def test_a_unit_that_is_broadcast_is_refused():
    inputs = keras.Input((5,))
    x = keras_plasticity.layers.Dense(1, name="producer")(inputs)
    x = x + np.ones((1, 3), "float32")
    model = keras.Model(inputs, keras_plasticity.layers.Dense(2)(x))
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.0)
    )
    with pytest.raises(ValueError, match=r"\(`Add`\) repeats a unit"):
        optimizer.build(model.trainable_variables)


def test_paths_have_names_of_their_own():
    assert len({path.name for path in PATHS}) == len(PATHS) >= 40
