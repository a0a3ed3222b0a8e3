import keras
import numpy as np
import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments import activations
from tests.helpers import to_numpy


def test_kernels_and_biases_are_in_the_range_of_pytorch():
    rng = np.random.default_rng(0)
    layers = [
        layer(
            64,
            **arguments,
            kernel_initializer=experiments.pytorch_initializer(rng),
        )
        for layer, arguments in (
            (keras.layers.Conv2D, {"kernel_size": 3}),
            (keras.layers.Dense, {}),
        )
    ]
    model = keras.Sequential([keras.Input((5, 5, 4)), *layers])
    experiments.draw_pytorch_biases(model, rng)
    for layer, fan_in in zip(layers, (36, 64)):
        for weight in (layer.kernel, layer.bias):
            largest = np.abs(to_numpy(weight)).max()
            assert 0.8 * fan_in**-0.5 < largest <= fan_in**-0.5


def test_each_initializer_has_its_own_seed():
    rng = np.random.default_rng(0)
    one, other = (experiments.pytorch_initializer(rng) for _ in range(2))
    assert one.seed != other.seed


def test_gains_are_those_of_the_paper():
    assert activations.GAINS == pytest.approx(
        {
            "relu": 1.41421356,
            "leaky_relu": 1.41414285,
            "tanh": 1.66666667,
            "sigmoid": 1.0,
            "elu": 1.41421356,
            "swish": 1.41421356,
        }
    )
