"""`ContinualBackprop` against a slow NumPy transcription, step by step."""

import keras
import numpy as np
import pytest

import keras_plasticity
from tests import reference_algorithm as reference
from tests.helpers import CountedDraws
from tests.helpers import counted_draw
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_DIMS = (6, 9, 7, 8, 3)


def _sgd(learning_rate=0.1, momentum=0.0):
    return (
        lambda: keras.optimizers.SGD(learning_rate, momentum=momentum),
        lambda shape: reference.SGD(shape, learning_rate, momentum),
    )


def _adam():
    return (
        lambda: keras.optimizers.Adam(0.01),
        lambda shape: reference.Adam(shape, 0.01),
    )


_DEFAULTS = {
    "optimizers": _sgd(),
    "utility": "contribution",
    "replacement_rate": 0.03,
    "maturity_threshold": 4,
    "decay_rate": 0.9,
    "transfer_mean": False,
    "reset_optimizer_state": True,
    "batch_size": 5,
    "activation": "tanh",
    "loss": "mse",
    "use_bias": True,
    "steps": 50,
}
# At this rate several units of a layer are due at once, also in neighbouring
# layers, where the weight between two of them is at stake.
_MANY = {"replacement_rate": 0.23, "maturity_threshold": 2}
_CASES = {
    "sgd": {},
    "relu_cross_entropy": {"activation": "relu", "loss": "softmax"},
    "batch_1": {"batch_size": 1, "utility": "overall"},
    "batch_32": {"batch_size": 32},
    "mean_corrected": {"utility": "mean_corrected_contribution"},
    "adaptation": {"utility": "adaptation"},
    "overall": {"utility": "overall"},
    "weight_magnitude": {"utility": "weight_magnitude"},
    "no_decay": {"decay_rate": 0.0},
    "immature_never_spared": {"maturity_threshold": 0},
    "momentum_reset": {"optimizers": _sgd(0.05, 0.9), **_MANY},
    "momentum_kept": {
        "optimizers": _sgd(0.05, 0.9),
        "reset_optimizer_state": False,
        **_MANY,
    },
    "adam_reset": {"optimizers": _adam(), "utility": "overall"},
    "adam_reset_many": {"optimizers": _adam(), **_MANY},
    "adam_kept": {
        "optimizers": _adam(),
        "reset_optimizer_state": False,
        **_MANY,
    },
    "many": _MANY,
    "many_overall_batch_1": {"utility": "overall", "batch_size": 1, **_MANY},
    "transfer_mean": {"transfer_mean": True},
    "transfer_mean_many": {
        "transfer_mean": True,
        "utility": "overall",
        **_MANY,
    },
    "no_bias": {"use_bias": False, **_MANY},
}


class _Follow(keras.callbacks.Callback):
    """Makes each step with the oracle too, and compares."""

    def __init__(self, oracle, x, y, batch_size):
        super().__init__()
        self.oracle = oracle
        self.x, self.y, self.batch_size = x, y, batch_size

    def on_train_batch_end(self, batch, logs=None):
        part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        loss, chosen = self.oracle.step(self.x[part], self.y[part])
        message = f"step {batch + 1}"
        for i, units in enumerate(chosen):
            layer = self.model.layers[i]
            oracle_layer = self.oracle.layers[i]
            age = to_numpy(layer.age)
            np.testing.assert_array_equal(
                np.flatnonzero(age == 0), sorted(units), message
            )
            np.testing.assert_array_equal(age, oracle_layer.age, message)
            np.testing.assert_allclose(
                to_numpy(layer.utility),
                self.oracle.utilities(i),
                rtol=2e-3,
                atol=2e-6,
                err_msg=message,
            )
            np.testing.assert_allclose(
                to_numpy(layer.mean_activation),
                self.oracle.mean_activations(i),
                rtol=1e-3,
                atol=1e-5,
                err_msg=message,
            )


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        _CASES,
        "sgd",
        "relu_cross_entropy",
        "batch_1",
        "mean_corrected",
        "adaptation",
        "overall",
        "momentum_reset",
        "adam_reset_many",
        "adam_kept",
        "many",
        "transfer_mean_many",
        "no_bias",
    ),
)
def test_oracle(name):
    case = {**_DEFAULTS, **_CASES[name]}
    batch_size = case["batch_size"]
    x, y = make_data(case["steps"] * batch_size, _DIMS)
    loss = case["loss"]
    if loss == "softmax":
        y = y.argmax(axis=1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = make_model(
        _DIMS,
        activation=case["activation"],
        use_bias=case["use_bias"],
        kernel_initializer=CountedDraws(),
    )
    settings = {
        key: case[key]
        for key in (
            "maturity_threshold",
            "decay_rate",
            "utility",
            "transfer_mean",
            "reset_optimizer_state",
        )
    }
    make_keras_optimizer, make_reference_optimizer = case["optimizers"]
    oracle = reference.ContinualBackprop(
        reference.Network(
            [to_numpy(layer.kernel) for layer in model.layers],
            [
                None if layer.bias is None else to_numpy(layer.bias)
                for layer in model.layers
            ],
            activation=case["activation"],
            loss=case["loss"],
        ),
        make_reference_optimizer,
        # As a person writes it: 0.03 and not the float next to it.
        replacement_rate=str(case["replacement_rate"]),
        new_incoming=counted_draw,
        **settings,
    )
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        make_keras_optimizer(),
        replacement_rate=case["replacement_rate"],
        seed=7,
        **settings,
    )
    model.compile(optimizer=optimizer, loss=loss)
    model.fit(
        x,
        y,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[_Follow(oracle, x, y, batch_size)],
    )

    assert oracle.t == case["steps"]
    # The case is worth its name, and float32 is not asked for the impossible.
    assert min(layer.num_replaced for layer in oracle.layers) >= 5
    assert oracle.closest_choice > 1e-5
    if case["replacement_rate"] == _MANY["replacement_rate"]:
        assert oracle.most_at_once >= 2
        assert oracle.shared_weights > 0
    assert list(optimizer.num_replaced().values()) == [
        layer.num_replaced for layer in oracle.layers
    ]
    for i, layer in enumerate(model.layers):
        np.testing.assert_allclose(
            to_numpy(layer.kernel),
            oracle.network.kernels[i],
            rtol=1e-3,
            atol=1e-4,
            err_msg=f"kernel {i}",
        )
        if layer.bias is not None:
            np.testing.assert_allclose(
                to_numpy(layer.bias),
                oracle.network.biases[i],
                rtol=1e-3,
                atol=1e-4,
                err_msg=f"bias {i}",
            )
