"""Step by step against a run of the authors' code: L2-ER."""

import pytest

import keras_plasticity
from keras_plasticity.layers import RecentInputs
from tests.method_traces.trace import Trace
from tests.method_traces.trace import inner_optimizer
from tests.method_traces.trace import traces


@pytest.mark.parametrize("name", traces("l2er"))
def test_l2_er(name):
    settings, batch_size = Trace(name).settings, 4
    # What a step looks at is all that was shown since the last one.
    recent = RecentInputs(settings["er_batch"] * batch_size)
    trace = Trace(name, before=[recent])
    optimizer = keras_plasticity.optimizers.EffectiveRank(
        keras_plasticity.optimizers.L2(
            inner_optimizer(trace.config["optimizer"]),
            l2=settings["weight_decay"],
        ),
        rank_learning_rate=settings["er_lr"],
        period=settings["er_batch"],
        steps=settings["er_step"],
    )
    trace.train(optimizer)
