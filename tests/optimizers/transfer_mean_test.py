"""What a unit contributed on average moves through every kind of layer."""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy
from tests.helpers import train

pytestmark = pytest.mark.usefixtures("fast_compilation")


def half(x):
    return 0.0 * x + 0.5


@pytest.mark.parametrize(
    ("rank", "make_consumer"),
    [
        (0, lambda: layers.Dense(3)),
        (1, lambda: layers.Dense(3)),
        (1, lambda: layers.EinsumDense("btc,cd->btd", (3, 3), bias_axes="d")),
        (1, lambda: layers.Conv1D(6, 2)),
        (1, lambda: layers.Conv1D(6, 2, groups=2)),
        (1, lambda: layers.DepthwiseConv1D(2, depth_multiplier=2)),
        (1, lambda: layers.SeparableConv1D(3, 2, depth_multiplier=2)),
        (2, lambda: layers.Conv2D(3, 2)),
        (2, lambda: layers.DepthwiseConv2D(2, depth_multiplier=3)),
        (2, lambda: layers.SeparableConv2D(3, 2, depth_multiplier=2)),
        (3, lambda: layers.Conv3D(3, 2)),
    ],
)
def test_a_constant_unit_is_replaced_without_a_trace(rank, make_consumer):
    units = [layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D][rank]
    size = [(4,), (4, 1)][bool(rank)]
    model = keras.Sequential(
        [
            keras.Input((3,) * rank + (4,)),
            units(*size, activation=half, name="units"),
            make_consumer(),
        ]
    )
    consumer = model.layers[-1]
    rng = np.random.default_rng(0)
    consumer.bias.assign(rng.normal(0, 1, consumer.bias.shape))
    x = rng.normal(0, 1, (12,) + (3,) * rank + (4,)).astype("float32")
    before = to_numpy(model(x))
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.0),
        # One of four units in the third step.
        replacement_rate=0.25,
        maturity_threshold=2,
        transfer_mean=True,
    )
    bias = to_numpy(consumer.bias)
    train(model, optimizer, (x, np.zeros_like(before)))
    assert optimizer.num_replaced() == {"units": 1}
    assert np.abs(to_numpy(consumer.bias) - bias).max() > 0.01
    np.testing.assert_allclose(to_numpy(model(x)), before, atol=1e-5)


def by_concatenate(x):
    return keras.layers.Concatenate()([keras.ops.relu(x), keras.ops.relu(-x)])


@pytest.mark.parametrize(
    ("make_between", "reads_images"),
    [
        (layers.CReLU, False),
        (layers.DeepFourier, False),
        (lambda: by_concatenate, False),
        (layers.ConcatenatedELU, True),
    ],
)
def test_a_constant_unit_with_two_features(make_between, reads_images):
    """Each of them has a mean of its own."""
    x = inputs = keras.Input((3, 3, 2) if reads_images else (2,))
    unit = keras.initializers.Constant(0.7)
    arguments = dict(kernel_initializer="zeros", bias_initializer=unit)
    if reads_images:
        x = layers.Conv2D(4, 2, name="units", **arguments)(x)
    else:
        x = layers.Dense(4, name="units", **arguments)(x)
    x = make_between()(x)
    if reads_images:
        x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    x = np.random.default_rng(0).normal(0, 1, (12, *model.input_shape[1:]))
    x = x.astype("float32")
    before = to_numpy(model(x))
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.0),
        utility="mean_corrected_contribution",
        replacement_rate=0.25,
        maturity_threshold=2,
        transfer_mean=True,
    )
    train(model, optimizer, (x, np.zeros_like(before)))
    assert optimizer.num_replaced() == {"units": 1}
    # What never changes is of no use, however large it is.
    utility = to_numpy(model.get_layer("units").utility)
    np.testing.assert_allclose(utility, 0.0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(model(x)), before, atol=1e-5)
