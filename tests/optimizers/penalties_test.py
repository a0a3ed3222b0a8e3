"""Properties of `L2Init` and of the penalties on singular values."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import functional
from keras_plasticity import optimizers
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import weights_of

_PENALTIES = [
    optimizers.L2Init,
    optimizers.ParsevalRegularization,
    optimizers.SpectralRegularization,
]


def _descend(optimizer, model, steps):
    """Updates on gradients of zero: all that acts is the penalty."""
    variables = model.trainable_variables
    for _ in range(steps):
        optimizer.apply(
            [ops.zeros(v.shape, v.dtype) for v in variables], variables
        )


def _singular_values(layer):
    kernel = to_numpy(layer.kernel)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return np.linalg.svd(matrix, compute_uv=False)


class TestL2Init:
    def test_returns_to_the_start(self):
        model = make_plain_model()
        start = weights_of(model)
        optimizer = optimizers.L2Init(keras.optimizers.SGD(0.1), strength=3.0)
        train(model, optimizer, make_data(24))
        away = weights_of(model)
        _descend(optimizer, model, steps=25)
        for key, value in weights_of(model).items():
            np.testing.assert_allclose(value, start[key], atol=1e-4)
            assert np.abs(away[key] - start[key]).max() > 1e-3

    @pytest.mark.parametrize("loss_scale", [False, True])
    def test_the_loss_scale_leaves_it_as_it_is(self, loss_scale):
        model = make_plain_model()
        start = weights_of(model)
        inner = keras.optimizers.SGD(1.0)
        if loss_scale:
            inner = keras.optimizers.LossScaleOptimizer(inner, 64.0)
        optimizer = optimizers.L2Init(inner, strength=0.25)
        optimizer.build(model.trainable_variables)
        for variable in model.trainable_variables:
            variable.assign(to_numpy(variable) + 1.0)
        _descend(optimizer, model, steps=1)
        for key, value in weights_of(model).items():
            np.testing.assert_allclose(value, start[key] + 0.75, rtol=1e-5)

    def test_new_units_have_a_new_start(self):
        model = make_model(activation="relu")
        inner = optimizers.L2Init(keras.optimizers.SGD(0.01), strength=0.1)
        optimizer = optimizers.ContinualBackprop(
            inner, replacement_rate=0.3, maturity_threshold=0, seed=1
        )
        start = weights_of(model)
        train(model, optimizer, make_data(8))
        assert any(optimizer.num_replaced().values())
        copies = [v for v in inner.variables if v.path.endswith("initial")]
        layer = model.layers[0]
        copy = to_numpy(copies[0])
        is_new = to_numpy(layer.age) == 0
        assert 0 < is_new.sum() < len(is_new)
        kernel = to_numpy(layer.kernel)
        np.testing.assert_array_equal(copy[:, is_new], kernel[:, is_new])
        assert np.any(copy[:, is_new] != start["layer_0/kernel"][:, is_new])

    def test_embeddings_have_it_and_vectors_without_a_kernel_have_not(self):
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(9, 4),
                keras.layers.BatchNormalization(),
                keras.layers.PReLU(),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        optimizer = optimizers.L2Init(keras.optimizers.SGD(1.0), strength=1.0)
        optimizer.build(model.trainable_variables)
        start = [to_numpy(v) for v in model.trainable_variables]
        for variable in model.trainable_variables:
            variable.assign(to_numpy(variable) + 1.0)
        _descend(optimizer, model, steps=1)
        for variable, value in zip(model.trainable_variables, start):
            is_free = variable.name in ("gamma", "beta", "alpha")
            np.testing.assert_allclose(
                to_numpy(variable),
                value + is_free,
                rtol=1e-5,
                atol=1e-6,
                err_msg=variable.path,
            )

    def test_a_model_with_embeddings_trains(self):
        # On TensorFlow, their gradient is sparse.
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(9, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        optimizer = optimizers.L2Init(keras.optimizers.SGD(0.1), strength=0.5)
        x = np.tile(np.array([[0, 1, 2]]), (8, 1))
        y = np.ones((8, 2), "float32")
        before = to_numpy(model.layers[0].embeddings)
        train(model, optimizer, (x, y))
        after = to_numpy(model.layers[0].embeddings)
        assert np.all(np.any(after[:3] != before[:3], axis=1))
        np.testing.assert_array_equal(after[3:], before[3:])

    @pytest.mark.parametrize("draw_biases", [False, True])
    def test_targets_that_are_drawn(self, draw_biases):
        """A step of size 1 leads to the target itself."""
        model = keras.Sequential(
            [
                keras.Input((48,)),
                keras.layers.Dense(600, name="hidden"),
                keras.layers.Dense(3, name="output"),
            ]
        )
        optimizer = optimizers.L2Init(
            keras.optimizers.SGD(1.0),
            strength=1.0,
            exclude=["output"],
            # As PyTorch initializes.
            target_initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform", seed=4
            ),
            draw_biases=draw_biases,
            seed=1,
        )
        layer, output = model.layers
        before = weights_of(model)
        limit = np.sqrt(1 / 48)
        steps = []
        for _ in range(2):
            _descend(optimizer, model, steps=1)
            steps.append(to_numpy(layer.kernel).ravel())
            for weight in [layer.kernel, *[layer.bias] * draw_biases]:
                values = to_numpy(weight).ravel()
                assert abs(values.mean()) < 0.1 * limit
                np.testing.assert_allclose(
                    np.abs(values).max(), limit, rtol=0.02
                )
            if not draw_biases:
                np.testing.assert_array_equal(to_numpy(layer.bias), 0.0)
        assert abs(np.corrcoef(*steps)[0, 1]) < 0.05
        np.testing.assert_array_equal(
            to_numpy(output.kernel), before["output/kernel"]
        )

    def test_targets_of_initializers_that_draw_whole_weights(self):
        model = make_plain_model()
        optimizer = optimizers.L2Init(
            keras.optimizers.SGD(1.0), 1.0, target_initializer="orthogonal"
        )
        _descend(optimizer, model, steps=1)
        for layer in model.layers:
            np.testing.assert_allclose(_singular_values(layer), 1.0, rtol=1e-5)


class TestParsevalRegularization:
    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_leads_to_orthogonal_weights(self, scale):
        model = make_plain_model()
        optimizer = optimizers.ParsevalRegularization(
            keras.optimizers.SGD(0.05), strength=1.0, scale=scale
        )
        biases = [to_numpy(layer.bias) for layer in model.layers]
        _descend(optimizer, model, steps=100)
        for layer, bias in zip(model.layers, biases):
            np.testing.assert_allclose(
                _singular_values(layer), np.sqrt(scale), rtol=1e-3
            )
            np.testing.assert_array_equal(to_numpy(layer.bias), bias)

    def test_the_bias_of_several_heads_is_no_kernel(self):
        layer = keras.layers.EinsumDense(
            "ab,bcd->acd", (2, 3), bias_axes="cd", bias_initializer="ones"
        )
        model = keras.Sequential([keras.Input((4,)), layer])
        optimizer = optimizers.ParsevalRegularization(
            keras.optimizers.SGD(0.1), strength=1.0
        )
        kernel = to_numpy(layer.kernel)
        _descend(optimizer, model, steps=1)
        np.testing.assert_array_equal(to_numpy(layer.bias), 1.0)
        assert np.any(to_numpy(layer.kernel) != kernel)


class TestSpectralRegularization:
    @pytest.mark.parametrize(("exponent", "target"), [(2.0, 1.0), (1.0, 2.0)])
    def test_leads_to_the_target(self, exponent, target):
        model = make_plain_model()
        optimizer = optimizers.SpectralRegularization(
            keras.optimizers.SGD(0.1), 0.5, exponent, target
        )
        _descend(optimizer, model, steps=60)
        starts = [v for v in optimizer.variables if "start" in v.path]
        for layer, start in zip(model.layers, starts, strict=True):
            # As the iteration sees it: the second singular value is near.
            norm, _ = functional.spectral_norm_and_gradient(
                layer.kernel.value, start.value
            )
            expected = target ** (1 / exponent)
            np.testing.assert_allclose(to_numpy(norm), expected, rtol=1e-3)
            assert (
                expected * 0.999 < _singular_values(layer)[0] < expected * 1.1
            )
            np.testing.assert_allclose(to_numpy(layer.bias), 0.0, atol=1e-3)

    @pytest.mark.parametrize("exponent", [1.0, 2.0])
    def test_a_kernel_of_zeros_stays(self, exponent):
        model = make_plain_model()
        model.layers[1].kernel.assign(np.zeros((6, 5)))
        optimizer = optimizers.SpectralRegularization(
            keras.optimizers.SGD(0.1), strength=1.0, exponent=exponent
        )
        _descend(optimizer, model, steps=2)
        np.testing.assert_array_equal(to_numpy(model.layers[1].kernel), 0.0)
        for value in weights_of(model).values():
            assert np.isfinite(value).all()

    def test_runs_have_the_same_start_vectors(self):
        models = [make_plain_model() for _ in range(2)]
        for model in models:
            optimizer = optimizers.SpectralRegularization(
                keras.optimizers.SGD(0.1), strength=1.0, num_iterations=1
            )
            train(model, optimizer, make_data(8))
        assert_same_weights(*models)
        starts = [v for v in optimizer.variables if "start" in v.path]
        assert [v.shape for v in starts] == [(6,), (5,), (3,)]
        assert len({float(to_numpy(v)[0]) for v in starts}) == 3


class TestDecoupledOrthogonality:
    def test_leads_to_orthogonal_weights_whatever_the_gradients_are(self):
        # Adam's steps for gradients of zero are zero.
        model = make_plain_model()
        optimizer = optimizers.DecoupledOrthogonality(
            keras.optimizers.Adam(0.05), strength=1.0
        )
        _descend(optimizer, model, steps=80)
        for layer in model.layers:
            np.testing.assert_allclose(_singular_values(layer), 1.0, rtol=1e-3)

    def test_has_no_part_in_the_moments(self):
        moments = []
        for strength in (0.0, 0.5):
            model = make_plain_model()
            inner = keras.optimizers.Adam(0.02)
            optimizer = optimizers.DecoupledOrthogonality(inner, strength)
            gradients = [ops.ones(v.shape) for v in model.trainable_variables]
            for _ in range(3):
                optimizer.apply(gradients, model.trainable_variables)
            moments.append([to_numpy(v) for v in inner.variables])
        for one, other in zip(*moments):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", _PENALTIES)
@pytest.mark.parametrize("strength", [-0.1, float("nan"), "a", True])
def test_bad_strength(kind, strength):
    with pytest.raises(
        ValueError,
        match="`strength` must be a number that is not negative.*"
        f"Received: strength={strength}",
    ):
        kind(keras.optimizers.SGD(), strength=strength)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "L2Init",
            {"target_initializer": "he"},
            "`target_initializer` must be `None`, a Keras initializer or the "
            "name of one.*target_initializer=he",
        ),
        (
            "L2Init",
            {"target_initializer": "orthogonal", "draw_biases": True},
            "`draw_biases=True` needs a `target_initializer` that draws "
            "independent numbers.*Received: target_initializer=",
        ),
        (
            "L2Init",
            {"draw_biases": True},
            "`draw_biases=True` needs a .*Received: target_initializer=None",
        ),
        ("L2Init", {"distance": "l3"}, "one of .*'huber'.*distance=l3"),
        ("ParsevalRegularization", {"scale": 0}, "positive.*scale=0"),
        ("SpectralRegularization", {"exponent": 0.5}, r"in \[1, inf\).*=0.5"),
        ("SpectralRegularization", {"target": -1.0}, "negative.*target=-1.0"),
        ("SpectralRegularization", {"num_iterations": 0}, "positive integer"),
        ("DecoupledOrthogonality", {"step_size": -1}, "step_size=-1"),
        ("DecoupledOrthogonality", {"strength": -1}, "strength=-1"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(optimizers, name)(keras.optimizers.SGD(), **settings)


@pytest.mark.parametrize(
    "name", ["ParsevalRegularization", "DecoupledOrthogonality"]
)
def test_nothing_to_act_on(name):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Embedding(3, 2)])
    optimizer = getattr(optimizers, name)(keras.optimizers.SGD())
    with pytest.raises(
        ValueError, match=f"`{name}` has no weight to act on.*embeddings"
    ):
        optimizer.build(model.trainable_variables)


def test_strength_by_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0], [1.0, 0.0]
    )
    model = make_plain_model()
    optimizer = optimizers.ParsevalRegularization(
        keras.optimizers.SGD(0.01), schedule
    )
    start = weights_of(model)
    _descend(optimizer, model, steps=1)
    first = weights_of(model)
    assert np.any(first["layer_0/kernel"] != start["layer_0/kernel"])
    _descend(optimizer, model, steps=1)
    np.testing.assert_array_equal(
        weights_of(model)["layer_0/kernel"], first["layer_0/kernel"]
    )
