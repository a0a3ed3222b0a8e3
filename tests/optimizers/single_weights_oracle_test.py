"""Methods of single weights against literal NumPy in float64.

There is no model: the optimizers are given the same variables and gradients as
a transcription of what their docstrings say.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import TRAC
from keras_plasticity.optimizers import UPGD
from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.optimizers import SelectiveWeightReinitialization
from tests.gradients import read_when_run
from tests.gradients import step_by_gradients
from tests.helpers import to_numpy
from tests.reference_erfi import erfi

# A convolution without bias, a normalization, and two dense layers.
_SHAPES = {
    "conv/kernel": (3, 2, 2, 5),
    "norm/gamma": (5,),
    "norm/beta": (5,),
    "dense/kernel": (7, 3),
    "dense/bias": (3,),
    "output/kernel": (3, 1),
    "output/bias": (1,),
}
_STEPS = 25


def _fan_in(shape):
    return int(np.prod(shape[:-1]))


class _Named:
    """Context in which variables have a layer's name in their path."""

    def __init__(self, path):
        layer, self._name = path.split("/")
        self._scope = keras.name_scope(layer)

    def variable(self, value):
        with self._scope:
            return keras.Variable(value.astype("float32"), name=self._name)


class _Run:
    """Variables, gradients and noise, the same for both implementations."""

    def __init__(self, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)

        def draw(*leading):
            return {
                path: rng.normal(size=(*leading, *shape)).astype("float32")
                for path, shape in _SHAPES.items()
            }

        self.start = draw()
        self.gradients = {k: scale * v for k, v in draw(_STEPS).items()}
        self.noise = draw(_STEPS)
        self.variables = {
            path: _Named(path).variable(value)
            for path, value in self.start.items()
        }
        self.step = 0

    def gradient(self, path, weight):
        """Noise, and a pull towards 0.3."""
        return self.gradients[path][self.step] + 0.5 * (weight - 0.3)

    def noise_of(self, variable):
        (path,) = [p for p, v in self.variables.items() if v is variable]
        return read_when_run(
            lambda: self.noise[path][self.step], tuple(variable.shape)
        )

    def train(self, optimizer, expected, tolerance=2e-5):
        """Makes all steps.

        Args:
            optimizer: Keras optimizer.
            expected: Function `(step, weights, gradients)` that returns the
                new weights, where both are dicts of float64 arrays.
            tolerance: Float.
        """
        variables = list(self.variables.values())
        apply = step_by_gradients(optimizer, variables)
        weights = {k: v.astype("float64") for k, v in self.start.items()}
        for self.step in range(_STEPS):
            gradients = {k: self.gradient(k, w) for k, w in weights.items()}
            weights = expected(self.step, weights, gradients)
            # The same for both: rounding is not to be amplified.
            apply(
                [
                    ops.convert_to_tensor(gradients[path].astype("float32"))
                    for path in self.variables
                ]
            )
            for path, variable in self.variables.items():
                np.testing.assert_allclose(
                    to_numpy(variable),
                    weights[path],
                    rtol=tolerance,
                    atol=tolerance,
                    err_msg=f"{path}, step {self.step}",
                )


class _Momentum:
    """SGD with momentum and an inverse decay of its learning rate."""

    def __init__(self):
        self._velocity = dict.fromkeys(_SHAPES, 0.0)

    def make(self):
        schedule = keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.1)
        return keras.optimizers.SGD(schedule, momentum=0.5)

    def rate(self, step):
        return 0.05 / (1 + 0.1 * step)

    def changes(self, step, gradients):
        for path, gradient in gradients.items():
            self._velocity[path] = (
                0.5 * self._velocity[path] - self.rate(step) * gradient
            )
        return dict(self._velocity)


class _Adam:
    def __init__(self):
        self._mean = dict.fromkeys(_SHAPES, 0.0)
        self._square = dict.fromkeys(_SHAPES, 0.0)

    def make(self):
        return keras.optimizers.Adam(0.02, beta_1=0.8, beta_2=0.9, epsilon=1e-3)

    def rate(self, step):
        return 0.02

    def changes(self, step, gradients):
        result = {}
        correction = np.sqrt(1 - 0.9 ** (step + 1)) / (1 - 0.8 ** (step + 1))
        for k, g in gradients.items():
            self._mean[k] = 0.8 * self._mean[k] + 0.2 * g
            self._square[k] = 0.9 * self._square[k] + 0.1 * g**2
            result[k] = (
                -0.02
                * correction
                * self._mean[k]
                / (np.sqrt(self._square[k]) + 1e-3)
            )
        return result


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _upgd(inner, run, scope, protecting, beta, decay, stddev):
    utility = dict.fromkeys(_SHAPES, 0.0)

    def update(step, weights, gradients):
        for k in weights:
            u = -gradients[k] * weights[k]
            utility[k] = beta * utility[k] + (1 - beta) * u
        changes = inner.changes(step, gradients)
        rate = inner.rate(step)
        largest = max(u.max() for u in utility.values())
        result = {}
        for k, w in weights.items():
            corrected = utility[k] / (1 - beta ** (step + 1))
            if scope == "global":
                ratio = corrected / largest if largest > 0 else 0 * corrected
            else:
                # As `dim=-1` of PyTorch's (units, inputs, height, width).
                order = [*range(w.ndim)[::-1][:2], *range(w.ndim - 2)]
                rows = np.transpose(corrected, order)
                norm = np.sqrt((rows**2).sum(axis=-1, keepdims=True))
                norm = np.broadcast_to(norm, rows.shape)
                norm = np.transpose(norm, np.argsort(order))
                ratio = corrected / np.maximum(norm, 1e-12)
            gate = 1 - _sigmoid(ratio)
            change = changes[k] * (gate if protecting else 1.0)
            noise = rate * stddev * run.noise[k][step]
            result[k] = (1 - rate * decay) * w + change - gate * noise
        return result

    return update


@pytest.mark.parametrize("inner", [_Momentum, _Adam])
@pytest.mark.parametrize("protecting", [True, False])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_upgd(scope, protecting, inner, monkeypatch):
    run, inner = _Run(), inner()
    optimizer = UPGD(
        inner.make(),
        scope=scope,
        protecting=protecting,
        utility_decay=0.8,
        decay=0.2,
        noise_stddev=0.5,
        noise_refresh_steps=1,
    )
    monkeypatch.setattr(optimizer, "_draw_noise", run.noise_of)
    expected = _upgd(inner, run, scope, protecting, 0.8, 0.2, 0.5)
    run.train(optimizer, expected, 1e-4)


def _ramp(shape, dtype="float64"):
    """New values of a kernel, which no two weights share."""
    values = np.arange(np.prod(shape)).reshape(shape) / 10 - 1
    return values.astype(dtype)


class _Ramp(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(_ramp(shape, dtype))


def _reinitialization(inner, draws, settings):
    mean = dict.fromkeys(_SHAPES, 0.0)
    decay = settings.get("decay_rate", 0.0)
    replaced = []

    def update(step, weights, gradients):
        changes = inner.changes(step, gradients)
        result = {}
        for k, w in weights.items():
            w = w + changes[k]
            u = np.abs(w)
            if settings["utility"] == "gradient":
                u = np.abs(w * gradients[k])
            if settings["utility"] == "random":
                u = draws["utility"][k][step]
            if decay:
                u = mean[k] = decay * mean[k] + (1 - decay) * u
            result[k] = w
            if (step + 1) % settings["period"]:
                continue
            if settings["rule"] == "threshold":
                mask = u <= settings["factor"] * u.mean()
            else:
                number = settings["factor"] * u.size
                number = int(number) + (draws[step, k] < number % 1)
                order = np.argsort(u, axis=None)
                mask = np.zeros(u.size, bool)
                mask[order[:number]] = True
                mask = mask.reshape(u.shape)
            new = np.zeros(w.shape)
            if k == "norm/gamma":
                new = np.ones(w.shape)
            elif w.ndim > 1 and "initializer" in settings:
                new = _ramp(w.shape)
            elif w.ndim > 1 and settings["replacement"] == "resample":
                new = draws[k][step] * np.sqrt(2 / _fan_in(w.shape))
            result[k] = np.where(mask, new, w)
            if mask.any():
                mean[k] = 0.0
            replaced.append(mask.sum())
        return result

    return update, replaced


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "threshold", "factor": 0.6, "decay_rate": 0.7, "period": 5},
        {"rule": "threshold", "factor": 0.2, "period": 3},
        {"rule": "proportional", "factor": 0.13, "period": 4},
        {"rule": "proportional", "factor": 0.3, "decay_rate": 0.5, "period": 1},
        # Of few weights, now and then none.
        {
            "rule": "proportional",
            "factor": 0.02,
            "decay_rate": 0.9,
            "period": 2,
        },
    ],
    ids=lambda settings: f"{settings['rule']}-{settings['factor']}",
)
@pytest.mark.parametrize(
    "utility, new",
    [
        ("gradient", {"replacement": "resample"}),
        ("magnitude", {"replacement": "mean"}),
        ("random", {"replacement": "resample"}),
        ("magnitude", {"replacement": "resample", "initializer": _Ramp()}),
    ],
    ids=["gradient", "mean", "random", "initializer"],
)
def test_selective_weight_reinitialization(utility, new, settings, monkeypatch):
    settings = {**settings, "utility": utility, **new}
    run, inner = _Run(), _Momentum()
    optimizer = SelectiveWeightReinitialization(inner.make(), **settings)
    rng = np.random.default_rng(7)
    draws = dict(run.noise)
    draws["utility"] = {
        path: rng.uniform(size=(_STEPS, *shape)).astype("float32")
        for path, shape in _SHAPES.items()
    }
    for step in range(_STEPS):
        for path in _SHAPES:
            draws[step, path] = np.float32(rng.uniform())
    paths = itertools.cycle(_SHAPES)

    def uniform(shape, seed):
        # For one variable after another.
        path = next(paths)
        return read_when_run(lambda: draws[run.step, path], shape)

    def draw_utility(variable):
        (path,) = [p for p, v in run.variables.items() if v is variable]
        return read_when_run(
            lambda: draws["utility"][path][run.step], tuple(variable.shape)
        )

    monkeypatch.setattr(optimizer, "_draw", run.noise_of)
    monkeypatch.setattr(optimizer, "_draw_utility", draw_utility)
    monkeypatch.setattr(keras.random, "uniform", uniform)
    update, replaced = _reinitialization(inner, draws, settings)
    run.train(optimizer, update)
    assert sum(replaced) > 10 and min(replaced) < max(replaced)


def _trac(inner, start, betas, scale, epsilon):
    betas = np.array(betas)
    state = {"variances": 0 * betas, "sums": 0 * betas + 1e-8, "total": 0.0}
    totals = []

    def update(step, weights, gradients):
        changes = inner.changes(step, gradients)
        distance = {
            k: (w - start[k]) / (state["total"] + epsilon)
            for k, w in weights.items()
        }
        h = sum((distance[k] * gradients[k]).sum() for k in weights)
        state["variances"] = betas**2 * state["variances"] + h**2
        state["sums"] = betas * state["sums"] - h
        deviation = np.sqrt(2 * state["variances"]) + epsilon
        scales = erfi(state["sums"] / deviation)
        scales = scales * scale / erfi(np.sqrt(0.5))
        state["total"] = max(scales.sum(), 0.0)
        totals.append(state["total"])
        return {
            k: start[k] + (distance[k] + changes[k]) * state["total"]
            for k in weights
        }

    return update, totals


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.05])
@pytest.mark.parametrize("inner", [_Momentum, _Adam])
def test_trac(inner, scale):
    run, inner = _Run(scale=0.2), inner()
    betas = (0.5, 0.9, 0.99)
    optimizer = TRAC(inner.make(), betas, scale=scale, epsilon=3e-8)
    start = {k: v.astype("float64") for k, v in run.start.items()}
    update, totals = _trac(inner, start, betas, scale, 3e-8)
    run.train(optimizer, update, 1e-4)
    np.testing.assert_allclose(
        to_numpy(optimizer._total), totals[-1], rtol=1e-3, atol=1e-3 * scale
    )
    assert totals[-1] > 0


@pytest.mark.parametrize("period", [1, 4, 100])
def test_hare_and_tortoise(period):
    run, inner = _Run(), _Adam()
    optimizer = HareAndTortoise(inner.make(), decay_rate=0.7, period=period)
    tortoise = {k: v.astype("float64") for k, v in run.start.items()}

    def update(step, weights, gradients):
        changes = inner.changes(step, gradients)
        weights = {k: w + changes[k] for k, w in weights.items()}
        for k, w in weights.items():
            tortoise[k] = 0.7 * tortoise[k] + 0.3 * w
        if (step + 1) % period == 0:
            return {k: np.array(v) for k, v in tortoise.items()}
        return weights

    run.train(optimizer, update)
    hares = {k: to_numpy(v) for k, v in run.variables.items()}
    with optimizer.tortoise():
        for path, variable in run.variables.items():
            np.testing.assert_allclose(
                to_numpy(variable), tortoise[path], rtol=2e-5, atol=2e-5
            )
    for path, variable in run.variables.items():
        np.testing.assert_array_equal(to_numpy(variable), hares[path])
