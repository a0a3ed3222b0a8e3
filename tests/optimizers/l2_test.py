import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import L2
from tests.gradients import loss_and_gradients
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import train_plain_model


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
            for v, w in zip(a.statistics.variables, b.statistics.variables):
                np.testing.assert_array_equal(to_numpy(v), to_numpy(w))


class TestInnerOptimizer:
    def test_clipping_acts_on_the_sum(self):
        variable = keras.Variable(np.full(2, 10.0, "float32"))
        optimizer = L2(keras.optimizers.SGD(1.0, clipvalue=0.5), l2=1.0)
        optimizer.apply([ops.zeros(2)], [variable])
        np.testing.assert_allclose(to_numpy(variable), 9.5, rtol=1e-6)


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf"), "a", True])
def test_bad_l2(l2):
    with pytest.raises(
        ValueError,
        match=f"`l2` must be a number that is not negative.*Received: l2={l2}",
    ):
        L2(keras.optimizers.SGD(), l2=l2)
