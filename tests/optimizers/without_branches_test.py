"""Replacement as on accelerators: no loop whose length has to be asked for.

The same units, random numbers and weights as with the loops of a CPU.
"""

import re

import keras
import numpy as np
import pytest

from keras_plasticity import backend
from keras_plasticity import optimizers
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.small_models import convolutional
from tests.small_models import dense
from tests.small_models import two_readers

_BACKEND = keras.backend.backend()
pytestmark = [
    pytest.mark.skipif(
        _BACKEND == "torch", reason="On PyTorch the host runs every step."
    ),
    pytest.mark.usefixtures("fast_compilation"),
]


def continual_backprop(inner, **kwargs):
    kwargs = {"replacement_rate": 0.05, "maturity_threshold": 2, **kwargs}
    return optimizers.ContinualBackprop(inner, seed=0, **kwargs)


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9)


CASES = {
    "dense": (dense, lambda: continual_backprop(momentum())),
    "convolutional": (
        convolutional,
        lambda: continual_backprop(keras.optimizers.Adam(0.01)),
    ),
    "two readers": (
        two_readers,
        lambda: continual_backprop(momentum(), utility="adaptation"),
    ),
    "mean moved": (
        two_readers,
        lambda: continual_backprop(momentum(), transfer_mean=True),
    ),
    "random": (
        dense,
        lambda: continual_backprop(momentum(), utility="random"),
    ),
    "two at once": (
        dense,
        lambda: continual_backprop(momentum(), replacement_rate=0.3),
    ),
    "many at once": (
        dense,
        lambda: continual_backprop(momentum(), replacement_rate=0.9),
    ),
    "schedule": (
        dense,
        lambda: continual_backprop(
            momentum(),
            replacement_rate=keras.optimizers.schedules.ExponentialDecay(
                0.3, 3, 0.5
            ),
        ),
    ),
    "accumulated": (
        dense,
        lambda: continual_backprop(
            keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
        ),
    ),
    "loss scaled": (
        dense,
        lambda: continual_backprop(
            keras.optimizers.LossScaleOptimizer(momentum())
        ),
    ),
    "redo": (
        dense,
        lambda: optimizers.ReDo(momentum(), threshold=0.6, period=3, seed=0),
    ),
    "self-normalized": (
        dense,
        lambda: optimizers.SelfNormalizedResets(
            momentum(),
            min_threshold=3,
            max_threshold=50,
            initial_threshold=4,
            threshold_period=5,
            seed=0,
        ),
    ),
}


def compiled(case, seed=0):
    build, make_optimizer = CASES[case]
    model = build()
    model.compile(make_optimizer(), "mse")
    return model


def state_of(model):
    variables = model.variables + model.optimizer.variables
    return [to_numpy(v) for v in variables]


def num_replaced(model):
    return list(model.optimizer.num_replaced().values())


def assert_same_state(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        # Other programs round otherwise.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    mostly_slow(
        list(CASES),
        *("convolutional", "accumulated"),
        *(("dense", "mean moved", "redo") if _BACKEND == "jax" else ()),
    ),
)
def test_equals_the_loops(case, monkeypatch):
    data = make_data(80)

    def fit():
        model = compiled(case)
        model.fit(*data, batch_size=4, shuffle=False, verbose=0)
        return model

    expected = fit()
    assert sum(num_replaced(expected)) > 1
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    model = fit()
    assert num_replaced(model) == num_replaced(expected)
    assert_same_state(state_of(model), state_of(expected))


class Stream:
    def __init__(self, learner=0):
        self.data = make_data(60, seed=learner)

    def __len__(self):
        return 2

    def task(self, index):
        return self.data


@pytest.mark.skipif(_BACKEND != "jax", reason="Others train them in turn.")
@pytest.mark.parametrize(
    "case", mostly_slow(["dense", "many at once", "redo"], "dense")
)
def test_learners_side_by_side_equal_the_loops(case, monkeypatch):
    def fit():
        trainer = OnlineTrainer(lambda learner: compiled(case), 3)
        trainer.fit(Stream)
        models = map(trainer.model, range(3))
        return [(num_replaced(model), state_of(model)) for model in models]

    expected = fit()
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    for (number, state), (expected_number, expected_state) in zip(
        fit(), expected
    ):
        assert number == expected_number and sum(number) > 1
        assert_same_state(state, expected_state)


@pytest.mark.parametrize("how", ["of its own", "changed later"])
@pytest.mark.skipif(_BACKEND != "jax", reason="Others have a program each.")
def test_one_program_has_room_for_all_learners(how, monkeypatch):
    def build(learner):
        model = make_model(activation="relu", seed=learner)
        rate = 0.8 if learner and how == "of its own" else 0.01
        optimizer = continual_backprop(momentum(), replacement_rate=rate)
        model.compile(optimizer, "mse")
        return model

    def fit():
        trainer = OnlineTrainer(build, 2)
        trainer.fit(Stream, num_tasks=1)
        if how == "changed later":
            with trainer.edit(1) as model:
                model.optimizer.replacement_rate = 0.8
        trainer.fit(Stream, first_task=1, num_tasks=1)
        return num_replaced(trainer.model(1))

    expected = fit()
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    assert fit() == expected
    assert min(expected) > 60


def test_a_rate_that_was_raised_far(monkeypatch):
    # The step has room for one unit of each layer.
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    dims = (4, 100, 100, 3)
    model = make_model(dims, activation="relu")
    optimizer = continual_backprop(momentum(), replacement_rate=1e-4)
    model.compile(optimizer, "mse")
    x, y = make_data(40, dims)
    model.fit(x, y, batch_size=4, verbose=0)
    rate = type(optimizer).replacement_rate
    rate.assign(optimizer, 0.5)
    before = num_replaced(model)
    model.fit(x, y, batch_size=4, epochs=10, verbose=0)
    # One in every update, and no more wait than there are.
    assert [n - b for n, b in zip(num_replaced(model), before)] == [100, 100]
    waiting = to_numpy(optimizer._waiting).tolist()
    assert waiting == [100, 100]
    for layer in model.layers[:-1]:
        assert to_numpy(layer.age).min() >= 0


def test_a_rate_that_was_raised_is_made_up_for(monkeypatch):
    # The step was compiled for one unit of each layer at most.
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    model = compiled("dense")
    optimizer = model.optimizer
    x, y = make_data(40)
    model.fit(x, y, batch_size=4, verbose=0)
    before = optimizer.num_replaced()
    rate = type(optimizer).replacement_rate
    # As a file, or a loop of one's own, sets it.
    rate.assign(optimizer, 0.4)
    model.fit(x, y, batch_size=4, verbose=0)
    now = optimizer.num_replaced()
    assert now["layer_0"] - before["layer_0"] <= 10
    rate.assign(optimizer, 0.0)
    model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    later = optimizer.num_replaced()
    assert later["layer_0"] > now["layer_0"]


def cuda_programs(case, monkeypatch):
    """The program of a step within a scan, for a GPU and for a CPU."""
    import jax

    model = compiled(case)
    x, y = make_data(8)
    model.optimizer.build(model.trainable_variables)
    model.train_on_batch(x[:1], y[:1])
    parts = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = [[v.value for v in part] for part in parts]

    def program(platform):
        # New functions each time: JAX traces each only once.
        def step(state, batch):
            _, state = model.train_step(state, batch)
            return [list(part) for part in state], None

        scan = jax.jit(lambda state, data: jax.lax.scan(step, state, data)[0])
        exported = jax.export.export(scan, platforms=[platform])
        return str(exported(state, (x[:, None], y[:, None])).mlir_module())

    for_cpu = program("cpu")
    monkeypatch.setattr(backend, "avoids_branches", lambda: True)
    return program("cuda"), for_cpu


def num_branches(program):
    return len(re.findall(r"stablehlo\.(?:while|case|if)\b", program))


@pytest.mark.skipif(_BACKEND != "jax", reason="Only JAX shows its programs.")
@pytest.mark.parametrize(
    "case", ["dense", "convolutional", "two readers", "mean moved"]
)
def test_no_branch_within_the_steps_on_a_gpu(case, monkeypatch):
    for_gpu, for_cpu = cuda_programs(case, monkeypatch)
    # The scan itself.
    assert num_branches(for_gpu) == 1
    assert num_branches(for_cpu) > 2


@pytest.mark.skipif(_BACKEND != "jax", reason="Only JAX shows its programs.")
@pytest.mark.parametrize("case", ["redo", "many at once"])
def test_one_question_an_update_where_many_may_be_due(case, monkeypatch):
    for_gpu, _ = cuda_programs(case, monkeypatch)
    # Within that one are the loops of the two layers.
    assert num_branches(for_gpu) == 1 + 1 + 2
