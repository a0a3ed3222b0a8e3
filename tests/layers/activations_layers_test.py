"""Activations: formulas, gradients, saving, and the units in front of them."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.graph import activations
from keras_plasticity.graph import trace
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import SelfNormalizedResets
from keras_plasticity.training import OnlineTrainer
from tests.gradients import loss_and_gradients
from tests.helpers import mostly_on_torch
from tests.helpers import observed_means
from tests.helpers import to_numpy

# Literally what the docstrings say, in float64.


def relu(x):
    return np.maximum(x, 0.0)


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0.0)) - 1.0)


def smooth_leaky(x, alpha, p, c):
    return alpha * x + (1 - alpha) * x / (1 + np.exp(-c * x / p))


def rational(x, numerator, denominator):
    top = sum(a * x**i for i, a in enumerate(numerator))
    bottom = sum(b * x ** (i + 1) for i, b in enumerate(denominator))
    return top / (1 + np.abs(bottom))


def adalin(x, alpha, axis):
    alpha = np.reshape(alpha, [-1 if i == axis else 1 for i in range(x.ndim)])
    return np.where(x > 0, x, alpha * x)


_CONCATENATED = {
    "CReLU": (relu, lambda x: relu(-x)),
    "ConcatenatedELU": (elu, lambda x: elu(-x)),
    "DeepFourier": (np.sin, np.cos),
}
_ALL = [*_CONCATENATED, "AdaLin", "Rational", "SmoothLeaky"]


def draw(shape, seed=0, stddev=2.0):
    return np.random.default_rng(seed).normal(0, stddev, shape)


@pytest.mark.parametrize("name", _CONCATENATED)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 5), -1), ((3, 4, 5, 2), -1), ((3, 5, 4, 2), 1), ((2, 3, 1), -2)],
)
def test_concatenated_activations(name, shape, axis):
    layer = getattr(layers, name)(axis=axis)
    x = draw(shape)
    expected = np.concatenate([f(x) for f in _CONCATENATED[name]], axis)
    outputs = layer(x.astype("float32"))
    np.testing.assert_allclose(
        to_numpy(outputs), expected, rtol=1e-5, atol=1e-6
    )
    assert layer.compute_output_shape(shape) == expected.shape
    unknown = [None] * len(shape)
    assert layer.compute_output_shape(unknown) == tuple(unknown)
    symbolic = layer(keras.Input(shape[1:]))
    assert symbolic.shape == (None, *expected.shape[1:])


@pytest.mark.parametrize(
    "settings",
    [{}, dict(alpha=0.0, p=0.5, c=2.0), dict(alpha=1.5, p=7.0, c=0.1)],
    ids=str,
)
def test_smooth_leaky(settings):
    x = draw((3, 4, 5), stddev=5.0)
    expected = smooth_leaky(x, **{"alpha": 0.1, "p": 3.0, "c": 5.0, **settings})
    outputs = layers.SmoothLeaky(**settings)(x.astype("float32"))
    np.testing.assert_allclose(
        to_numpy(outputs), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 5), -1), ((3, 4, 5, 2), 3), ((3, 5, 4, 2), 1)]
)
def test_adalin(shape, axis):
    layer = layers.AdaLin(axis=axis)
    x = draw(shape)
    # It starts as ReLU.
    np.testing.assert_allclose(
        to_numpy(layer(x.astype("float32"))), relu(x), rtol=1e-6
    )
    alpha = draw(shape[axis], seed=1)
    layer.alpha.assign(alpha)
    outputs = to_numpy(layer(x.astype("float32")))
    expected = adalin(x, alpha, axis % len(shape))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    shared_axes = [i for i in range(1, len(shape)) if i != axis % len(shape)]
    twin = keras.layers.PReLU(shared_axes=shared_axes)
    twin.build(shape)
    twin.alpha.assign(alpha.reshape(twin.alpha.shape))
    np.testing.assert_allclose(
        outputs, to_numpy(twin(x.astype("float32"))), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("numerator", "denominator"),
    [
        ((0.3, -1.0, 0.5, 0.2, -0.1, 0.05), (1.0, -0.5, 0.3, 0.1)),
        ((1.0, 2.0), (0.5,)),
        ((0.0, 1.0, 0.5), (-1.0, 0.2, 0.1, 0.0, 0.3)),
    ],
)
def test_rational(numerator, denominator):
    layer = layers.Rational(numerator, denominator)
    x = draw((3, 4, 5), stddev=1.5)
    outputs = layer(x.astype("float32"))
    expected = rational(x, numerator, denominator)
    np.testing.assert_allclose(
        to_numpy(outputs), expected, rtol=1e-4, atol=1e-5
    )
    # The coefficients are learned.
    layer.numerator.assign([2 * a for a in numerator])
    outputs = layer(x.astype("float32"))
    np.testing.assert_allclose(
        to_numpy(outputs), 2 * expected, rtol=1e-4, atol=1e-5
    )


def test_rational_starts_as_the_least_squares_fit_of_a_leaky_relu():
    config = layers.Rational().get_config()
    numerator, denominator = config["numerator"], config["denominator"]
    assert (len(numerator), len(denominator)) == (6, 4)
    x = np.linspace(-3, 3, 2001)
    error = rational(x, numerator, denominator) - np.where(x > 0, x, 0.01 * x)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.00554, abs=1e-5)
    assert np.abs(error).max() < 0.034
    # No coefficient alone makes it better.
    best = np.mean(error**2)
    for i in range(10):
        for change in (-1e-3, 1e-3):
            other = np.array([*numerator, *denominator])
            other[i] += change
            changed = rational(x, other[:6], other[6:])
            assert np.mean((changed - np.where(x > 0, x, 0.01 * x)) ** 2) > best
    for far in (-1e4, 1e4):
        assert rational(far, numerator, denominator) == pytest.approx(
            0.505 * far + 3.09, abs=0.1
        )


@pytest.mark.parametrize("name", _ALL)
def test_gradients_are_finite_at_zero_and_far_away(name):
    layer = getattr(layers, name)()
    inputs = np.array([[0.0, 0.0, 30.0, -30.0, 1.0, -1.0]], "float32")
    kernel = keras.layers.Dense(6, use_bias=False)
    model = keras.Sequential(
        [keras.Input((6,)), kernel, layer, keras.layers.Dense(1)]
    )
    kernel.kernel.assign(np.eye(6))
    loss = keras.losses.MeanSquaredError()
    value, gradients = loss_and_gradients(
        model, loss, inputs, np.ones((1, 1), "float32")
    )
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.all(np.isfinite(to_numpy(gradient)))
    # In front of it, too.
    assert np.any(to_numpy(gradients[0]) != 0)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", _ALL)
def test_mixed_precision(name, dtype):
    x = np.linspace(-12, 12, 60).reshape(10, 6).astype("float32")
    layer = getattr(layers, name)(dtype=dtype)
    outputs = layer(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype[6:]
    assert {v.dtype for v in layer.variables} <= {"float32"}
    expected = to_numpy(getattr(layers, name)()(x))
    outputs = to_numpy(ops.cast(outputs, "float32"))
    np.testing.assert_allclose(outputs, expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("name", _ALL)
def test_float64(name):
    x = draw((5, 4), stddev=1.0)
    layer = getattr(layers, name)(dtype="float64")
    if keras.backend.backend() == "jax":
        pytest.skip("has no float64 by default")
    expected = {
        **{
            key: np.concatenate([f(x) for f in functions], -1)
            for key, functions in _CONCATENATED.items()
        },
        "AdaLin": relu(x),
        "SmoothLeaky": smooth_leaky(x, 0.1, 3.0, 5.0),
        "Rational": rational(
            x,
            layers.Rational().initial_numerator,
            layers.Rational().initial_denominator,
        ),
    }[name]
    outputs = to_numpy(layer(x))
    assert outputs.dtype == "float64"
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", _ALL)
def test_masks_are_passed_on(name):
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    x = getattr(layers, name)()(x)
    outputs = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, [x, outputs])
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    each, mean = map(to_numpy, model(tokens))
    np.testing.assert_allclose(mean[0], each[0, :2].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mean[1], each[1, 0], rtol=1e-5)


def test_a_mask_of_steps_that_are_concatenated():
    mask = ops.convert_to_tensor([[True, True, False], [True, False, False]])
    x = ops.ones((2, 3, 4))
    result = to_numpy(layers.CReLU(axis=1).compute_mask(x, mask))
    assert result.tolist() == [
        [True, True, False] * 2,
        [True, False, False] * 2,
    ]
    assert layers.CReLU().compute_mask(x, mask) is mask
    assert layers.CReLU().compute_mask(x) is None


@pytest.mark.parametrize(
    "layer",
    [
        layers.CReLU(axis=1),
        layers.ConcatenatedELU(axis=-2),
        layers.DeepFourier(name="features"),
        layers.SmoothLeaky(alpha=0.2, p=2.0, c=4.0),
        layers.AdaLin(
            axis=1,
            alpha_initializer=keras.initializers.Constant(0.25),
            alpha_regularizer="l2",
            alpha_constraint="non_neg",
        ),
        layers.Rational([0.0, 1.0], [0.5, 0.0, 0.1]),
        layers.Rational(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_serialization(layer):
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == (
        f"keras_plasticity>{type(layer).__name__}"
    )
    twin = keras.layers.deserialize(serialized)
    assert twin.get_config() == layer.get_config()
    x = draw((2, 3, 4)).astype("float32")
    np.testing.assert_array_equal(to_numpy(twin(x)), to_numpy(layer(x)))


def make_model(*between, seed=0, units=5):
    """Dense layers around what is given, which may be functions."""
    x = inputs = keras.Input((4,))
    x = layers.Dense(units, name="hidden")(x)
    for layer in between:
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    rng = np.random.default_rng(seed)
    for name in ("hidden", "head"):
        layer = model.get_layer(name)
        for weight in (layer.kernel, layer.bias):
            weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def data(num, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (num, 4)).astype("float32")
    return x, np.sin(x[:, :3] * 2)


def continual(rate=0.1, **kwargs):
    return ContinualBackprop(
        keras.optimizers.Adam(0.01),
        replacement_rate=rate,
        maturity_threshold=4,
        seed=3,
        **kwargs,
    )


@pytest.mark.parametrize("name", mostly_on_torch(_ALL, "CReLU", "Rational"))
def test_a_saved_model_goes_on(name, tmp_path):
    model = make_model(getattr(layers, name)())
    model.compile(continual(), "mse")
    x, y = data(40)
    fit = dict(batch_size=4, shuffle=False, verbose=0)
    model.fit(x[:24], y[:24], **fit)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x[24:], y[24:], **fit)
    assert model.optimizer.num_replaced()["hidden"] > 0
    for a, b in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(
            to_numpy(a), to_numpy(b), rtol=1e-6, err_msg=a.path
        )


def by_concatenate(x):
    relu = keras.layers.ReLU()
    return keras.layers.Concatenate()([relu(x), relu(-x)])


@pytest.mark.parametrize(
    "utility",
    mostly_on_torch(["overall", "mean_corrected_contribution"], "overall"),
)
def test_units_before_crelu_are_replaced_as_before_a_concatenate(utility):
    models = [make_model(layer) for layer in (layers.CReLU(), by_concatenate)]
    x, y = data(80)
    for model in models:
        model.compile(continual(utility=utility), "mse")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    counts = [model.optimizer.num_replaced()["hidden"] for model in models]
    assert counts[0] == counts[1] > 3
    first, second = (
        [v for v in model.variables if "statistics" not in v.path]
        for model in models
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(
            to_numpy(a), to_numpy(b), rtol=1e-5, atol=1e-6, err_msg=a.path
        )
    ages = [to_numpy(model.get_layer("hidden").age) for model in models]
    np.testing.assert_array_equal(*ages)


@pytest.mark.parametrize("name", mostly_on_torch(list(_CONCATENATED), "CReLU"))
def test_both_outgoing_weights_of_a_new_unit_are_zero(name):
    model = make_model(getattr(layers, name)())
    model.compile(
        ContinualBackprop(
            keras.optimizers.SGD(0.0), replacement_rate=1.0, seed=0
        ),
        "mse",
    )
    hidden, head = model.get_layer("hidden"), model.get_layer("head")
    model.optimizer.build(model.trainable_variables)
    hidden.age.assign([0.0, 200.0, 0.0, 0.0, 200.0])
    before = to_numpy(head.kernel)
    model.train_on_batch(*data(4))
    kernel = to_numpy(head.kernel)
    new = np.isin(np.arange(10) % 5, (1, 4))
    # At most all mature units, one of them at least.
    assert set(np.flatnonzero((kernel == 0).all(axis=1))) <= set(
        np.flatnonzero(new)
    )
    replaced = to_numpy(hidden.age) == 0
    replaced[[0, 2, 3]] = False
    assert replaced.any()
    expected = np.where(np.tile(replaced, 2)[:, None], 0.0, before)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_a_new_unit_has_a_new_slope():
    model = make_model(layers.AdaLin(alpha_initializer="ones", name="slope"))
    model.compile(
        ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=1.0,
            maturity_threshold=0,
        ),
        "mse",
    )
    alpha = model.get_layer("slope").alpha
    alpha.assign(np.full(5, 0.3))
    model.train_on_batch(*data(4))
    new = to_numpy(model.get_layer("hidden").age) == 0
    assert new.any()
    expected = np.where(new, 1.0, 0.3)
    np.testing.assert_allclose(to_numpy(alpha), expected, rtol=1e-6)


def test_each_feature_of_a_unit_fires_by_itself():
    model = make_model(layers.CReLU())
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = data(20)
    model.train_on_batch(x, y)
    hidden = model.get_layer("hidden")
    before = x @ to_numpy(hidden.kernel) + to_numpy(hidden.bias)
    firing = observed_means(model.get_layer("head"))["firing"]
    expected = [(before > 0).mean(axis=0), (before < 0).mean(axis=0)]
    np.testing.assert_allclose(firing, np.concatenate(expected), rtol=1e-5)


@pytest.mark.parametrize("dead_with_relu", [True, False])
def test_a_unit_before_crelu_is_not_silent(dead_with_relu):
    layer = keras.layers.ReLU() if dead_with_relu else layers.CReLU()
    model = make_model(layer)
    model.get_layer("hidden").bias.assign([0.0, 0.0, -50.0, 0.0, 0.0])
    model.compile(
        SelfNormalizedResets(
            keras.optimizers.SGD(0.0),
            min_threshold=8,
            max_threshold=100,
            initial_threshold=8,
            seed=0,
        ),
        "mse",
    )
    for seed in range(4):
        model.train_on_batch(*data(4, seed))
    expected = 1 if dead_with_relu else 0
    assert model.optimizer.num_replaced()["hidden"] == expected


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("AdaLin", "adalin"),
        ("ConcatenatedELU", "concatenated_elu"),
        ("CReLU", "crelu"),
        ("DeepFourier", "deep_fourier"),
        ("Rational", "rational"),
        ("SmoothLeaky", "smooth_leaky"),
    ],
)
def test_diagnostics_know_them(name, function):
    layer = getattr(layers, name)()
    for between in ([layer], [keras.layers.LayerNormalization(), layer]):
        model = make_model(*between)
        traced = trace.trace_model(model, whole_leaves=True)
        [found] = activations.find_activations(model, traced)
        assert found.function == function
        assert found.value.shape == layer.output.shape


def test_channels_first_in_diagnostics():
    conv = keras.layers.Conv2D(3, 2, data_format="channels_first", name="conv")
    model = keras.Sequential(
        [
            keras.Input((2, 6, 5)),
            conv,
            layers.CReLU(axis=1),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    traced = trace.trace_model(model, whole_leaves=True)
    [found] = activations.find_activations(model, traced)
    assert (found.function, found.unit_axis) == ("crelu", 1)
    assert found.value.shape[1:] == (6, 5, 4)


class Stream:
    def __init__(self, seed=0):
        self.seed = seed

    def __len__(self):
        return 2

    def task(self, index):
        return data(24, 10 * self.seed + index)


@pytest.mark.parametrize(
    "name", mostly_on_torch(["CReLU", "AdaLin", "Rational"], "AdaLin")
)
def test_learners_side_by_side(name):
    def build(learner):
        model = make_model(getattr(layers, name)(), seed=learner)
        model.compile(continual(), "mse")
        return model

    together = OnlineTrainer(build, num_learners=2)
    results = together.fit(lambda learner: Stream(learner), batch_size=4)
    for learner in range(2):
        alone = OnlineTrainer(build(learner))
        expected = alone.fit(Stream(learner), batch_size=4)
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        for a, b in zip(
            together.model(learner).variables, alone.model().variables
        ):
            np.testing.assert_allclose(
                to_numpy(a), to_numpy(b), rtol=1e-3, atol=1e-5, err_msg=a.path
            )


def test_the_slopes_of_images_are_no_kernel():
    layer = layers.AdaLin(axis=1)
    layer.build((None, 3, 8, 8))
    assert tuple(layer.alpha.shape) == (3,)
    assert keras_plasticity.weights_of(layer) == [layer.alpha]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.CReLU(axis=0), "`axis` must be an integer, and not"),
        (lambda: layers.DeepFourier(axis="last"), "Received: axis=last"),
        (lambda: layers.AdaLin(axis=True), "`axis` must be an integer, and n"),
        (lambda: layers.AdaLin(alpha_initializer=None), "`alpha_initializer`"),
        (lambda: layers.AdaLin(alpha_constraint=3), "`alpha_constraint`"),
        (lambda: layers.SmoothLeaky(alpha=-0.1), "`alpha` must be a number"),
        (lambda: layers.SmoothLeaky(p=0), "`p` must be a positive number"),
        (lambda: layers.SmoothLeaky(c=float("nan")), "`c` must be a positive"),
        (lambda: layers.Rational([1.0]), "`numerator` must be a sequence of 2"),
        (lambda: layers.Rational(None, []), "`denominator` must be a sequence"),
        (
            lambda: layers.Rational([1, "a"]),
            "`numerator` must be a finite number. Received: numerator=a",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [layers.CReLU, layers.AdaLin])
def test_axes_that_the_inputs_do_not_have(kind):
    for axis in (2, -2):
        with pytest.raises(ValueError, match=f"Received: axis={axis}"):
            kind(axis=axis)(np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match="number of features must be known"):
        layers.AdaLin().build((None, 3, None))
