"""Step by step against runs of the authors' code: events at boundaries."""

import itertools

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import callbacks
from tests.gradients import read_when_run
from tests.method_traces.trace import Trace
from tests.method_traces.trace import inner_optimizer
from tests.method_traces.trace import traces

# Plain layers, and plastic ones in which the methods must pass over what is no
# weight.
LAYERS = [keras.layers, keras_plasticity.layers]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", traces("fire"))
def test_fire(name, layers):
    trace = Trace(name, layers)
    trace.fit(callbacks.FIRE(trace.settings["iteration"], skip=0))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", traces("dash"))
def test_dash(name, layers):
    trace = Trace(name, layers)
    x, y = (np.concatenate(trace.data[name][40:52]) for name in "xy")
    trace.fit(
        callbacks.DASH(
            (x, y),
            alpha=trace.settings["alpha"],
            min_factor=trace.settings["lambda"],
            batch_size=4,
            skip=0,
        )
    )


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", traces("snp"))
def test_shrink_and_perturb_towards_the_first_network(name, layers):
    trace = Trace(name, layers)
    coefficient = trace.settings["shrink_coef"]

    def build_first(learner, task):
        return Trace(name, layers).model

    trace.fit(
        callbacks.ShrinkAndPerturbTasks(
            build_first,
            shrink=1 - coefficient,
            perturb=coefficient,
            skip=0,
            reset_optimizer="all",
        )
    )


class _TwoTasks:
    """The updates before and after the boundary."""

    def __init__(self, trace):
        self._x, self._y = trace.data["x"], trace.data["y"]

    def __len__(self):
        return 2

    def task(self, index):
        part = slice(40 * index, 40 * (index + 1))
        return np.concatenate(self._x[part]), np.concatenate(self._y[part])


def test_fire_in_the_engine():
    trace = Trace("fire_conv", keras.layers)
    trace.model.compile(inner_optimizer(trace.config["optimizer"]), trace.loss)
    keras_plasticity.training.OnlineTrainer(trace.model).fit(
        _TwoTasks(trace), batch_size=4, callbacks=[callbacks.FIRE()]
    )
    trace.compare("final_{}_{}")


@pytest.mark.parametrize("name", traces("shrink_perturb_kumar"))
def test_shrink_and_perturb_at_each_update(name):
    trace = Trace(name, keras.layers)
    optimizer = keras_plasticity.optimizers.ShrinkAndPerturbByInitializer(
        inner_optimizer(trace.config["optimizer"]),
        shrink=1 - trace.settings["shrink"],
        perturb=trace.settings["perturb_scale"],
        # As PyTorch draws kernels and biases.
        initializer=keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform"
        ),
        noise_refresh_steps=1,
        perturb_biases=True,
    )
    optimizer.build(trace.model.trainable_variables)
    names = [
        (name, i)
        for i in range(trace.num_layers)
        for name in ("kernel", "bias")
    ]
    calls, now = itertools.count(), [0]

    def draw(shape, dtype):
        # It is called for one weight after the other, once or in each step.
        name, i = names[next(calls) % len(names)]

        def value():
            # The optimizer draws numbers of magnitude one.
            numbers = trace.data[f"drawn_{name}_{i}"][now[0]]
            fan_in = np.prod(trace.data[f"init_kernel_{i}"].shape[:-1])
            return (numbers * np.sqrt(fan_in)).astype("float32")

        return read_when_run(value, tuple(shape))

    def after_step(step):
        now[0] = step + 1

    optimizer._noise._draw = draw
    trace.train(optimizer, after_step)
    assert now[0] == trace.config["steps"]
