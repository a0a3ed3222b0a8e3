"""The steps that networks make side by side are those of Keras."""

import math

import keras
import numpy as np
import pytest

from tests.benchmarks import readiness_ranking
from tests.benchmarks.readiness_ranking import Networks
from tests.benchmarks.readiness_ranking import Problem
from tests.benchmarks.readiness_ranking import build_model

REGRESSION = Problem(
    dims=(4, 5, 3, 1),
    loss=keras.losses.MeanSquaredError,
    learning_rate=0.01,
    stream=None,
    num_new=0,
)
CLASSIFICATION = Problem(
    dims=(4, 6, 3),
    loss=lambda: keras.losses.SparseCategoricalCrossentropy(True),
    learning_rate=0.01,
    stream=None,
    num_new=0,
)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("problem", [REGRESSION, CLASSIFICATION])
def test_steps(problem, optimizer):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 4, 4)).astype("float32")
    y = rng.normal(0, 1, (2, 4, 1)).astype("float32")
    if problem is CLASSIFICATION:
        y = rng.integers(0, 3, (2, 4))
    kind = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
    models = [build_model(problem, 0, kind[optimizer](0.1)) for _ in range(2)]
    networks = Networks(problem, models[0].get_weights(), copies=2)
    counts = np.array([1.0, 3.0, 1.0, 2.0], "float32")
    measured = np.repeat(np.arange(4), counts.astype(int))
    for i in range(4):
        for model, inputs, targets in zip(models, x, y):
            model.train_on_batch(inputs[i : i + 1], targets[i : i + 1])
        networks.step(x[:, i], y[:, i], optimizer, 0.1)
        losses = networks.losses(x[0], y[0], counts)
        for loss, model in zip(losses, models):
            expected = model.evaluate(x[0][measured], y[0][measured], verbose=0)
            assert loss == pytest.approx(expected, rel=1e-4)


def test_shares():
    share = readiness_ranking.share_ranked_right
    assert share([1, 2, 3], [0.1, 0.2, 0.3]) == 1.0
    assert share([1, 2, 3], [0.3, 0.2, 0.1]) == 0.0
    assert share([1, 2, 3], [0.2, 0.1, 0.3]) == 2 / 3
    assert share([1, 1], [0.2, 0.1]) == 0.5
    assert share([1, 2, 0], [0.2, 0.2, 0.1]) == 1.0
    assert math.isnan(share([1, 2], [0.2, 0.2]))
