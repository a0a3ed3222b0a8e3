"""Keras' legacy files, of which the name ends with `.h5`."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import optimizers
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

# Units are replaced within a few steps.
_OFTEN = {"replacement_rate": 0.2, "maturity_threshold": 1, "seed": 3}


def _sgd(**kwargs):
    return keras.optimizers.SGD(0.05, momentum=0.5, **kwargs)


def _continual_backprop(inner=None):
    return optimizers.ContinualBackprop(inner or _sgd(), **_OFTEN)


_OPTIMIZERS = {
    "continual_backprop": _continual_backprop,
    "adam_accumulated": lambda: _continual_backprop(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    ),
    "loss_scale_inside": lambda: _continual_backprop(
        keras.optimizers.LossScaleOptimizer(_sgd(), initial_scale=4.0)
    ),
    "redo": lambda: optimizers.ReDo(_sgd(), period=2, threshold=0.5, seed=3),
    "self_normalized_resets": lambda: optimizers.SelfNormalizedResets(
        _sgd(), seed=3
    ),
    "l2": lambda: optimizers.L2(_sgd()),
    "shrink_and_perturb": lambda: optimizers.ShrinkAndPerturb(_sgd(), seed=3),
    "upgd": lambda: optimizers.UPGD(_sgd(), seed=3),
    "unit_upgd": lambda: optimizers.UnitUPGD(_sgd(), seed=3),
    "selective_weight_reinitialization": lambda: (
        optimizers.SelectiveWeightReinitialization(_sgd(), period=2, seed=3)
    ),
    "trac": lambda: optimizers.TRAC(_sgd(), betas=[0.5, 0.9]),
    "hare_and_tortoise": lambda: optimizers.HareAndTortoise(_sgd(), period=2),
    "nested": lambda: optimizers.ShrinkAndPerturb(
        optimizers.L2(_continual_backprop()), seed=3
    ),
}


def _compile(model, optimizer):
    # Not "mse": of a string, Keras' own loader makes an error.
    model.compile(optimizer, keras.losses.MeanSquaredError())
    return model


def _fit(model, steps=4):
    x, y = make_data(4 * steps)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)


def _save_and_load(model, folder):
    path = folder / "model.h5"
    model.save(path)
    return keras.models.load_model(path)


def _predict(model):
    return model.predict(make_data(5)[0], verbose=0)


def _assert_equal(actual, expected):
    """All values of two trained models and of their optimizers."""
    actual = actual.weights + actual.optimizer.variables
    expected = expected.weights + expected.optimizer.variables
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b), b.path)


def _check_continues(model, folder):
    loaded = _save_and_load(model, folder)
    np.testing.assert_array_equal(_predict(loaded), _predict(model))
    _fit(model)
    _fit(loaded)
    _assert_equal(loaded, model)


@pytest.mark.parametrize(
    "name", mostly_slow(_OPTIMIZERS, "continual_backprop", "nested")
)
def test_a_loaded_model_continues_as_if_never_stopped(name, tmp_path):
    model = _compile(make_model(activation="relu"), _OPTIMIZERS[name]())
    _fit(model)
    _check_continues(model, tmp_path)


def test_model_that_was_never_trained(tmp_path):
    _check_continues(_compile(make_model(), _continual_backprop()), tmp_path)


def _nested():
    inputs = keras.Input((4,))
    part = keras_plasticity.layers.Dense(6, activation="relu")
    x = keras.Sequential([keras.Input((4,)), part])(inputs)
    x = keras.layers.Concatenate()([x, keras_plasticity.layers.Dense(2)(x)])
    return keras.Model(inputs, keras_plasticity.layers.Dense(3)(x))


def _made_plastic():
    return keras_plasticity.models.make_plastic(make_plain_model())


@pytest.mark.parametrize("make", mostly_slow([_nested, _made_plastic], _nested))
def test_models_of_other_kinds(make, tmp_path):
    model = _compile(make(), _continual_backprop())
    _fit(model)
    assert sum(model.optimizer.num_replaced().values()) > 0
    _check_continues(model, tmp_path)


def test_step_by_hand_after_loading(tmp_path):
    model = _compile(make_model(), _continual_backprop())
    _fit(model)
    loaded = _save_and_load(model, tmp_path)
    iterations = int(model.optimizer.iterations)
    for each in (model, loaded):
        variables = each.trainable_variables
        grads = [keras.ops.zeros(v.shape) for v in variables]
        each.optimizer.apply(grads, variables)
        assert int(each.optimizer.iterations) == iterations + 1
    _assert_equal(loaded, model)


@pytest.mark.slow
def test_loss_scaling_outside(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(_continual_backprop())
    model = _compile(make_model(), optimizer)
    _fit(model)
    loaded = _save_and_load(model, tmp_path)
    np.testing.assert_array_equal(_predict(loaded), _predict(model))
    # Keras' loader has lost the state; its own optimizers fail here, too.
    with pytest.raises(ValueError, match="without variables.*with a new opt"):
        _fit(loaded)
    loaded = _save_and_load(model, tmp_path)
    _compile(loaded, _continual_backprop())
    _fit(loaded)


def test_state_that_does_not_fit_is_told():
    optimizer = _continual_backprop()
    weights = [np.zeros(())] * 3
    optimizer.set_weights(weights)
    model = make_model()
    with pytest.warns(UserWarning, match="starts anew.*does not fit"):
        optimizer.build(model.trainable_variables)
    _compile(model, optimizer)
    _fit(model)
    with pytest.raises(ValueError, match="one array for each of the"):
        optimizer.set_weights(weights)


def test_set_weights_reaches_the_inner_optimizer():
    models = [_compile(make_model(), _continual_backprop()) for _ in range(2)]
    trained, other = models
    _fit(trained)
    other.optimizer.build(other.trainable_variables)
    other.set_weights(trained.get_weights())
    other.optimizer.set_weights(
        [to_numpy(v) for v in trained.optimizer.variables]
    )
    _assert_equal(other, trained)


@pytest.mark.parametrize("kind", ["l2", "continual_backprop"])
def test_model_of_which_nothing_is_trained(kind):
    model = make_model()
    model.trainable = False
    before = model.get_weights()
    optimizer = _OPTIMIZERS[kind]()
    _compile(model, optimizer)
    if keras.backend.backend() == "jax":
        _fit(model)
    else:
        with pytest.warns(UserWarning, match="any trainable weights"):
            _fit(model)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    model.trainable = True
    _compile(model, optimizer)
    _fit(model)
    assert int(optimizer.iterations) == 4


@pytest.mark.parametrize("by_name", [False, True])
def test_load_weights(by_name, tmp_path):
    model = _compile(make_model(), _continual_backprop())
    _fit(model)
    path = tmp_path / "model.h5"
    model.save(path)
    other = make_model(seed=1)
    other.load_weights(path, by_name=by_name)
    np.testing.assert_array_equal(_predict(other), _predict(model))


@pytest.mark.parametrize("by_name", [False, True])
def test_weights_of_the_plain_twin_are_refused(by_name, tmp_path):
    """Keras counts the weights of each layer in such a file."""
    path = tmp_path / "model.h5"
    plain, plastic = make_plain_model(), make_model(seed=1)
    for source, target in [(plain, plastic), (plastic, plain)]:
        _compile(source, _sgd()).save(path)
        with pytest.raises(ValueError, match="Weight count mismatch"):
            target.load_weights(path, by_name=by_name)
    # The way from the one to the other.
    _compile(plain, _sgd()).save(path)
    loaded = keras.models.load_model(path)
    keras_plasticity.models.make_plastic(loaded)
    np.testing.assert_array_equal(_predict(loaded), _predict(plain))
