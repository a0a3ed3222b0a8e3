"""Replacement in recurrent layers against a slow NumPy transcription."""

import keras
import numpy as np
import pytest

import keras_plasticity
from tests import reference_recurrent as reference
from tests.helpers import CountedDraws
from tests.helpers import counted_draw
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BATCH, _STEPS, _FEATURES, _OUTPUTS = 3, 4, 2, 2
_UNITS = (4, 3)
_NUM_UPDATES = 12
# Kind of the two layers, whether there is a mask, whether they go backwards.
_CASES = {
    "simple": ("SimpleRNN", False, False),
    "gru": ("GRU", False, False),
    "lstm": ("LSTM", False, False),
    "simple_masked": ("SimpleRNN", True, False),
    "gru_masked": ("GRU", True, False),
    "lstm_masked": ("LSTM", True, False),
    "gru_backwards": ("GRU", False, True),
    "lstm_masked_backwards": ("LSTM", True, True),
}


def make_model(kind, masked=False, backwards=False, kind_of_layers=None):
    """Two recurrent layers and a linear one, with known weights."""
    layers = kind_of_layers or keras_plasticity.layers
    model = keras.Sequential([keras.Input((_STEPS, _FEATURES))])
    if masked:
        model.add(keras.layers.Masking(mask_value=9.0))
    for i, units in enumerate(_UNITS):
        model.add(
            getattr(layers, kind)(
                units,
                kernel_initializer=CountedDraws(),
                recurrent_initializer=CountedDraws(),
                return_sequences=i == 0,
                # The second one begins with what the first one made last.
                go_backwards=backwards,
                name=f"layer_{i}",
            )
        )
    model.add(layers.Dense(_OUTPUTS, name="head"))
    rng = np.random.default_rng(0)
    for layer in model.layers[-3:]:
        layer.set_weights(
            [
                rng.normal(0, 0.6, w.shape) if w.shape != (2,) else w
                for w in layer.get_weights()[:3]
            ]
            + layer.get_weights()[3:]
        )
    return model


def make_batches(masked, num=_NUM_UPDATES):
    rng = np.random.default_rng(1)
    for _ in range(num):
        x = rng.normal(0, 1, (_BATCH, _STEPS, _FEATURES))
        y = rng.normal(0, 1, (_BATCH, _OUTPUTS))
        mask = None
        if masked:
            mask = rng.random((_BATCH, _STEPS)) < 0.6
            mask[0] = True
            x[~mask] = 9.0
        yield x.astype("float32"), y.astype("float32"), mask


@pytest.mark.parametrize(
    "name", mostly_on_torch(_CASES, "lstm_masked_backwards")
)
def test_oracle(name):
    kind, masked, backwards = _CASES[name]
    settings = {
        "replacement_rate": 0.13,
        "maturity_threshold": 1,
        "decay_rate": 0.8,
    }
    model = make_model(kind, masked, backwards)
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.3, momentum=0.5), seed=0, **settings
    )
    model.compile(optimizer, "mse")
    *recurrent, head = model.layers[-3:]
    oracle = reference.ContinualBackprop(
        reference.Network(
            [
                reference.Recurrent(
                    kind, map(to_numpy, layer.cell.trainable_weights), backwards
                )
                for layer in recurrent
            ],
            to_numpy(head.kernel),
            to_numpy(head.bias),
        ),
        0.3,
        0.5,
        new_incoming=counted_draw,
        **{**settings, "replacement_rate": "0.13"},
    )
    num_replaced = [0, 0]
    for step, (x, y, mask) in enumerate(make_batches(masked)):
        model.train_on_batch(x, y)
        chosen = oracle.step(x, y, mask)
        message = f"step {step + 1}"
        for i, layer in enumerate(recurrent):
            num_replaced[i] += len(chosen[i])
            age = to_numpy(layer.age)
            np.testing.assert_array_equal(age, oracle.age[i], message)
            np.testing.assert_allclose(
                to_numpy(layer.utility),
                oracle.utility(i),
                rtol=1e-4,
                atol=1e-7,
                err_msg=message,
            )
            np.testing.assert_allclose(
                to_numpy(layer.mean_activation),
                oracle.mean_activation(i),
                rtol=1e-4,
                atol=1e-6,
                err_msg=message,
            )
            for actual, expected in zip(
                layer.cell.trainable_weights, oracle.network.layers[i].weights
            ):
                np.testing.assert_allclose(
                    to_numpy(actual), expected, atol=2e-5, err_msg=message
                )
        np.testing.assert_allclose(
            to_numpy(head.kernel), oracle.network.head[0], atol=2e-5
        )
    assert min(num_replaced) >= 2
    assert list(optimizer.num_replaced().values()) == num_replaced
    assert oracle.closest_choice > 1e-4  # Float32 can tell them apart.
