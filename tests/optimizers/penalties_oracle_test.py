"""Penalties and projections against literal code in NumPy's float64.

Gradients are given, so that nothing but the optimizers is tested. Those of a
penalty are central differences of its value.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import optimizers
from tests.helpers import to_numpy

_STEPS = 5
_RATES = keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)
_MOMENTUM = 0.6


def _make_model():
    """Kernels that are tall, wide and of a convolution, and two biases."""
    model = keras.Sequential(
        [
            keras.Input((5, 4, 2)),
            keras.layers.Conv2D(3, (3, 2), use_bias=False, name="conv"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="tall"),
            keras.layers.RMSNormalization(name="rms"),
            keras.layers.Dense(7, name="wide"),
        ]
    )
    rng = np.random.default_rng(3)
    for weight in model.trainable_variables:
        noise = rng.normal(0, 0.6, weight.shape)
        weight.assign(to_numpy(weight) + noise)
    return model


class _Oracle:
    """The same weights as arrays, by name, trained by SGD with momentum."""

    def __init__(self, model):
        self.w = {_name(v): _float64(v) for v in model.trainable_variables}
        self.velocity = {path: 0.0 for path in self.w}
        self.start = {path: value.copy() for path, value in self.w.items()}
        self.rate = None

    def step(self, gradients, number):
        self.rate = 0.05 * 0.5 ** (number / 2)
        for path, gradient in gradients.items():
            self.velocity[path] = (
                _MOMENTUM * self.velocity[path] - self.rate * gradient
            )
            self.w[path] = self.w[path] + self.velocity[path]


def _name(variable):
    """Such as `"conv/kernel"`."""
    return "/".join(variable.path.split("/")[-2:])


def _float64(variable):
    return to_numpy(variable).astype("float64")


def _run(make_optimizer, penalty=None, after=None):
    """Makes a few updates and compares all weights.

    Args:
        make_optimizer: Function of the inner optimizer.
        penalty: Function of a path, a weight, the oracle and the optimizer:
            what is added to the loss.
        after: Function of the oracle and of the number of updates made, which
            changes weights.
    """
    model = _make_model()
    variables = model.trainable_variables
    optimizer = make_optimizer(keras.optimizers.SGD(_RATES, _MOMENTUM))
    optimizer.build(variables)
    oracle = _Oracle(model)
    rng = np.random.default_rng(4)
    for number in range(_STEPS):
        gradients = {_name(v): rng.normal(size=v.shape) for v in variables}
        optimizer.apply(
            [
                ops.convert_to_tensor(gradients[_name(v)].astype("float32"))
                for v in variables
            ],
            variables,
        )
        if penalty is not None:
            for path, weight in oracle.w.items():
                gradients[path] = gradients[path] + _slope(
                    lambda w: penalty(path, w, oracle, optimizer), weight
                )
        oracle.step(gradients, number)
        if after is not None:
            after(oracle, number + 1)
        for variable in variables:
            np.testing.assert_allclose(
                to_numpy(variable),
                oracle.w[_name(variable)],
                rtol=1e-4,
                atol=2e-5,
                err_msg=f"{variable.path}, update {number}",
            )
    return model, optimizer


def _slope(function, at, width=1e-5):
    """Central differences."""
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = width
        result[index] = function(at + shift) - function(at - shift)
    return result / (2 * width)


def _matrix(kernel):
    return kernel.reshape(-1, kernel.shape[-1])


def _is_kernel(path):
    return path.endswith("kernel")


def _huber(d):
    return np.where(abs(d) <= 1, d**2 / 2, abs(d) - 0.5)


@pytest.mark.parametrize(
    ("distance", "measure"),
    [
        ("l2", lambda d: d**2 / 2),
        ("l1", abs),
        ("huber", _huber),
    ],
)
def test_l2_init(distance, measure):
    # So large a strength that some are beyond the bend of Huber's function.
    def penalty(path, weight, oracle, optimizer):
        if path.startswith(("norm", "rms")) or path == "tall/bias":
            return 0.0
        return 0.7 * measure(weight - oracle.start[path]).sum()

    _run(
        lambda inner: optimizers.L2Init(
            inner, 0.7, distance, exclude=["tall/bias"]
        ),
        penalty,
    )


@pytest.mark.parametrize("distance", ["l2", "l1", "huber"])
def test_l2_init_with_targets_that_are_drawn(distance, monkeypatch):
    measure = {"l2": lambda d: d**2 / 2, "l1": abs, "huber": _huber}[distance]
    rng = np.random.default_rng(5)
    targets = {}

    def draw(optimizer, weight):
        # Those of the last step are the ones that the oracle takes.
        value = rng.normal(0, 0.8, weight.shape).astype("float32")
        targets[_name(weight)] = value
        return ops.convert_to_tensor(value)

    def penalty(path, weight, oracle, optimizer):
        if path.startswith(("norm", "rms")) or path == "tall/bias":
            return 0.0
        return 0.7 * measure(weight - targets[path]).sum()

    monkeypatch.setattr(optimizers.L2Init, "_target", draw)
    _run(
        lambda inner: optimizers.L2Init(
            inner,
            0.7,
            distance,
            exclude=["tall/bias"],
            target_initializer="he_normal",
        ),
        penalty,
    )


def test_parseval_regularization():
    def penalty(path, weight, oracle, optimizer):
        if path in ("norm/gamma", "rms/scale"):
            return 0.03 * ((weight**2 - 0.4) ** 2).sum()
        if not _is_kernel(path) or path.startswith("wide"):
            return 0.0
        w = _matrix(weight).T
        return 0.03 * ((w @ w.T - 0.4 * np.eye(len(w))) ** 2).sum()

    _run(
        lambda inner: optimizers.ParsevalRegularization(
            inner, 0.03, scale=0.4, exclude=["wide"]
        ),
        penalty,
    )


@pytest.mark.parametrize("exponent", [1, 2.5])
def test_spectral_regularization(exponent):
    def penalty(path, weight, oracle, optimizer):
        if path.startswith("tall"):
            return 0.0
        if path.endswith(("bias", "beta")):
            return 0.05 * (weight**2).sum()
        if path in ("norm/gamma", "rms/scale"):
            return 0.05 * ((weight - 1) ** 2).sum()
        number = {"conv/kernel": 0, "wide/kernel": 1}[path]
        v = _float64(
            next(
                v
                for v in optimizer.variables
                if v.path.endswith(f"start_{number}")
            )
        )
        w = _matrix(weight)
        for _ in range(3):
            v = w.T @ w @ v
            v = v / (np.sqrt(v @ v) + 1e-6)
        norm = np.sqrt((w @ v) @ (w @ v))
        return 0.05 * (norm**exponent - 1.5) ** 2

    _run(
        lambda inner: optimizers.SpectralRegularization(
            inner, 0.05, exponent, 1.5, num_iterations=3, exclude=["tall"]
        ),
        penalty,
    )


@pytest.mark.parametrize("step_size", [None, 0.03])
def test_decoupled_orthogonality(step_size):
    def after(oracle, number):
        for path in ("conv/kernel", "tall/kernel"):
            w = _matrix(oracle.w[path])
            size = 0.2 * (oracle.rate if step_size is None else step_size)
            change = 4 * size * w @ (w.T @ w - np.eye(w.shape[1]))
            oracle.w[path] = (w - change).reshape(oracle.w[path].shape)

    _run(
        lambda inner: optimizers.DecoupledOrthogonality(
            inner, 0.2, step_size, exclude=["wide"]
        ),
        after=after,
    )


def test_weight_clipping():
    fan_in = {"conv": 3 * 2 * 2, "tall": 3 * 3 * 3, "wide": 4}

    def after(oracle, number):
        for path in oracle.w:
            layer = path.split("/")[0]
            if layer in fan_in and path != "wide/kernel":
                bound = 1.4 / np.sqrt(fan_in[layer])
                oracle.w[path] = np.clip(oracle.w[path], -bound, bound)

    _run(
        lambda inner: optimizers.WeightClipping(
            inner, 1.4, exclude=["wide/kernel"]
        ),
        after=after,
    )


@pytest.mark.parametrize("period", [1, 2])
def test_normalize_and_project(period):
    groups = [
        ["conv/kernel"],
        ["tall/kernel"],
        ["norm/gamma", "norm/beta"],
        ["rms/scale"],
    ]

    def norm(weights, group):
        return np.sqrt(sum((weights[path] ** 2).sum() for path in group))

    def after(oracle, number):
        for group in groups if number % period == 0 else ():
            factor = norm(oracle.start, group) / norm(oracle.w, group)
            for path in group:
                oracle.w[path] = oracle.w[path] * factor

    _run(
        lambda inner: optimizers.NormalizeAndProject(
            inner, period, exclude=["wide"]
        ),
        after=after,
    )
