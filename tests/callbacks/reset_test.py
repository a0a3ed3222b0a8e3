"""Layers and models that start anew, and injected plasticity."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import callbacks
from tests.callbacks.boundary_callback_test import injectable
from tests.helpers import to_numpy
from tests.training.online_trainer_test import ArrayStream


def model_with_all(seed=0, units=50):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                units,
                kernel_initializer=keras.initializers.HeUniform(seed),
                name="first",
            ),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5, seed=seed, name="dropout"),
            keras.layers.Dense(
                3,
                kernel_initializer=keras.initializers.RandomUniform(
                    -0.1, 0.1, seed=seed + 1
                ),
                bias_initializer=keras.initializers.RandomNormal(
                    1.0, seed=seed + 2
                ),
                name="head",
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def trained(**kwargs):
    model = model_with_all(**kwargs)
    model.fit(*ArrayStream().task(0), batch_size=2, verbose=0)
    return model


def values(model):
    return {
        f"{layer.name}/{v.name}": to_numpy(v).copy()
        for layer in model.layers
        for v in layer.weights
    }


def reset(callback, learner=0, task=1):
    model = trained()
    before = values(model)
    callback.on_boundary(model, learner, task, None, None)
    after = values(model)
    return before, after, {k for k in after if (after[k] != before[k]).any()}


def test_reset_layers_draws_the_output_layer():
    initial = values(model_with_all())
    before, after, changed = reset(callbacks.ResetLayers(seed=3))
    assert changed == {"head/kernel", "head/bias"}
    # Not as at first, though the initializer has a seed.
    assert (after["head/kernel"] != initial["head/kernel"]).any()
    # From its own distributions.
    kernel = after["head/kernel"]
    assert 0.09 < np.abs(kernel).max() <= 0.1
    assert np.abs(after["head/bias"] - 1).max() < 0.25


def test_reset_layers_resets_normalizations_behind_the_first():
    before, after, changed = reset(callbacks.ResetLayers(2, seed=3))
    assert changed == before.keys()
    np.testing.assert_array_equal(after["norm/gamma"], 1)
    np.testing.assert_array_equal(after["norm/moving_mean"], 0)
    np.testing.assert_array_equal(after["norm/moving_variance"], 1)
    np.testing.assert_array_equal(after["first/bias"], 0)
    bound = np.sqrt(6 / 4)
    assert 0.95 * bound < np.abs(after["first/kernel"]).max() <= bound


def test_reset_layers_by_name():
    _, _, changed = reset(callbacks.ResetLayers(["norm"], seed=3))
    assert {key.split("/")[0] for key in changed} == {"norm"}


def test_reset_layers_draws_anew_for_each_learner_and_task():
    drawn = [
        reset(callbacks.ResetLayers(seed=seed), learner, task)[1]
        for seed, learner, task in [
            (3, 0, 1),
            (3, 0, 1),
            (3, 1, 1),
            (3, 0, 2),
            (4, 0, 1),
        ]
    ]
    kernels = [each["head/kernel"] for each in drawn]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    for number, kernel in enumerate(kernels[1:]):
        for other in kernels[number + 2 :]:
            assert not np.isclose(kernel, other).any(1).all()
    random = [
        reset(callbacks.ResetLayers())[1]["head/kernel"] for _ in range(2)
    ]
    assert (random[0] != random[1]).any()


def test_reset_layers_to_those_of_a_new_model():
    asked = []

    def build_model(learner, task):
        asked.append((learner, task))
        return model_with_all(seed=7)

    _, after, changed = reset(
        callbacks.ResetLayers(1, build_model), learner=2, task=5
    )
    assert asked == [(2, 5)]
    assert changed == {"head/kernel", "head/bias"}
    expected = values(model_with_all(seed=7))
    np.testing.assert_array_equal(after["head/kernel"], expected["head/kernel"])


def test_reset_layers_where_one_is_frozen():
    model, fresh = model_with_all(), model_with_all(seed=7)
    model.get_layer("first").trainable = False
    callbacks.ResetLayers(1, lambda *_: fresh).on_boundary(
        model, 0, 1, None, None
    )
    actual, expected = values(model), values(fresh)
    for name in ("head/kernel", "head/bias"):
        np.testing.assert_array_equal(actual[name], expected[name])


def test_reset_layers_of_a_model_in_a_model():
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, name="inside")], name="inner"
    )
    model = keras.Sequential(
        [keras.Input((4,)), inner, keras.layers.Dense(3, name="head")]
    )
    model.compile("sgd", "mse")
    for names, expected in ((2, 4), (["inner"], 2), (1, 2)):
        changed = callbacks.ResetLayers(names, seed=0).on_boundary(
            model, 0, 1, None, None
        )
        assert len(changed) == expected


def test_reset_layers_restarts_their_slots():
    model = trained()
    x, y = ArrayStream().task(1)

    class Slots(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                self.slots = {
                    v.path: to_numpy(v).copy()
                    for v in self.model.optimizer.variables
                }

    slots = Slots()
    reset_layers = callbacks.ResetLayers(seed=1, skip=0)
    model.fit(x, y, verbose=0, callbacks=[reset_layers, slots])
    own = [v for k, v in slots.slots.items() if "head" in k]
    others = [v for k, v in slots.slots.items() if "first" in k or "norm" in k]
    assert len(own) == 4 and len(others) == 8
    assert not any(v.any() for v in own)
    assert all(v.any() for k, v in slots.slots.items() if "first_kernel" in k)
    [iterations] = [v for k, v in slots.slots.items() if "iteration" in k]
    assert iterations == 5


def test_too_many_layers():
    with pytest.raises(ValueError, match="has 2. Received: layers=3"):
        reset(callbacks.ResetLayers(3))


def test_a_layer_without_weights():
    with pytest.raises(ValueError, match="a layer with weights.*dropout"):
        reset(callbacks.ResetLayers(["dropout"]))


def test_a_layer_that_its_config_does_not_describe():
    class Odd(keras.layers.Dense):
        def __init__(self, needed, **kwargs):
            super().__init__(3, name="odd")

    model = keras.Sequential([keras.Input((4,)), Odd(1)])
    with pytest.raises(ValueError, match="(?s)'odd' cannot be made.*build_m"):
        callbacks.ResetLayers().on_boundary(model, 0, 1, None, None)


@pytest.mark.parametrize("kind", [callbacks.ResetLayers, callbacks.ResetModel])
def test_another_architecture(kind):
    other = lambda learner, task: model_with_all(units=4)  # noqa: E731
    with pytest.raises(ValueError, match="same architecture.*4.*expected"):
        reset(kind(build_model=other))


@pytest.mark.parametrize("layers", [0, -1, 1.5, True, [], "head", [1], None])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="`layers` must be a "):
        callbacks.ResetLayers(layers)


def test_functions_must_be_functions():
    for kind in (
        callbacks.ResetLayers,
        callbacks.ResetModel,
        callbacks.PlasticityInjection,
    ):
        with pytest.raises(TypeError, match="`build_model` must be a function"):
            kind(build_model=3)


# --- whole models


def everything(model):
    return [
        to_numpy(v).copy()
        for v in (
            *model.trainable_variables,
            *model.non_trainable_variables,
            *model.optimizer.variables,
        )
    ]


@pytest.mark.parametrize("method", ["bp", "cbp"])
def test_reset_model_is_a_new_model(method):
    def build_model(learner, task):
        model = model_with_all(seed=10 * learner + task)
        if method == "cbp":
            model = keras.Sequential(
                [
                    keras.Input((4,)),
                    keras_plasticity.layers.Dense(
                        6,
                        "relu",
                        kernel_initializer=keras.initializers.HeUniform(task),
                    ),
                    keras_plasticity.layers.Dense(
                        3,
                        kernel_initializer=keras.initializers.HeUniform(9),
                    ),
                ]
            )
            model.compile(
                keras_plasticity.optimizers.ContinualBackprop(
                    keras.optimizers.Adam(0.01),
                    replacement_rate=0.1,
                    maturity_threshold=2,
                    seed=task,
                ),
                "mse",
            )
        return model

    def fit(model, task, **kwargs):
        model.fit(
            *ArrayStream().task(task),
            batch_size=2,
            shuffle=False,
            verbose=0,
            **kwargs,
        )

    model = build_model(0, 0)
    callback = callbacks.ResetModel(build_model)
    for task in range(2):
        fit(model, task, callbacks=[callback])
    expected = build_model(0, 1)
    fit(expected, 1)
    for actual, value in zip(everything(model), everything(expected)):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6)


def test_reset_model_where_a_layer_is_frozen():
    def build_model():
        layers = [keras_plasticity.layers.Dense(4, "relu") for _ in range(3)]
        return keras.Sequential([keras.Input((4,)), *layers])

    model, new = build_model(), build_model()
    for number, variable in enumerate(new.variables):
        variable.assign(variable + number)
    model.layers[0].trainable = False
    callback = callbacks.ResetModel(lambda *_: new, reset_optimizer="none")
    callback.on_boundary(model, 0, 1, None, None)
    for one, other in zip(model.variables, new.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.parametrize("resets", ["changed", "none"])
def test_reset_model_and_some_of_the_optimizer(resets):
    model = trained()
    before = int(to_numpy(model.optimizer.iterations))
    momentum = {
        v.path: to_numpy(v).copy()
        for v in model.optimizer.variables
        if "momentum" in v.path
    }
    callback = callbacks.ResetModel(
        lambda learner, task: model_with_all(seed=8),
        skip=0,
        reset_optimizer=resets,
    )
    callback.set_model(model)
    callback.on_train_begin()
    assert int(to_numpy(model.optimizer.iterations)) == before
    for v in model.optimizer.variables:
        if v.path in momentum:
            expected = momentum[v.path] if resets == "none" else 0.0
            np.testing.assert_array_equal(to_numpy(v), expected)


def test_reset_model_needs_an_optimizer_like_it():
    def build_other(learner, task):
        model = model_with_all()
        model.compile("sgd", "mse")
        return model

    with pytest.raises(ValueError, match="optimizer of the same kind"):
        reset(callbacks.ResetModel(build_other))

    def build_uncompiled(learner, task):
        return keras.Sequential.from_config(model_with_all().get_config())

    with pytest.raises(ValueError, match="must return a compiled model"):
        reset(callbacks.ResetModel(build_uncompiled))


# --- plasticity injection


def head(model):
    return model.layers[-1]


def injected(**kwargs):
    model = injectable()
    x, y = ArrayStream().task(0)
    model.fit(x, y, epochs=3, verbose=0)
    before = (
        model.predict(x, verbose=0),
        to_numpy(head(model).layer.kernel).copy(),
    )
    injection = callbacks.PlasticityInjection(skip=0, seed=1, **kwargs)
    injection.set_model(model)
    injection.on_train_begin()
    return model, x, y, before


def test_injection_leaves_the_outputs():
    model, x, y, (outputs, kernel) = injected()
    np.testing.assert_array_equal(model.predict(x, verbose=0), outputs)
    layer = head(model)
    np.testing.assert_array_equal(to_numpy(layer.old.kernel), kernel)
    np.testing.assert_array_equal(
        to_numpy(layer.new.kernel), to_numpy(layer.layer.kernel)
    )
    assert not np.isclose(to_numpy(layer.layer.kernel), kernel).any()


def test_after_it_only_the_fresh_head_learns():
    model, x, y, _ = injected()
    layer = head(model)
    model.optimizer.weight_decay = 0.1
    before = {v.path: to_numpy(v).copy() for v in layer.weights}
    features = to_numpy(model.layers[0].kernel).copy()
    model.fit(x, y, epochs=3, verbose=0)
    for v in layer.weights:
        is_frozen = "_old" in v.path or "_new" in v.path
        assert (to_numpy(v) == before[v.path]).all() == is_frozen, v.path
    assert (to_numpy(model.layers[0].kernel) != features).any()
    assert model.count_params() > sum(
        v.shape[0] for v in model.trainable_variables
    )
    assert len(model.trainable_variables) == 4


def test_the_encoder_learns_through_all_three_heads():
    """With one step of SGD, by the gradient of the plain network before."""
    model, x, y, (outputs, kernel) = injected()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    first = model.layers[0]
    before = to_numpy(first.kernel).astype("float64")
    bias = to_numpy(first.bias).astype("float64")
    model.fit(x, y, batch_size=len(x), verbose=0)
    hidden = x @ before + bias
    error = 2 * (outputs - y) / y.size
    expected = before - 0.1 * x.T @ ((error @ kernel.T) * (hidden > 0))
    np.testing.assert_allclose(
        to_numpy(first.kernel), expected, rtol=1e-4, atol=1e-6
    )


def test_injection_happens_once():
    model = injectable()
    injection = callbacks.PlasticityInjection(seed=1)
    kernels = []
    for task in range(4):
        model.fit(*ArrayStream(4).task(task), verbose=0, callbacks=[injection])
        kernels.append(to_numpy(head(model).old.kernel).copy())
    assert not kernels[0].any() and kernels[1].any()
    np.testing.assert_array_equal(kernels[1], kernels[3])
    with pytest.raises(ValueError, match="once into an.*'head', into which"):
        callbacks.PlasticityInjection().on_boundary(model, 0, 1, None, None)


def test_injection_of_a_new_model():
    model, *_ = injected(build_model=lambda *args: injectable(seed=50))
    expected = head(injectable(seed=50)).layer.kernel
    np.testing.assert_array_equal(
        to_numpy(head(model).layer.kernel), to_numpy(expected)
    )


def test_injection_into_a_plain_model():
    with pytest.raises(ValueError, match="whose head is a `keras_plasticity.l"):
        reset(callbacks.PlasticityInjection())
