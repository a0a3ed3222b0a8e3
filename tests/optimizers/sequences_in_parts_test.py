"""Recurrent layers and attention, with a batch given in several parts."""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.weights import weights_of
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BATCH, _STEPS, _FEATURES, _UPDATES = 6, 5, 4, 8


def _recurrent(kind, x):
    x = getattr(layers, kind)(6, return_sequences=True)(x)
    return getattr(layers, kind)(5)(x)


_NETWORKS = {
    "SimpleRNN": lambda x: _recurrent("SimpleRNN", x),
    "GRU": lambda x: _recurrent("GRU", x),
    "LSTM": lambda x: _recurrent("LSTM", x),
    "masked": lambda x: layers.LSTM(5)(keras.layers.Masking()(x)),
    "bidirectional": lambda x: keras.layers.Bidirectional(layers.GRU(4))(x),
    "MultiHeadAttention": lambda x: keras.layers.Flatten()(
        layers.MultiHeadAttention(2, 3)(x, x)
    ),
    "GroupQueryAttention": lambda x: keras.layers.GlobalAveragePooling1D()(
        layers.GroupQueryAttention(3, 4, 2)(x, x)
    ),
}


def _trained(name, parts, x, y):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((_STEPS, _FEATURES))
    model = keras.Model(inputs, layers.Dense(3)(_NETWORKS[name](inputs)))
    inner = keras.optimizers.SGD(
        0.1, momentum=0.5, gradient_accumulation_steps=parts
    )
    model.compile(
        ContinualBackprop(inner, 0.15, maturity_threshold=1, seed=0), "mse"
    )
    size = _BATCH // (parts or 1)
    model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("parts", mostly_on_torch([2, 3], 2))
@pytest.mark.parametrize(
    "name", mostly_on_torch(_NETWORKS, "masked", "MultiHeadAttention")
)
def test_accumulated_steps_equal_the_joined_batch(name, parts):
    rng = np.random.default_rng(1)
    num = _BATCH * _UPDATES
    x = rng.normal(0, 1, (num, _STEPS, _FEATURES)).astype("float32")
    if name == "masked":
        # Two steps of each example, whichever they are.
        places = rng.permuted(np.tile(np.arange(_STEPS), (num, 1)), axis=1)
        x[places < 2] = 0
    y = rng.normal(0, 1, (num, 3)).astype("float32")
    joined, accumulated = (_trained(name, each, x, y) for each in (None, parts))
    replaced = joined.optimizer.num_replaced()
    assert list(accumulated.optimizer.num_replaced().values()) == list(
        replaced.values()
    )
    assert min(replaced.values()) > 2
    for units, others in zip(
        joined.optimizer.hidden, accumulated.optimizer.hidden, strict=True
    ):
        for statistic in ("utility", "age", "mean_activation"):
            value = to_numpy(getattr(units.layer, statistic))
            assert np.any(value != 0)
            np.testing.assert_allclose(
                to_numpy(getattr(others.layer, statistic)),
                value,
                rtol=1e-4,
                atol=1e-6,
                err_msg=statistic,
            )
    for weight, other in zip(
        weights_of(joined), weights_of(accumulated), strict=True
    ):
        np.testing.assert_allclose(
            to_numpy(other), to_numpy(weight), atol=1e-5, err_msg=weight.path
        )
