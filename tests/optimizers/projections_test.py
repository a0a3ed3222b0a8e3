"""Properties of `WeightClipping` and `NormalizeAndProject`."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import optimizers
from tests.helpers import make_data
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import weights_of


class TestWeightClipping:
    def test_weights_lie_within_the_bounds(self):
        model = make_plain_model()
        optimizer = optimizers.WeightClipping(
            keras.optimizers.SGD(0.1), kappa=0.5, exclude=["layer_2"]
        )
        start = weights_of(model)
        optimizer.build(model.trainable_variables)
        # Not before the first update.
        for key, value in weights_of(model).items():
            np.testing.assert_array_equal(value, start[key])
        train(model, optimizer, make_data(8))
        for layer in model.layers[:-1]:
            bound = 0.5 / np.sqrt(layer.kernel.shape[0])
            for weight in (layer.kernel, layer.bias):
                largest = np.abs(to_numpy(weight)).max()
                assert largest <= np.float32(bound) * (1 + 1e-6)
        output = model.layers[-1]
        assert np.abs(to_numpy(output.kernel)).max() > 0.5 / np.sqrt(5)

    def test_momentum_stays_as_it_is(self):
        momenta = []
        for kappa in (1e-3, 1e9):
            model = make_plain_model()
            inner = keras.optimizers.SGD(0.1, momentum=0.9)
            optimizer = optimizers.WeightClipping(inner, kappa)
            gradients = [ops.ones(v.shape) for v in model.trainable_variables]
            for _ in range(3):
                optimizer.apply(gradients, model.trainable_variables)
            momenta.append([to_numpy(v) for v in inner.variables])
        for one, other in zip(*momenta):
            np.testing.assert_array_equal(one, other)

    def test_layers_without_a_kernel_are_left_alone(self):
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                keras.layers.Embedding(5, 3, embeddings_initializer="ones"),
                keras.layers.LayerNormalization(),
                keras.layers.Dense(2, kernel_initializer="ones"),
            ]
        )
        optimizer = optimizers.WeightClipping(keras.optimizers.SGD(0.1), 0.3)
        variables = model.trainable_variables
        optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
        np.testing.assert_array_equal(to_numpy(model.layers[0].embeddings), 1.0)
        np.testing.assert_array_equal(to_numpy(model.layers[1].gamma), 1.0)
        np.testing.assert_allclose(
            to_numpy(model.layers[2].kernel), 0.3 / np.sqrt(3), rtol=1e-6
        )

    def test_normalization_layers_by_the_kernel_before(self):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                keras.layers.LayerNormalization(name="first"),
                keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
                keras.layers.BatchNormalization(name="batch"),
                keras.layers.Flatten(),
                keras.layers.Dense(5, name="dense"),
                keras.layers.LayerNormalization(name="layer"),
                keras.layers.Dense(3, name="output"),
                keras.layers.RMSNormalization(name="left_out"),
            ]
        )
        for weight in model.trainable_variables:
            weight.assign(np.full(weight.shape, 5.0, "float32"))
        optimizer = optimizers.WeightClipping(
            keras.optimizers.SGD(0.1),
            2.0,
            exclude=["left_out"],
            clip_normalization=True,
        )
        variables = model.trainable_variables
        optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
        bounds = {
            "first": 5.0,  # There is no kernel before.
            "conv": 2 / np.sqrt(18),
            "batch": 2 / np.sqrt(18),
            "dense": 2 / np.sqrt(64),
            "layer": 2 / np.sqrt(64),
            "output": 2 / np.sqrt(5),
            "left_out": 5.0,
        }
        for layer in model.layers:
            for weight in layer.trainable_variables:
                np.testing.assert_allclose(
                    to_numpy(weight), bounds[layer.name], rtol=1e-6
                )

    def test_kappa_may_change(self):
        model = make_plain_model()
        optimizer = optimizers.WeightClipping(keras.optimizers.SGD(0.0))
        train(model, optimizer, make_data(8))
        optimizer.kappa = 1e-3
        train(model, optimizer, make_data(8))
        for value in weights_of(model).values():
            assert np.abs(value).max() <= 1e-3

    @pytest.mark.parametrize("kappa", [0, -1.0, float("inf"), "a"])
    def test_bad_kappa(self, kappa):
        message = f"`kappa` must be a positive number.*kappa={kappa}"
        with pytest.raises(ValueError, match=message):
            optimizers.WeightClipping(keras.optimizers.SGD(), kappa)

    def test_bad_clip_normalization(self):
        with pytest.raises(ValueError, match="must be `True` or `False`.*=1"):
            optimizers.WeightClipping(
                keras.optimizers.SGD(), clip_normalization=1
            )


def _normalized_model(**kwargs):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, use_bias=False, name="hidden", **kwargs),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Dense(3, name="output"),
        ]
    )


class TestNormalizeAndProject:
    def test_norms_are_kept(self):
        model = _normalized_model()
        start = np.linalg.norm(to_numpy(model.get_layer("hidden").kernel))
        output = to_numpy(model.get_layer("output").kernel)
        optimizer = optimizers.NormalizeAndProject(
            keras.optimizers.Adam(0.1), exclude=["output"]
        )
        train(model, optimizer, make_data(24), epochs=3)
        hidden, norm = model.layers[0], model.get_layer("norm")
        np.testing.assert_allclose(
            np.linalg.norm(to_numpy(hidden.kernel)), start, rtol=1e-5
        )
        gain, offset = to_numpy(norm.gamma), to_numpy(norm.beta)
        np.testing.assert_allclose(
            np.sum(gain**2) + np.sum(offset**2), 6.0, rtol=1e-5
        )
        assert np.all(offset != 0) and np.all(gain != 1)
        after = to_numpy(model.get_layer("output").kernel)
        assert np.abs(np.linalg.norm(after) / np.linalg.norm(output) - 1) > 0.1

    def test_the_projection_changes_no_output(self):
        # As each kernel is followed by a normalization.
        model = _normalized_model()
        optimizer = optimizers.NormalizeAndProject(
            keras.optimizers.SGD(0.0), exclude=["output", "norm"]
        )
        optimizer.build(model.trainable_variables)
        kernel = model.get_layer("hidden").kernel
        kernel.assign(3 * to_numpy(kernel))
        x, y = make_data(8)
        before = to_numpy(model(x))
        grown = to_numpy(kernel)
        model.compile(optimizer, "mse")
        model.train_on_batch(x, y)
        np.testing.assert_allclose(to_numpy(kernel), grown / 3, rtol=1e-5)
        np.testing.assert_allclose(to_numpy(model(x)), before, atol=2e-2)

    def test_a_kernel_of_zeros_is_free(self):
        model = _normalized_model(kernel_initializer="zeros")
        optimizer = optimizers.NormalizeAndProject(keras.optimizers.SGD(0.1))
        variables = model.trainable_variables
        for gradient in (0.0, 1.0):
            optimizer.apply(
                [ops.full(v.shape, gradient) for v in variables], variables
            )
        np.testing.assert_allclose(
            to_numpy(model.get_layer("hidden").kernel), -0.1, rtol=1e-6
        )

    def test_a_gain_whose_offset_has_no_gradient_stays(self):
        model = _normalized_model()
        optimizer = optimizers.NormalizeAndProject(keras.optimizers.SGD(1.0))
        variables = model.trainable_variables
        optimizer.build(variables)
        gradients = [
            None if v.name == "beta" else ops.full(v.shape, -1.0)
            for v in variables
        ]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply(gradients, variables)
        norm = model.get_layer("norm")
        np.testing.assert_array_equal(to_numpy(norm.gamma), 2.0)

    def test_weights_with_a_constraint(self):
        model = _normalized_model(kernel_constraint="unit_norm")
        inner = keras.optimizers.SGD()
        with pytest.raises(
            ValueError,
            match="must have no constraint.*hidden/kernel' with a `UnitNorm`",
        ):
            optimizers.NormalizeAndProject(inner).build(
                model.trainable_variables
            )
        optimizers.NormalizeAndProject(inner, exclude=["hidden"]).build(
            model.trainable_variables
        )

    @pytest.mark.parametrize("period", [0, 1.5, True, "a"])
    def test_bad_period(self, period):
        message = f"`period` must be a positive integer.*period={period}"
        with pytest.raises(ValueError, match=message):
            optimizers.NormalizeAndProject(keras.optimizers.SGD(), period)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01), initial_scale=2.0
        ),
    ],
    ids=["accumulating", "loss_scale"],
)
class TestNotEveryStepIsAnUpdate:
    def test_bound_by_a_schedule(self, inner):
        kappa = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.1)
        model = make_plain_model()
        optimizer = optimizers.WeightClipping(inner(), kappa)
        x, y = make_data(24)
        model.compile(optimizer, "mse")
        updates = 0
        for step in range(4):
            model.train_on_batch(x[4 * step :][:4], y[4 * step :][:4])
            if int(optimizer.iterations) == updates:
                continue
            for layer in model.layers:
                bound = 0.1**updates / np.sqrt(layer.kernel.shape[0])
                largest = np.abs(to_numpy(layer.kernel)).max()
                np.testing.assert_allclose(largest, bound, rtol=1e-5)
            updates += 1
        assert updates in (2, 4)

    def test_projection_now_and_then(self, inner):
        model = _normalized_model()
        optimizer = optimizers.NormalizeAndProject(inner(), period=2)
        kernel = model.get_layer("hidden").kernel
        start = np.linalg.norm(to_numpy(kernel))
        model.compile(optimizer, "mse")
        x, y = make_data(48)
        before = 0
        for step in range(12):
            model.train_on_batch(x[4 * step :][:4], y[4 * step :][:4])
            number = int(optimizer.iterations)
            if number == before:
                continue
            before = number
            is_kept = np.isclose(
                np.linalg.norm(to_numpy(kernel)), start, rtol=3e-7
            )
            assert is_kept == (number % 2 == 0), number
        assert number in (6, 12)
