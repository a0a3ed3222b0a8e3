"""ReDo and self-normalized resets against slow NumPy transcriptions."""

import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import SelfNormalizedResets
from tests import reference_algorithm as reference
from tests import reference_resets
from tests.helpers import CountedDraws
from tests.helpers import counted_draw
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_DIMS = (6, 9, 7, 8, 3)
_SGD = (
    lambda: keras.optimizers.SGD(0.1),
    lambda shape: reference.SGD(shape, 0.1),
)
_MOMENTUM = (
    lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    lambda shape: reference.SGD(shape, 0.05, 0.9),
)
_ADAM = (
    lambda: keras.optimizers.Adam(0.01),
    lambda shape: reference.Adam(shape, 0.01),
)
_DEFAULTS = {
    "optimizers": _SGD,
    "batch_size": 5,
    "activation": "relu",
    "steps": 60,
    "data_seed": 1,
}
_REDO = {
    "threshold": 0.4,
    "period": 5,
    "score_updates": 1,
    "new_weights": "drawn",
    "shared_weights": "outgoing",
    "reset_bias_slots": False,
}
_REDO_CASES = {
    "sgd": {},
    "momentum": {"optimizers": _MOMENTUM},
    "adam": {"optimizers": _ADAM},
    "tanh": {"activation": "tanh", "threshold": 0.7},
    "mean_of_3": {"score_updates": 3, "threshold": 0.6},
    "mean_of_all": {"score_updates": 5, "threshold": 0.7},
    "batch_1": {
        "batch_size": 1,
        "score_updates": 10,
        "period": 15,
        "threshold": 0.7,
        "steps": 120,
    },
    "at_each_update": {"period": 1},
    "dead_units_only": {"threshold": 0, "period": 3},
    "above_average": {"threshold": 1.2, "period": 9},
    # As in other public code.
    "incoming_wins": {"shared_weights": "incoming", "optimizers": _ADAM},
    "bias_slots": {"reset_bias_slots": True, "optimizers": _ADAM},
    "initial": {"new_weights": "initial", "optimizers": _MOMENTUM},
    "initial_wins": {
        "new_weights": "initial",
        "shared_weights": "incoming",
        "threshold": 0.7,
        "activation": "tanh",
    },
}
_RESETS = {
    "quantile": 0.9,
    "min_threshold": 4,
    "max_threshold": 64,
    "initial_threshold": 20,
    "threshold_period": 8,
}
_RESETS_CASES = {
    "sgd": {},
    "momentum": {"optimizers": _MOMENTUM},
    "adam": {"optimizers": _ADAM},
    "tanh": {"activation": "tanh"},
    "batch_1": {
        "batch_size": 1,
        "min_threshold": 1,
        "initial_threshold": 6,
        "threshold_period": 25,
        "steps": 150,
        "data_seed": 3,
    },
    "low_quantile": {"quantile": 0.3, "threshold_period": 20},
    "large_thresholds": {
        "max_threshold": 5000,
        "initial_threshold": 40,
        "threshold_period": 11,
    },
    "thresholds_at_each_update": {"threshold_period": 1},
}


class _Follow(keras.callbacks.Callback):
    """Makes each step with the oracle too, and compares."""

    def __init__(self, oracle, x, y, batch_size):
        super().__init__()
        self.oracle = oracle
        self.x, self.y, self.batch_size = x, y, batch_size
        self.replaced = 0

    def on_train_batch_end(self, batch, logs=None):
        part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        _, chosen = self.oracle.step(self.x[part], self.y[part])
        self.replaced += sum(map(len, chosen))
        variables = {
            v.name: to_numpy(v) for v in self.model.optimizer.variables
        }
        for i, units in enumerate(chosen):
            layer = self.model.layers[i]
            message = f"step {batch + 1}, layer {i}"
            replaced = np.flatnonzero(to_numpy(layer.age) == 0)
            np.testing.assert_array_equal(replaced, units, message)
            self.compare(layer, i, units, variables, message)

    def compare(self, layer, i, replaced, variables, message):
        if isinstance(self.oracle, reference_resets.ReDo):
            if self.oracle.scores is None:
                return
            kept = to_numpy(layer.age) > self.oracle.t - 1  # Never replaced.
            np.testing.assert_allclose(
                to_numpy(layer.utility)[kept],
                self.oracle.scores[i][kept],
                rtol=1e-4,
                atol=1e-6,
                err_msg=message,
            )
            return
        path = layer.path.replace("/", "_")
        for name in ("silence", "threshold"):
            np.testing.assert_array_equal(
                variables[f"{path}_{name}"],
                getattr(self.oracle, name)[i],
                f"{name}, {message}",
            )


def _run(case, optimizer_class, oracle_class, settings):
    num = case["steps"] * case["batch_size"]
    x, y = make_data(num, _DIMS, seed=case["data_seed"])
    model = make_model(
        _DIMS,
        activation=case["activation"],
        kernel_initializer=CountedDraws(),
    )
    make_keras_optimizer, make_reference_optimizer = case["optimizers"]
    oracle = oracle_class(
        reference.Network(
            [to_numpy(layer.kernel) for layer in model.layers],
            [to_numpy(layer.bias) for layer in model.layers],
            activation=case["activation"],
            loss="mse",
        ),
        make_reference_optimizer,
        counted_draw,
        **settings,
    )
    optimizer = optimizer_class(make_keras_optimizer(), seed=7, **settings)
    model.compile(optimizer=optimizer, loss="mse")
    follow = _Follow(oracle, x, y, case["batch_size"])
    model.fit(
        x,
        y,
        batch_size=case["batch_size"],
        shuffle=False,
        verbose=0,
        callbacks=[follow],
    )
    assert oracle.t == case["steps"]
    # The case is worth its name, and float32 is not asked for the impossible.
    assert follow.replaced >= 5
    assert follow.replaced == sum(optimizer.num_replaced().values())
    assert oracle.closest > 1e-6 or settings.get("threshold") == 0
    for i, layer in enumerate(model.layers):
        for actual, expected in (
            (layer.kernel, oracle.network.kernels[i]),
            (layer.bias, oracle.network.biases[i]),
        ):
            np.testing.assert_allclose(
                to_numpy(actual),
                expected,
                rtol=1e-3,
                atol=1e-4,
                err_msg=actual.path,
            )
    return oracle


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        _REDO_CASES,
        "sgd",
        "adam",
        "mean_of_3",
        "batch_1",
        "incoming_wins",
        "initial",
    ),
)
def test_redo(name):
    case = {**_DEFAULTS, **_REDO, **_REDO_CASES[name]}
    oracle = _run(
        case,
        ReDo,
        reference_resets.ReDo,
        {key: case[key] for key in _REDO},
    )
    if name in ("sgd", "adam", "momentum", "incoming_wins", "initial_wins"):
        assert oracle.most_at_once >= 2
        # There are weights between two units that were replaced together.
        assert oracle.shared_weights > 0


@pytest.mark.parametrize(
    "name", mostly_slow(_RESETS_CASES, "sgd", "adam", "tanh", "batch_1")
)
def test_self_normalized_resets(name):
    case = {**_DEFAULTS, **_RESETS, **_RESETS_CASES[name]}
    oracle = _run(
        case,
        SelfNormalizedResets,
        reference_resets.SelfNormalizedResets,
        {key: case[key] for key in _RESETS},
    )
    thresholds = {each for layer in oracle.threshold for each in layer}
    assert thresholds != {case["initial_threshold"]}
