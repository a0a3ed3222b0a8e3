"""Loaded models whose plastic layers are all inside a part of the model.

Keras builds the optimizer of a model that it loads or clones before it ever
calls the model. Only a call tells these layers that there is more than the part
they belong to, so the optimizer has to wait, and its saved state with it.
"""

import pickle

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity import optimizers
from keras_plasticity import training
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()

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


_PARTS = {
    "sequential": _sequential_part,
    "functional": _functional_part,
    "convolutional": _convolutional_part,
    "part_of_a_part": _part_of_a_part,
}


@keras.saving.register_keras_serializable(package="tests")
class _Subclassed(keras.Model):
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
    assert not loaded.optimizer.built
    before = sum(_num_replaced(model))
    for each in (model, loaded):
        _fit(each)
    assert sum(_num_replaced(model)) > before > 0
    _assert_equal(loaded, model)


_OUTER = {
    "sequential": _in_sequential,
    "functional": _in_functional,
    "subclassed": _Subclassed,
}
_CASES = [(outer, kind) for outer in _OUTER for kind in _PARTS]
_KEPT_CASES = [
    ("sequential", "part_of_a_part"),
    ("functional", "sequential"),
    ("subclassed", "convolutional"),
]


@pytest.mark.parametrize("outer, kind", mostly_slow(_CASES, *_KEPT_CASES))
def test_a_loaded_model_continues_as_if_never_stopped(outer, kind, tmp_path):
    model = _trained(_OUTER[outer], kind)
    _check_continues(_save_and_load(model, tmp_path), model)


@pytest.mark.parametrize(
    "name", mostly_slow(_OPTIMIZERS, "inside_another", "loss_scale", "redo")
)
def test_optimizers(name, tmp_path):
    model = _trained(optimizer=name)
    _check_continues(_save_and_load(model, tmp_path), model)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_clone(kind):
    model = _trained(_OUTER[kind])
    clone = keras.models.clone_model(model)
    _fit(clone)
    assert min(_num_replaced(clone)) > 0


def test_pickle():
    model = _trained()
    _check_continues(pickle.loads(pickle.dumps(model)), model)


def test_saved_again_before_it_is_trained(tmp_path):
    model = _trained()
    loaded = _save_and_load(model, tmp_path)
    again = _save_and_load(loaded, tmp_path)
    # Into an optimizer that is built, too.
    other = _trained()
    loaded.save_weights(tmp_path / "all.weights.h5")
    other.load_weights(tmp_path / "all.weights.h5")
    _assert_equal(other, model)
    _check_continues(again, model)


def test_weights_loaded_before_the_optimizer_is_built(tmp_path):
    model = _trained()
    model.save_weights(tmp_path / "all.weights.h5")
    other = _compiled()
    other.load_weights(tmp_path / "all.weights.h5")
    _check_continues(other, model)


def test_model_that_was_never_trained(tmp_path):
    model = _compiled()
    loaded = _save_and_load(model, tmp_path)
    for each in (model, loaded):
        _fit(each)
    _assert_equal(loaded, model)


def test_what_was_changed_before_training_remains(tmp_path):
    model = _trained()
    loaded = _save_and_load(model, tmp_path)
    for each in (model, loaded):
        each.optimizer.learning_rate = 0.01
        each.optimizer.replacement_rate = 0.1
        each.optimizer.maturity_threshold = 2
    _check_continues(loaded, model)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.01)
    assert loaded.optimizer.replacement_rate == 0.1
    assert loaded.optimizer.maturity_threshold == 2


def test_state_that_does_not_fit_is_told(tmp_path):
    _trained(kind="part_of_a_part").save_weights(tmp_path / "a.weights.h5")
    model = _compiled()
    model.optimizer.set_weights([np.zeros(())] * 3)
    model(_X)
    with pytest.warns(UserWarning, match="starts anew.*does not fit"):
        model.optimizer.build(model.trainable_variables)
    _fit(model)


@pytest.mark.parametrize("name", ["continual_backprop", "inside_another"])
def test_built_by_hand_before_the_model_is_called(name):
    model = _compiled(optimizer=name)
    optimizer, inside = model.optimizer, _reset_optimizer(model)
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
    assert all(not each.built for each in (optimizer, inside))
    model(_X)
    optimizer.apply(gradients)
    assert optimizer.built and len(inside.num_replaced()) == 2
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("name", ["continual_backprop", "inside_another"])
def test_called_after_loading(name, tmp_path):
    """Whatever asks for the units builds the optimizer, with its state."""
    model = _trained(optimizer=name)
    loaded = _save_and_load(model, tmp_path)
    loaded.predict(_X, verbose=0)
    _assert_equal(loaded, model)


def test_recycled_after_loading(tmp_path):
    model = _trained(optimizer="redo")
    loaded = _save_and_load(model, tmp_path)
    loaded(_X)
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


def test_legacy_file(tmp_path):
    model = _trained()
    loaded = _save_and_load(model, tmp_path, "model.h5")
    if _BACKEND == "jax":
        # Its loader has built the loss, so that `fit` does not call the model
        # before it builds the optimizer.
        with pytest.raises(ValueError, match=_NOT_CALLED):
            _fit(loaded)
        loaded(_X)
    _check_continues(loaded, model)


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
