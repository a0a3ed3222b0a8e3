"""Loaded and cloned models whose plastic layers are inside parts of the model.

Keras builds the optimizer of such a model before it ever calls the model, so
that no layer knows of more than the part it belongs to.
"""

import pickle

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity import optimizers
from keras_plasticity import training
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(48, 8)).astype("float32")
_Y = np.sin(_X[:, :2] + _X[:, 2:4])

# Units are replaced within a few steps.
_OFTEN = {"replacement_rate": 0.2, "maturity_threshold": 1, "seed": 3}
_NOT_CALLED = "has not been called yet.*Call the model on data once"


def _hidden():
    return [layers.Dense(6, "relu"), layers.Dense(5, "relu")]


def _last():
    # A plain layer reads its units.
    return layers.Dense(4, replaceable=False)


def _sequential_part():
    return keras.Sequential([*_hidden(), _last()])


def _functional_part():
    x = inputs = keras.Input((8,))
    for layer in [*_hidden(), _last()]:
        x = layer(x)
    return keras.Model(inputs, x)


def _convolutional_part():
    return keras.Sequential(
        [
            keras.layers.Reshape((8, 1)),
            layers.Conv1D(5, 3, activation="relu"),
            layers.Conv1D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            _last(),
        ]
    )


def _part_of_a_part():
    return keras.Sequential(
        [keras.Input((8,)), _sequential_part(), keras.layers.Dense(4)]
    )


def _several_parts():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.Sequential([keras.Input((8,)), *_hidden()]),
            keras.Sequential([layers.Dense(4, "relu"), _last()]),
        ]
    )


_PARTS = {
    "sequential": _sequential_part,
    "functional": _functional_part,
    "convolutional": _convolutional_part,
    "part_of_a_part": _part_of_a_part,
    "several": _several_parts,
}


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.part = _PARTS[kind]()
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(self.part(x))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def _in_sequential(kind):
    return keras.Sequential(
        [keras.Input((8,)), _PARTS[kind](), keras.layers.Dense(2)]
    )


def _in_functional(kind):
    inputs = keras.Input((8,))
    x = _PARTS[kind]()(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def _sgd():
    return keras.optimizers.SGD(0.05, momentum=0.5)


def _continual_backprop(inner=None):
    return optimizers.ContinualBackprop(inner or _sgd(), **_OFTEN)


_OPTIMIZERS = {
    "continual_backprop": _continual_backprop,
    "accumulating_adam": lambda: _continual_backprop(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    ),
    "inside_another": lambda: optimizers.ShrinkAndPerturb(
        optimizers.L2(_continual_backprop()), seed=3
    ),
    "around_another": lambda: _continual_backprop(optimizers.L2(_sgd())),
    "loss_scale": lambda: _continual_backprop(
        keras.optimizers.LossScaleOptimizer(_sgd(), initial_scale=4.0)
    ),
    "loss_scale_between": lambda: optimizers.L2(
        keras.optimizers.LossScaleOptimizer(
            _continual_backprop(), initial_scale=4.0
        )
    ),
    "redo": lambda: optimizers.ReDo(_sgd(), period=2, threshold=0.9, seed=3),
}


def _compiled(outer=_in_sequential, kind="sequential", optimizer=None):
    model = outer(kind)
    optimizer = _OPTIMIZERS[optimizer or "continual_backprop"]()
    # Not "mse": of a string, Keras' own loader of `.h5` files makes an error.
    model.compile(optimizer, keras.losses.MeanSquaredError())
    return model


def _fit(model, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    model.fit(_X, _Y, **kwargs)


def _trained(*args, **kwargs):
    model = _compiled(*args, **kwargs)
    _fit(model)
    return model


def _reset_optimizer(model):
    optimizer = model.optimizer
    while not isinstance(optimizer, optimizers.UnitResetOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _num_replaced(model):
    return list(_reset_optimizer(model).num_replaced().values())


def _save_and_load(model, folder, name="model.keras"):
    model.save(folder / name)
    return keras.models.load_model(folder / name)


def _assert_equal(actual, expected):
    """All values of two trained models and of their optimizers."""
    assert _num_replaced(actual) == _num_replaced(expected)
    actual = [*actual.weights, *actual.optimizer.variables]
    expected = [*expected.weights, *expected.optimizer.variables]
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), b.path)


def _check_continues(loaded, model):
    before = sum(_num_replaced(model))
    for each in (model, loaded):
        _fit(each)
    assert sum(_num_replaced(model)) > before > 0
    _assert_equal(loaded, model)


_OUTER = {
    "sequential": _in_sequential,
    "functional": _in_functional,
    "subclassed": Subclassed,
}
_CASES = [(outer, kind) for outer in _OUTER for kind in _PARTS]
_KEPT_CASES = [
    ("sequential", "part_of_a_part"),
    ("sequential", "several"),
    ("functional", "sequential"),
    ("subclassed", "convolutional"),
]


@pytest.mark.parametrize("outer, kind", mostly_slow(_CASES, *_KEPT_CASES))
def test_a_loaded_model_continues_as_if_never_stopped(outer, kind, tmp_path):
    model = _trained(_OUTER[outer], kind)
    _check_continues(_save_and_load(model, tmp_path), model)


@pytest.mark.parametrize(
    "name", mostly_slow(_OPTIMIZERS, "inside_another", "redo")
)
def test_optimizers(name, tmp_path):
    model = _trained(optimizer=name)
    _check_continues(_save_and_load(model, tmp_path), model)


@pytest.mark.parametrize(
    "kind", mostly_slow(["sequential", "functional"], "functional")
)
def test_clone(kind):
    model = _trained(_OUTER[kind])
    clone = keras.models.clone_model(model)
    _fit(clone)
    assert min(_num_replaced(clone)) > 0


def test_pickle():
    model = _trained()
    _check_continues(pickle.loads(pickle.dumps(model)), model)


def test_loss_scale_around(tmp_path):
    model = _in_sequential("sequential")
    model.compile(
        keras.optimizers.LossScaleOptimizer(
            _continual_backprop(), initial_scale=4.0
        ),
        "mse",
    )
    _fit(model)
    _check_continues(_save_and_load(model, tmp_path), model)


def test_legacy_file(tmp_path):
    model = _trained()
    _check_continues(_save_and_load(model, tmp_path, "model.h5"), model)


def test_recycled_after_loading(tmp_path):
    model = _trained(optimizer="redo")
    loaded = _save_and_load(model, tmp_path)
    for each in (model, loaded):
        each.optimizer.recycle(each, _X)
    _assert_equal(loaded, model)


def test_trained_by_online_trainer(tmp_path):
    class Stream:
        def __len__(self):
            return 1

        def task(self, index):
            return _X, _Y

    model = _trained()
    loaded = _save_and_load(model, tmp_path)
    for each in (model, loaded):
        training.OnlineTrainer(each).fit(Stream(), batch_size=4)
    _assert_equal(loaded, model)


def test_optimizer_that_cannot_be_built_remains_unbuilt():
    model = keras.Sequential(
        [keras.Input((8,)), *_hidden(), keras.layers.Dense(2)]
    )
    optimizer = _continual_backprop()
    model.compile(optimizer, "mse")
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be followed"):
            optimizer.build(model.trainable_variables)
        assert not optimizer.built


@keras.saving.register_keras_serializable(package="tests")
class Opaque(keras.Model):
    """Its `call` cannot be traced with symbolic inputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b = _hidden()
        self.c = layers.Dense(2)

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("no symbols here")
        return self.c(self.b(self.a(x)))

    def connect(self):
        keras_plasticity.connect(self.a, self.b)
        keras_plasticity.connect(self.b, self.c)


class TestStatedAfterLoading:
    """Statements of `connect` are not saved, and the optimizer waits for them.

    Its saved state waits with it.
    """

    @staticmethod
    def _trained(optimizer="continual_backprop"):
        model = Opaque()
        model(_X)
        model.connect()
        model.compile(_OPTIMIZERS[optimizer](), "mse")
        _fit(model)
        return model

    @staticmethod
    def _check_continues(loaded, model):
        assert not loaded.optimizer.built
        loaded.connect()
        _check_continues(loaded, model)

    @pytest.mark.parametrize(
        "name", mostly_slow(_OPTIMIZERS, "loss_scale_between")
    )
    def test_continues_as_if_never_stopped(self, name, tmp_path):
        model = self._trained(name)
        self._check_continues(_save_and_load(model, tmp_path), model)

    def test_without_a_statement(self, tmp_path):
        loaded = _save_and_load(self._trained(), tmp_path)
        with pytest.raises(ValueError, match="cannot be traced.*connect"):
            _fit(loaded)

    def test_saved_again_before_it_is_trained(self, tmp_path):
        model = self._trained()
        loaded = _save_and_load(model, tmp_path)
        again = _save_and_load(loaded, tmp_path)
        # Into an optimizer that is built, too.
        other = self._trained()
        loaded.save_weights(tmp_path / "all.weights.h5")
        other.load_weights(tmp_path / "all.weights.h5")
        _assert_equal(other, model)
        self._check_continues(again, model)

    def test_what_was_changed_before_training_remains(self, tmp_path):
        model = self._trained()
        loaded = _save_and_load(model, tmp_path)
        for each in (model, loaded):
            each.optimizer.learning_rate = 0.01
            each.optimizer.replacement_rate = 0.1
            each.optimizer.maturity_threshold = 2
        self._check_continues(loaded, model)
        assert float(loaded.optimizer.learning_rate) == pytest.approx(0.01)
        assert loaded.optimizer.replacement_rate == 0.1
        assert loaded.optimizer.maturity_threshold == 2

    @pytest.mark.parametrize("name", ["continual_backprop", "inside_another"])
    def test_built_by_whatever_needs_the_units(self, name, tmp_path):
        model = self._trained(name)
        loaded = _save_and_load(model, tmp_path)
        loaded.connect()
        assert not loaded.optimizer.built
        assert _num_replaced(loaded) == _num_replaced(model)
        _assert_equal(loaded, model)


def test_weights_loaded_before_the_optimizer_is_built(tmp_path):
    model = _trained()
    model.save_weights(tmp_path / "all.weights.h5")
    other = _compiled()
    other.load_weights(tmp_path / "all.weights.h5")
    assert not other.optimizer.built
    _check_continues(other, model)


def test_state_that_does_not_fit_is_told(tmp_path):
    model = _trained(optimizer="redo")
    model.save_weights(tmp_path / "all.weights.h5")
    other = _compiled()
    other.load_weights(tmp_path / "all.weights.h5")
    with pytest.warns(UserWarning, match="starts anew.*does not fit"):
        other.optimizer.build(other.trainable_variables)
    _fit(other)


@pytest.mark.parametrize("name", ["continual_backprop", "inside_another"])
def test_built_by_hand_before_the_model_is_called(name):
    model = _in_sequential("sequential")
    optimizer = inside = _OPTIMIZERS[name]()
    while not isinstance(inside, optimizers.UnitResetOptimizer):
        inside = inside.inner_optimizer
    variables = model.trainable_variables
    optimizer.build(variables)
    assert not optimizer.built and inside.num_replaced() == {}
    gradients = [keras.ops.zeros(v.shape) for v in variables]
    for arguments in ((gradients, variables), (gradients,)):
        with pytest.raises(ValueError, match=_NOT_CALLED):
            optimizer.apply(*arguments)
    with pytest.raises(ValueError, match=_NOT_CALLED):
        optimizer.stateless_apply(optimizer.variables, gradients, variables)
    with pytest.raises(ValueError, match=_NOT_CALLED):
        inside.observe(model, _X)
    assert not optimizer.built and not inside.built
    model(_X)
    optimizer.apply(gradients)
    assert optimizer.built and len(inside.num_replaced()) == 2
    assert int(optimizer.iterations) == 1
