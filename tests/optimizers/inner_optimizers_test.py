"""Keras' newer optimizers inside the wrappers, in `fit` and in the engine."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import optimizers
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_INNER = {
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.01),
    # Its Adam, for biases, has a learning rate of its own.
    "Muon": lambda: keras.optimizers.Muon(0.01, adam_lr_ratio=0.1),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(
        0.01, warmup_steps=5
    ),
}
_WRAPPERS = {
    "ContinualBackprop": lambda inner: optimizers.ContinualBackprop(
        inner, replacement_rate=0.01, maturity_threshold=5, seed=0
    ),
    "CPR": lambda inner: optimizers.CPR(inner, period=10, seed=0),
    "EffectiveRank": lambda inner: optimizers.EffectiveRank(inner, period=5),
    "HareAndTortoise": lambda inner: optimizers.HareAndTortoise(
        inner, 0.5, period=10
    ),
    "L2Init": lambda inner: optimizers.L2Init(inner, 1e-3),
    "NormalizeAndProject": optimizers.NormalizeAndProject,
    "SelectiveWeightReinitialization": lambda inner: (
        optimizers.SelectiveWeightReinitialization(
            inner, factor=1e-3, period=10, seed=0
        )
    ),
    "ShrinkAndPerturb": lambda inner: optimizers.ShrinkAndPerturb(
        inner, seed=0
    ),
    "UPGD": lambda inner: optimizers.UPGD(inner, noise_stddev=1e-4, seed=0),
}


class _Task:
    def __init__(self, x, y):
        self._data = x, y

    def __len__(self):
        return 1

    def task(self, index):
        return self._data


def _model(wrap, inner):
    model = make_model(
        activation="relu", before=[keras_plasticity.layers.RecentInputs(8)]
    )
    model.compile(wrap(inner()), "mse")
    return model


@pytest.mark.parametrize(
    "wrapper, inner",
    mostly_slow(
        [(wrapper, inner) for wrapper in _WRAPPERS for inner in _INNER],
        ("ContinualBackprop", "Muon"),
        ("UPGD", "ScheduleFreeAdamW"),
    ),
)
def test_trains_in_fit_and_in_the_engine(wrapper, inner):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, 4)).astype("float32")
    y = (x @ rng.normal(size=(4, 3))).astype("float32")
    model = _model(_WRAPPERS[wrapper], _INNER[inner])
    before = np.mean((to_numpy(model(x)) - y) ** 2)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    weights = [to_numpy(v) for v in keras_plasticity.weights_of(model)]
    after = np.mean((to_numpy(model(x)) - y) ** 2)
    assert after < 0.9 * before
    model = _model(_WRAPPERS[wrapper], _INNER[inner])
    OnlineTrainer(model).fit(_Task(x, y), batch_size=8)
    for variable, expected in zip(keras_plasticity.weights_of(model), weights):
        np.testing.assert_allclose(
            to_numpy(variable), expected, rtol=1e-3, atol=1e-4
        )
