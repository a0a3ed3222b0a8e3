"""What all optimizer wrappers share, seen on those without requirements."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import L2
from keras_plasticity.optimizers import ShrinkAndPerturb
from keras_plasticity.optimizers import ShrinkAndPerturbByInitializer
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import train
from tests.helpers import weights_of

WRAPPERS = [L2, ShrinkAndPerturb, ShrinkAndPerturbByInitializer]


@pytest.mark.parametrize("wrapper", WRAPPERS)
class TestOptimizerWrapper:
    def test_learning_rate_and_iterations_are_the_inner_ones(self, wrapper):
        inner = keras.optimizers.SGD(0.5)
        optimizer = wrapper(inner)
        optimizer.learning_rate = 0.25
        np.testing.assert_allclose(inner.learning_rate, 0.25)
        np.testing.assert_allclose(optimizer.learning_rate, 0.25)
        train(make_model(), optimizer, make_data(12))
        assert int(optimizer.iterations) == int(inner.iterations) == 3

    def test_state_is_in_variables(self, wrapper):
        # Whatever is not there is neither saved nor carried by a JAX step.
        optimizer = wrapper(keras.optimizers.Adam(0.01))
        model = make_model()
        optimizer.build(model.trainable_variables)
        ids = [id(v) for v in optimizer.variables]
        assert len(set(ids)) == len(ids)
        for variable in optimizer.inner_optimizer.variables:
            assert id(variable) in ids
        if wrapper is not L2:
            assert id(optimizer._seed_generator.state) in ids
        assert not set(ids) & {id(v) for v in model.variables}

    def test_moving_average_of_the_weights(self, wrapper):
        model = make_model(layer=keras.layers.Dense)
        inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        optimizer = wrapper(inner)
        train(model, optimizer, make_data(12))
        average = weights_of(model)["layer_0/kernel"]
        (expected,) = [
            variable
            for variable in inner.variables
            if "average" in variable.path and tuple(variable.shape) == (4, 6)
        ]
        np.testing.assert_array_equal(average, ops.convert_to_numpy(expected))

    @pytest.mark.parametrize("inner", ["sgd", None, 0.1])
    def test_inner_is_not_an_optimizer(self, wrapper, inner):
        with pytest.raises(TypeError, match="must be a `keras.optimizers.Opt"):
            wrapper(inner)

    def test_argument_of_the_inner_optimizer(self, wrapper):
        with pytest.raises(
            ValueError,
            match=f"`{wrapper.__name__}` does not take `clipnorm`.*on the "
            "`inner_optimizer` instead. Received: clipnorm=1.0",
        ):
            wrapper(keras.optimizers.SGD(), clipnorm=1.0)

    def test_apply_before_build(self, wrapper):
        with pytest.raises(ValueError, match="must already be built"):
            wrapper(keras.optimizers.SGD()).apply([0.0])

    def test_number_of_gradients(self, wrapper):
        variables = [keras.Variable(np.ones(2)), keras.Variable(np.ones(3))]
        with pytest.raises(ValueError, match="1 gradients, 2 variables"):
            wrapper(keras.optimizers.SGD()).apply([ops.zeros(2)], variables)

    def test_no_gradients(self, wrapper):
        optimizer = wrapper(keras.optimizers.SGD())
        optimizer.apply([], [])
        assert not optimizer.built
