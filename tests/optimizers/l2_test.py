import inspect

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import L2
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import train_plain_model
from tests.helpers import weights_of


def _momentum_loop(weight, gradients, l2):
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        velocity = 0.9 * velocity - 0.1 * (gradient + l2 * weight)
        weight = weight + velocity
    return weight


def _adam_loop(weight, gradients, l2):
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient + l2 * weight
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        weight = weight - 0.1 * (mean / (1 - 0.9**step)) / (
            np.sqrt(square / (1 - 0.99**step)) + 1e-7
        )
    return weight


class TestPenalty:
    @pytest.mark.parametrize(
        ("make_inner", "loop"),
        [
            pytest.param(
                lambda: keras.optimizers.SGD(0.1, momentum=0.9),
                _momentum_loop,
                id="momentum",
            ),
            pytest.param(
                lambda: keras.optimizers.Adam(0.1, beta_2=0.99),
                _adam_loop,
                id="adam",
            ),
        ],
    )
    def test_equals_numpy(self, make_inner, loop):
        rng = np.random.default_rng(0)
        starts = [rng.normal(size=(3, 2)), rng.normal(size=(2,))]
        gradients = [
            rng.normal(size=(10, *start.shape)).astype("float32")
            for start in starts
        ]
        variables = [keras.Variable(start.astype("f4")) for start in starts]
        optimizer = L2(make_inner(), l2=0.2)
        for step in range(10):
            optimizer.apply(
                [ops.convert_to_tensor(g[step]) for g in gradients], variables
            )
        for variable, start, gradient in zip(variables, starts, gradients):
            expected = loop(start, gradient.astype("float64"), 0.2)
            np.testing.assert_allclose(
                to_numpy(variable), expected, rtol=1e-4, atol=1e-6
            )
            # The penalty is seen.
            assert np.all(np.abs(expected - loop(start, gradient, 0)) > 1e-3)

    def test_equals_the_penalty_in_the_loss(self):
        regularizer = keras.regularizers.L2(0.05)  # 0.05 * sum(w**2).
        model = make_model(
            layer=keras.layers.Dense,
            kernel_regularizer=regularizer,
            bias_regularizer=regularizer,
        )
        train(model, keras.optimizers.Adam(0.01), make_data(24))
        assert_same_weights(
            train_plain_model(L2(keras.optimizers.Adam(0.01), l2=0.1)),
            model,
            rtol=1e-4,
            atol=1e-5,
        )

    @pytest.mark.skipif(
        keras.backend.backend() != "torch", reason="PyTorch's optimizer"
    )
    def test_equals_torch_weight_decay(self):
        import torch

        ours, theirs = make_plain_model(), make_plain_model()
        optimizer = L2(keras.optimizers.SGD(0.1, momentum=0.9), l2=0.1)
        torch_optimizer = torch.optim.SGD(
            [v.value for v in theirs.trainable_variables],
            lr=0.1,
            momentum=0.9,
            weight_decay=0.1,
        )
        mse = keras.losses.MeanSquaredError()
        x, y = make_data(40)
        for i in range(0, 40, 4):
            _, gradients = loss_and_gradients(ours, mse, x[i:][:4], y[i:][:4])
            # Outside of `torch.no_grad`.
            optimizer.apply(gradients, ours.trainable_variables)
            loss_and_gradients(theirs, mse, x[i:][:4], y[i:][:4])
            torch_optimizer.step()
        assert_same_weights(ours, theirs, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "make_inner",
        [
            pytest.param(lambda: keras.optimizers.Adam(0.01), id="adam"),
            pytest.param(
                lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1),
                id="momentum",
            ),
        ],
    )
    def test_0_is_the_inner_optimizer(self, make_inner):
        model = train_plain_model(L2(make_inner(), l2=0))
        assert_same_weights(model, train_plain_model(make_inner()))

    def test_variable_without_gradient_is_left_alone(self):
        variables = [keras.Variable(np.ones(2, "float32")) for _ in range(2)]
        optimizer = L2(keras.optimizers.SGD(0.1), l2=1.0)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([None, ops.zeros(2)], variables)
        np.testing.assert_array_equal(to_numpy(variables[0]), 1.0)
        np.testing.assert_allclose(to_numpy(variables[1]), 0.9, rtol=1e-6)

    def test_statistics_of_plastic_layers_are_no_weights(self):
        plastic = make_model()
        train(plastic, L2(keras.optimizers.SGD(0.1), l2=0.1), make_data(24))
        plain = train_plain_model(L2(keras.optimizers.SGD(0.1), l2=0.1))
        assert_same_weights(plastic, plain)
        unpenalized = make_model()
        train(unpenalized, keras.optimizers.SGD(1e-9), make_data(24))
        penalized = make_model()
        train(penalized, L2(keras.optimizers.SGD(1e-9), 0.1), make_data(24))
        for a, b in zip(unpenalized.layers, penalized.layers):
            np.testing.assert_array_equal(
                to_numpy(a.statistics.input_mean),
                to_numpy(b.statistics.input_mean),
            )


class TestInnerOptimizer:
    def test_accumulated_steps_equal_the_joined_batch(self):
        joined = train_plain_model(
            L2(keras.optimizers.SGD(0.1), l2=0.1), batch_size=8
        )
        inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        parts = train_plain_model(L2(inner, l2=0.1), batch_size=4)
        assert_same_weights(parts, joined, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("place", ["inside", "outside", "factor"])
    def test_loss_scale_leaves_the_penalty(self, place):
        # Powers of two: the scaled run is the same but for roundings.
        if place == "inside":
            optimizer = L2(
                keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(0.1), initial_scale=8.0
                ),
                l2=0.1,
            )
        elif place == "outside":
            optimizer = keras.optimizers.LossScaleOptimizer(
                L2(keras.optimizers.SGD(0.1), l2=0.1), initial_scale=8.0
            )
        else:
            inner = keras.optimizers.SGD(0.1, loss_scale_factor=8.0)
            optimizer = L2(inner, l2=0.1)
        expected = train_plain_model(L2(keras.optimizers.SGD(0.1), l2=0.1))
        assert_same_weights(
            train_plain_model(optimizer), expected, rtol=1e-5, atol=1e-6
        )

    def test_clipping_acts_on_the_sum(self):
        variable = keras.Variable(np.full(2, 10.0, "float32"))
        optimizer = L2(keras.optimizers.SGD(1.0, clipvalue=0.5), l2=1.0)
        optimizer.apply([ops.zeros(2)], [variable])
        np.testing.assert_allclose(to_numpy(variable), 9.5, rtol=1e-6)

    @pytest.mark.parametrize(
        "policy", ["mixed_bfloat16", "bfloat16", "mixed_float16"]
    )
    def test_low_precision(self, policy):
        keras.config.set_dtype_policy(policy)
        try:
            model = train_plain_model(
                L2(keras.optimizers.SGD(0.1, momentum=0.9), l2=0.1)
            )
        finally:
            keras.config.set_dtype_policy("float32")
        expected = train_plain_model(
            L2(keras.optimizers.SGD(0.1, momentum=0.9), l2=0.1)
        )
        for key, value in weights_of(model).items():
            np.testing.assert_allclose(
                value.astype("float32"), weights_of(expected)[key], atol=0.05
            )

    @pytest.mark.skipif(
        keras.backend.backend() != "jax", reason="pure functions"
    )
    def test_stateless_apply(self):
        model = make_plain_model()
        step = compiled_step(
            model,
            L2(keras.optimizers.Adam(0.01), l2=0.1),
            keras.losses.MeanSquaredError(),
        )
        x, y = make_data(24)
        for i in range(0, 24, 4):
            step(x[i : i + 4], y[i : i + 4])
        expected = train_plain_model(L2(keras.optimizers.Adam(0.01), l2=0.1))
        assert_same_weights(model, expected, rtol=1e-5, atol=1e-6)


class TestConfig:
    def test_round_trip(self):
        optimizer = L2(keras.optimizers.Adam(0.25), l2=0.5, name="decay")
        config = optimizer.get_config()
        twin = L2.from_config(config)
        assert twin.get_config() == optimizer.get_config() == config
        assert isinstance(twin.inner_optimizer, keras.optimizers.Adam)
        assert twin.l2 == 0.5 and twin.name == "decay"
        np.testing.assert_allclose(twin.learning_rate, 0.25)

    def test_keras_serialization(self):
        optimizer = L2(keras.optimizers.SGD(0.25), l2=0.5)
        twin = keras.optimizers.deserialize(
            keras.optimizers.serialize(optimizer)
        )
        assert isinstance(twin, L2)
        assert twin.get_config() == optimizer.get_config()

    def test_every_argument_is_in_the_config(self):
        arguments = set(inspect.signature(L2).parameters)
        config = L2(keras.optimizers.SGD()).get_config()
        assert set(config) == arguments - {"kwargs"}

    def test_going_on_is_never_having_stopped(self, tmp_path):
        x, y = make_data(48)
        model = make_plain_model()
        optimizer = L2(keras.optimizers.SGD(0.1, momentum=0.9), l2=0.1)
        train(model, optimizer, (x[:24], y[:24]))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for each in (model, loaded):
            each.fit(x[24:], y[24:], batch_size=4, shuffle=False, verbose=0)
        assert_same_weights(loaded, model)


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf"), "a", True])
def test_bad_l2(l2):
    with pytest.raises(
        ValueError,
        match=f"`l2` must be a number that is not negative.*Received: l2={l2}",
    ):
        L2(keras.optimizers.SGD(), l2=l2)
