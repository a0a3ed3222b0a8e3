"""Step by step against runs of the authors' code: methods of single weights."""

import itertools

import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import TRAC
from keras_plasticity.optimizers import UPGD
from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.optimizers import SelectiveWeightReinitialization
from keras_plasticity.optimizers import UnitUPGD
from tests.gradients import read_when_run
from tests.helpers import to_numpy
from tests.method_traces.trace import CorrectedAdam
from tests.method_traces.trace import Trace
from tests.method_traces.trace import inner_optimizer
from tests.method_traces.trace import traces


def _weights(trace):
    """The weights by the names that a trace has for them."""
    return {
        f"{name}_{i}": getattr(layer, name)
        for i, layer in enumerate(trace.layers)
        for name in ("kernel", "bias")
    }


class _Recorded:
    """Gives an optimizer, in each step, what a trace says was drawn."""

    def __init__(self, trace, prefix):
        self._trace, self._prefix = trace, prefix
        self.step = 0

    def __call__(self, weight):
        (name,) = [
            name
            for name, each in _weights(self._trace).items()
            if each is weight
        ]
        return read_when_run(lambda: self._read(name), tuple(weight.shape))

    def _read(self, name):
        values = self._trace.data[f"{self._prefix}_{name}"][self.step]
        return np.nan_to_num(values).astype("float32")

    def next(self, step):
        self.step = step + 1


def _make_upgd(kind, name, trace, monkeypatch):
    """An optimizer and its noise, as the name and the settings say."""
    settings = trace.settings
    optimizer = kind(
        keras.optimizers.SGD(settings["lr"]),
        scope="local" if "local" in name else "global",
        protecting="nonprotecting" not in name,
        utility_decay=settings["beta_utility"],
        decay=settings["weight_decay"],
        noise_stddev=settings["sigma"],
        noise_refresh_steps=1,
    )
    noise = _Recorded(trace, "noise")
    monkeypatch.setattr(optimizer, "_draw_noise", noise)
    return optimizer, noise


@pytest.mark.parametrize("name", traces("upgd_weight"))
def test_upgd(name, monkeypatch):
    trace = Trace(name, keras.layers)
    settings = trace.settings
    optimizer, noise = _make_upgd(UPGD, name, trace, monkeypatch)
    steps = len(trace.data["losses"])
    correction = 1 - settings["beta_utility"] ** steps
    trace.train(optimizer, end_step=noise.next)
    for name, weight in _weights(trace).items():
        np.testing.assert_allclose(
            to_numpy(optimizer._utilities[id(weight)]) * correction,
            trace.data[f"final_utility_{name}"],
            rtol=1e-3,
            atol=1e-6,
        )


@pytest.mark.parametrize("name", traces("upgd_feature"))
def test_unit_upgd(name, monkeypatch):
    trace = Trace(name)
    optimizer, noise = _make_upgd(UnitUPGD, name, trace, monkeypatch)
    trace.train(optimizer, end_step=noise.next)


@pytest.mark.parametrize("name", traces("upgd_adaptive"))
def test_upgd_adaptive(name, monkeypatch):
    trace = Trace(name, keras.layers)
    settings = trace.settings
    # Theirs makes steps twice as long as the learning rate says.
    optimizer = UPGD(
        CorrectedAdam(
            2 * settings["lr"],
            settings["beta1"],
            settings["beta2"],
            settings["eps"],
        ),
        utility_decay=settings["beta_utility"],
        decay=settings["weight_decay"] / 2,
        noise_stddev=settings["sigma"],
        noise_refresh_steps=1,
    )
    noise = _Recorded(trace, "noise")
    monkeypatch.setattr(optimizer, "_draw_noise", noise)
    trace.train(optimizer, end_step=noise.next)


@pytest.mark.parametrize("name", traces("swr"))
def test_selective_weight_reinitialization(name, monkeypatch):
    trace = Trace(name, keras.layers)
    settings = trace.settings
    optimizer = SelectiveWeightReinitialization(
        inner_optimizer(trace.config["optimizer"]),
        utility=settings["utility_function"],
        rule=settings["pruning_method"],
        replacement=settings["reinit_strat"],
        factor=settings["reinit_factor"],
        period=settings["reinit_freq"],
        decay_rate=settings["decay_rate"],
    )
    drawn = _Recorded(trace, "new")
    stddevs = dict(zip(_weights(trace), trace.config["stds"], strict=True))

    def draw(weight):
        # Of magnitude one, as the optimizer draws.
        (name,) = [n for n, w in _weights(trace).items() if w is weight]
        return drawn(weight) / stddevs[name]

    def chance(shape, seed):
        # Of one weight more, for one weight after the other.
        name = list(_weights(trace))[next(chances) % len(_weights(trace))]

        def value():
            reset = trace.data[f"reset_{name}"][drawn.step]
            number = settings["reinit_factor"] * reset.size
            return np.float32(0.0 if reset.sum() > int(number) else 1.0)

        return read_when_run(value, shape)

    chances = itertools.count()
    monkeypatch.setattr(optimizer, "_draw", draw)
    if settings["pruning_method"] == "proportional":
        monkeypatch.setattr(keras.random, "uniform", chance)
    resets = []

    def compare(step):
        for name, weight in _weights(trace).items():
            reset = trace.data[f"reset_{name}"][step]
            new = trace.data[f"new_{name}"][step]
            resets.append(reset.sum())
            np.testing.assert_allclose(
                to_numpy(weight)[reset], new[reset], rtol=1e-5
            )

    trace.train(optimizer, compare, drawn.next)
    assert sum(resets) > 0


@pytest.mark.parametrize(
    "name", [name for name in traces("trac") if "exact_erfi" in name]
)
def test_trac(name):
    trace = Trace(name, keras.layers)
    settings = trace.settings
    optimizer = TRAC(
        inner_optimizer(trace.config["optimizer"]),
        settings["betas"],
        settings["s_prev"],
        settings["eps"],
    )

    def compare(step):
        for variable, name in (
            (optimizer._sums, "sigma"),
            (optimizer._variances, "variance"),
        ):
            expected = trace.data[name][step]
            # One near zero is a sum of numbers as large as the others.
            atol = 1e-5 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(
                to_numpy(variable), expected, rtol=1e-3, atol=atol
            )

    # It amplifies roundings.
    trace.tolerance = 1e-3
    trace.train(optimizer, compare)


@pytest.mark.parametrize("name", traces("hare_tortoise"))
def test_hare_and_tortoise(name):
    trace = Trace(name, keras.layers)
    settings = trace.settings
    inner = CorrectedAdam(
        0.01, 0.9, 0.999, 1e-8, weight_decay=0.01, global_clipnorm=0.5
    )
    # When the hare is put back depends on the epochs of each task.
    optimizer = HareAndTortoise(inner, settings["ema"], period=10**6)
    weights = _weights(trace)
    snapshots = trace.data["snap_steps"].tolist()
    steps = settings["batches_per_epoch"] * settings["epochs_per_task"]
    swaps = []

    def tortoises():
        with optimizer.tortoise():
            return {name: to_numpy(each) for name, each in weights.items()}

    def follow(step):
        if step - 1 in swaps and step != steps:
            # In their code the two share their memory then, but not after the
            # last epoch of a task.
            for weight in weights.values():
                tortoise = optimizer._tortoises[id(weight)]
                tortoise.assign(to_numpy(weight))
        if step + 1 in snapshots:
            values = tortoises()
            for name, value in values.items():
                expected = trace.data[
                    f"tortoise_{name.rpartition('_')[0]}_{name[-1]}_t"
                ][snapshots.index(step + 1)]
                np.testing.assert_allclose(value, expected, atol=1e-4)

    def put_back(step):
        task, step_in_task = divmod(step, steps)
        epoch, batch = divmod(step_in_task, settings["batches_per_epoch"])
        is_end = batch == settings["batches_per_epoch"] - 1
        if is_end and epoch % settings["reset_every_epochs"] == 0:
            optimizer.reset_hare()
            swaps.append(step)
        if step_in_task < steps - 1:
            return
        for name, value in tortoises().items():
            if "bias" in name:  # Not recorded.
                continue
            hare = to_numpy(weights[name])
            for key, each in (("hare", hare), ("tortoise", value)):
                expected = trace.data[f"end_task{task}_{key}_{name}"]
                np.testing.assert_allclose(each, expected, atol=1e-4)
        # The authors' optimizer is a new one for each task.
        for variable in inner.variables[:1] + inner.variables[2:]:
            variable.assign(np.zeros(variable.shape, variable.dtype))

    trace.train(optimizer, follow, put_back)
    every, epochs = settings["reset_every_epochs"], settings["epochs_per_task"]
    assert len(swaps) == 2 * len(range(0, epochs, every))
