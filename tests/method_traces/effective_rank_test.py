"""Step by step against a run of the authors' code: L2-ER."""

import keras

import keras_plasticity
from keras_plasticity.layers import RecentInputs
from tests.method_traces.trace import Trace


def test_l2_er():
    # What a step looks at is all that was shown since the last one.
    trace = Trace("l2er_sgd", before=[RecentInputs(5 * 4)])
    assert trace.settings == {
        "er_lr": 0.02,
        "er_batch": 5,
        "er_step": 1,
        "weight_decay": 0.01,
    }
    optimizer = keras_plasticity.optimizers.EffectiveRank(
        keras_plasticity.optimizers.L2(keras.optimizers.SGD(0.05), l2=0.01),
        rank_learning_rate=0.02,
        period=5,
    )
    trace.train(optimizer)
