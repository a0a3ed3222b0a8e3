"""What Keras offers, around a convolutional plastic model."""

import functools

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()
_STEPS = 4
# Each layer loses some units within four steps, the last one included.
_OFTEN = {"replacement_rate": 0.3, "maturity_threshold": 1, "seed": 3}
# A TensorFlow graph takes longer to make than to do without.
_EAGERLY = {"run_eagerly": _BACKEND == "tensorflow"}
# Who reads the units of which layer.
_READERS = {"conv_0": "conv_1", "conv_1": "dense_0", "dense_0": "dense_1"}


pytestmark = pytest.mark.usefixtures("fast_compilation")


def _make_model(source=layers, **kwargs):
    """A small convolutional network, with weights from NumPy."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            source.Conv2D(4, 3, name="conv_0", **kwargs),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            source.Conv2D(5, 2, activation="relu", name="conv_1", **kwargs),
            keras.layers.Flatten(),
            source.Dense(6, activation="relu", name="dense_0", **kwargs),
            source.Dense(3, name="dense_1", **kwargs),
        ],
        name="model",
    )
    rng = np.random.default_rng(0)
    for variable in _ordinary(model):
        if variable.name == "kernel":
            scale = np.prod(variable.shape[:-1]) ** -0.5
            variable.assign(rng.normal(0.1 * scale, scale, variable.shape))
    return model


def _ordinary(model):
    """The weights that a plain model has, too."""
    return [v for v in model.weights if "statistics" not in v.path]


def _make_data(steps=_STEPS, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (4 * steps, 8, 8, 2)).astype("float32")
    return x, rng.normal(0, 1, (4 * steps, 3)).astype("float32")


def _fit(model, data, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(*data, **kwargs)


def _sgd(**kwargs):
    return keras.optimizers.SGD(0.05, momentum=0.5, **kwargs)


def _run(inner=None, data=None, model=None, **kwargs):
    """A trained model."""
    model = model or _make_model()
    optimizer = ContinualBackprop(inner or _sgd(), **_OFTEN)
    model.compile(optimizer, "mse", **{**_EAGERLY, **kwargs})
    _fit(model, data or _make_data())
    return model


@functools.cache
def _reference():
    """Weights and numbers of replaced units of a run without any extras."""
    model = _run(run_eagerly=False)
    _check(model)
    return _values(_ordinary(model)), _num_replaced(model)


def _continual_backprop(model):
    optimizer = model.optimizer
    while not isinstance(optimizer, ContinualBackprop):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _num_replaced(model):
    return _continual_backprop(model).num_replaced()


def _values(variables):
    return [to_numpy(v) for v in variables]


def _assert_equal(variables, values, **tolerance):
    """Bit for bit, or within `rtol` and `atol`."""
    assert len(variables) == len(values) > 0
    for variable, value in zip(variables, values):
        compare = np.testing.assert_array_equal
        if tolerance:
            compare = functools.partial(np.testing.assert_allclose, **tolerance)
        compare(to_numpy(variable), value, err_msg=variable.path)


def _outgoing(model, name, unit):
    """The weights that leave a unit."""
    kernel = to_numpy(model.get_layer(_READERS[name]).kernel)
    if name == "conv_1":
        return kernel[unit::5]  # Behind a `Flatten`.
    return kernel[..., unit, :]


def _check(model):
    """Units were replaced, the newest of them have all that is due to them."""
    for variable in model.weights:
        assert np.all(np.isfinite(to_numpy(variable))), variable.path
    assert set(_num_replaced(model)) == set(_READERS)
    assert all(_num_replaced(model).values())
    new_units = 0
    for name in _READERS:
        layer = model.get_layer(name)
        reader = model.get_layer(_READERS[name])
        is_old = np.full(reader.bias.shape, True)
        if reader.name in _READERS:
            # The weights of a new unit are new, whatever it reads.
            is_old = to_numpy(reader.age) > 0
        for unit, age in enumerate(to_numpy(layer.age)):
            outgoing = _outgoing(model, name, unit)[..., is_old]
            if age == to_numpy(layer.age).max():
                assert np.any(outgoing != 0)
            if age > 0:
                continue
            new_units += 1
            np.testing.assert_array_equal(outgoing, 0.0)
            assert to_numpy(layer.bias)[unit] == 0
            if name == "conv_0":
                norm = model.get_layer("norm")
                assert to_numpy(norm.gamma)[unit] == 1
                assert to_numpy(norm.beta)[unit] == 0
    assert new_units > 0


# What changes how a step is computed, and not what comes out.


def test_run_eagerly():
    models = []
    for run_eagerly in (False, True):
        model = _make_model()
        optimizer = ContinualBackprop(
            _sgd(), replacement_rate=0.5, maturity_threshold=0, seed=3
        )
        model.compile(optimizer, "mse", run_eagerly=run_eagerly)
        # A single step, for JAX compiles the loops of each one anew.
        _fit(model, _make_data(1))
        _check(model)
        models.append(model)
    weights = _values(models[0].weights)
    _assert_equal(models[1].weights, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    _BACKEND == "torch", reason="Keras has no such thing on PyTorch."
)
def test_steps_per_execution():
    model = _run(steps_per_execution=_STEPS, run_eagerly=False)
    weights, num_replaced = _reference()
    assert _num_replaced(model) == num_replaced
    _assert_equal(_ordinary(model), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    _BACKEND != "tensorflow", reason="JAX is always compiled by XLA."
)
def test_xla_on_tensorflow():
    # It has random numbers of its own, so there are none of them here.
    new = keras.initializers.Constant(0.1)
    models = [
        _run(model=_make_model(kernel_initializer=new), **kwargs)
        for kwargs in (
            {"jit_compile": True, "run_eagerly": False},
            {"run_eagerly": True},
        )
    ]
    _check(models[0])
    assert _num_replaced(models[0]) == _num_replaced(models[1])
    weights = _values(models[1].weights)
    _assert_equal(models[0].weights, weights, rtol=1e-3, atol=1e-4)


# PyTorch's compiler sets off warnings by what it does to look into a step.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long  # Half a minute, and with C++ in `compiled_steps_test.py`.
@pytest.mark.skipif(_BACKEND != "torch", reason="It is a part of PyTorch.")
def test_torch_compile(monkeypatch):
    import torch

    # All but the compilation by C++, for which there may be no compiler.
    compile_ = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile_)
    data = _make_data()[0][:, 0, :, 0], _make_data()[1]
    models = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(6, activation="relu"),
                layers.Dense(3),
            ]
        )
        model = _run(model=model, data=data, jit_compile=jit_compile)
        assert all(_num_replaced(model).values())
        models.append(model)
    _assert_equal(models[1].weights, _values(models[0].weights), rtol=1e-5)


def test_train_on_batch():
    model = _make_model()
    model.compile(ContinualBackprop(_sgd(), **_OFTEN), "mse", **_EAGERLY)
    x, y = _make_data()
    for i in range(0, len(x), 4):
        model.train_on_batch(x[i : i + 4], y[i : i + 4])
    weights, num_replaced = _reference()
    assert _num_replaced(model) == num_replaced
    _assert_equal(_ordinary(model), weights, rtol=1e-5, atol=1e-6)


def test_gradient_accumulation():
    # Each batch twice, so that batch normalization sees the same.
    x, y = [
        a.reshape(_STEPS, 4, *a.shape[1:])
        .repeat(2, 0)
        .reshape(-1, *a.shape[1:])
        for a in _make_data()
    ]
    model = _run(_sgd(gradient_accumulation_steps=2), data=(x, y))
    _check(model)
    weights, num_replaced = _reference()
    assert _num_replaced(model) == num_replaced
    for variable, value in zip(_ordinary(model), weights):
        if "moving" not in variable.name:
            np.testing.assert_allclose(
                to_numpy(variable), value, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("kind", ["by_path", "by_function"])
def test_multi_optimizer(kind):
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("This Keras has no `MultiOptimizer`.")
    make = {"conv": _sgd, "other": _sgd}
    if kind == "by_path":
        choice = keras.optimizers.OptimizerMap(make["other"]())
        choice[".*conv_.*"] = make["conv"]()
    else:
        made = {}

        def choice(variable):
            key = "conv" if "conv" in variable.path else "other"
            return made.setdefault(key, make[key]())

    inner = keras.optimizers.MultiOptimizer(choice)
    # Two of the same settings are one, momenta of replaced units included.
    model = _run(inner)
    assert len(inner.optimizers) == 2
    _check(model)
    weights, num_replaced = _reference()
    assert _num_replaced(model) == num_replaced
    _assert_equal(_ordinary(model), weights, rtol=1e-5, atol=1e-6)


# What the inner optimizer, or the layers, do besides.

_EXTRAS = {
    "clipnorm_and_ema": (
        lambda: _sgd(clipnorm=0.05, use_ema=True, ema_momentum=0.5),
        {},
    ),
    "global_clipnorm": (lambda: _sgd(global_clipnorm=0.1), {}),
    "clipvalue_and_weight_decay": (
        lambda: _sgd(clipvalue=0.01, weight_decay=0.1),
        {},
    ),
    "adamw_and_regularizers": (
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        {"kernel_regularizer": "l2", "activity_regularizer": "l1"},
    ),
}


@pytest.mark.parametrize("name", _EXTRAS)
def test_extras_are_those_of_the_plain_model(name):
    make_optimizer, kwargs = _EXTRAS[name]
    plain = _make_model(keras.layers, **kwargs)
    plain.compile(make_optimizer(), "mse", **_EAGERLY)
    plastic = _make_model(**kwargs)
    plastic.compile(
        ContinualBackprop(
            make_optimizer(), **{**_OFTEN, "maturity_threshold": _STEPS}
        ),
        "mse",
        **_EAGERLY,
    )
    # As long as no unit is mature, the two are the same.
    losses = [_fit(m, _make_data()).history["loss"] for m in (plain, plastic)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    _assert_equal(
        _ordinary(plastic), _values(plain.weights), rtol=1e-5, atol=1e-7
    )
    assert not any(_num_replaced(plastic).values())
    without = _make_model(keras.layers)
    assert any(
        np.any(to_numpy(v) != to_numpy(w))
        for v, w in zip(plain.weights, without.weights)
    )
    if "ema" not in name:
        _fit(plastic, _make_data(seed=2))
        _check(plastic)
        return
    # On JAX, Keras cannot go on after the averages have taken the place of
    # the weights, not even with a plain model.
    plastic = _run(make_optimizer())
    assert all(_num_replaced(plastic).values())
    assert all(np.all(np.isfinite(v)) for v in _values(plastic.weights))


def test_kernel_constraint():
    # The optimizer applies it before units are replaced: new weights come from
    # the initializer as they are, and are under it from the next update on.
    model = _run(
        model=_make_model(
            kernel_constraint="non_neg",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.5),
        )
    )
    for _ in range(2):
        _check(model)
        replaced_before, negative = 0, 0
        for name in (*_READERS, "dense_1"):
            layer = model.get_layer(name)
            age = to_numpy(layer.age)
            kernel = to_numpy(layer.kernel)
            is_old = np.full(age.shape, True)
            if name in _READERS:
                is_old = age > 0
                replaced_before += np.sum(is_old & (age < age.max()))
            assert np.all(kernel[..., is_old] >= 0)
            negative += np.sum(kernel[..., ~is_old] < 0)
        assert replaced_before > 0 and negative > 0
        _fit(model, _make_data(1, seed=2))


@pytest.fixture
def _policy(request):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    "_policy", ["mixed_float16", "mixed_bfloat16"], indirect=True
)
def test_mixed_precision(_policy):
    model = _run(data=_make_data(2 * _STEPS))
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (_policy == "mixed_float16")
    assert model.get_layer("conv_1").compute_dtype == _policy[len("mixed_") :]
    assert {v.dtype for v in model.weights} == {"float32"}
    _check(model)
    # The first steps overflow, until the scale of the loss fits.
    updates = int(to_numpy(_continual_backprop(model).iterations))
    assert updates >= _STEPS if is_scaled else updates == 2 * _STEPS
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("conv_1").age).max(), updates
    )
    # How many units are due is a matter of counting.
    keras.config.set_dtype_policy("float32")
    assert _num_replaced(model) == _num_replaced(_run(data=_make_data(updates)))


# What is kept, and where.


def test_going_on_is_never_having_stopped(tmp_path):
    model = _run(keras.optimizers.Adam(0.01), run_eagerly=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert _num_replaced(loaded) == _num_replaced(model)
    for each in (model, loaded):
        _fit(each, _make_data(seed=2))
        _check(each)
    assert _num_replaced(loaded) == _num_replaced(model)
    _assert_equal(loaded.weights, _values(model.weights))


# The plain model's optimizer has fewer variables than the one in the file.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_weights_of_a_plain_model_and_for_one(tmp_path):
    path = tmp_path / "model.weights.h5"
    x, _ = _make_data()
    plain = _make_model(keras.layers)
    plain.compile("adam", "mse", **_EAGERLY)
    _fit(plain, _make_data())
    plain.save_weights(path)
    plastic = _make_model()
    plastic.load_weights(path)
    _assert_equal(_ordinary(plastic), _values(plain.weights))
    np.testing.assert_array_equal(to_numpy(plastic(x)), to_numpy(plain(x)))
    _run(model=plastic)
    plastic.save_weights(path)
    plain.load_weights(path)
    _assert_equal(plain.weights, _values(_ordinary(plastic)))
    np.testing.assert_array_equal(to_numpy(plastic(x)), to_numpy(plain(x)))


def test_clone_model():
    model = _make_model()
    clone = keras.models.clone_model(model)
    assert not {id(v) for v in clone.weights} & {id(v) for v in model.weights}
    for layer, twin in zip(model.layers, clone.layers):
        assert type(layer) is type(twin)
    clone.set_weights(model.get_weights())
    _run(model=clone)
    _check(clone)
    weights, num_replaced = _reference()
    assert _num_replaced(clone) == num_replaced
    _assert_equal(_ordinary(clone), weights, rtol=1e-5, atol=1e-6)
    # The other one has not moved.
    _assert_equal(model.weights, _values(_make_model().weights))


def test_freezing_and_unfreezing():
    model = _make_model()
    frozen = model.get_layer("conv_1")
    frozen.trainable = False
    start = _values(frozen.weights)
    _run(model=model)
    # Nor are the units replaced that it reads.
    replaced = _num_replaced(model)
    assert set(replaced) == {"dense_0"} and replaced["dense_0"] > 0
    _assert_equal(frozen.weights, start)
    frozen.trainable = True
    _run(model=model)
    _check(model)


def test_frozen_normalization():
    # Its parameters are not changed, not even those of a replaced unit.
    model = _make_model()
    norm = model.get_layer("norm")
    norm.gamma.assign([2.0] * 4)
    norm.beta.assign([0.5] * 4)
    norm.trainable = False
    _run(model=model)
    assert _num_replaced(model)["conv_0"] > 0
    np.testing.assert_array_equal(to_numpy(norm.gamma), 2.0)
    np.testing.assert_array_equal(to_numpy(norm.beta), 0.5)
