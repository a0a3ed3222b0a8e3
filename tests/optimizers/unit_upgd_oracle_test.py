"""UPGD of units against literal NumPy in float64, on a small convolution.

The transcription multiplies units by gates, and follows the loss back to them:
it knows nothing of the weights that read a unit.
"""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import UnitUPGD
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.gradients import read_when_run
from tests.helpers import to_numpy

_STEPS = 25
_BATCH = 3
_BETA, _DECAY, _STDDEV, _MOMENTUM = 0.8, 0.2, 0.3, 0.5
# The weights of each hidden layer.
_OF_UNITS = {"conv": ["conv/kernel"], "tanh": ["tanh/kernel", "tanh/bias"]}


def _build():
    """A convolution that two layers read, behind a `Flatten`."""
    inputs = keras.Input((6, 5, 2))
    x = layers.Conv2D(
        4, (3, 2), activation="relu", use_bias=False, name="conv"
    )(inputs)
    x = keras.layers.Flatten()(x)
    hidden = layers.Dense(7, activation="tanh", name="tanh")(x)
    outputs = keras.layers.Concatenate()(
        [
            layers.Dense(3, name="one")(hidden),
            layers.Dense(2, use_bias=False, name="two")(x),
        ]
    )
    return keras.Model(inputs, outputs)


def _backward(w, x, y):
    """The gradients of all weights, and of the gates of both hidden layers."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 2), axis=(1, 2))
    z = np.einsum("bhwcij,ijco->bhwo", windows, w["conv/kernel"])
    conv = np.maximum(z, 0)
    flat = conv.reshape(len(x), -1)
    tanh = np.tanh(flat @ w["tanh/kernel"] + w["tanh/bias"])
    one = tanh @ w["one/kernel"] + w["one/bias"]
    out = np.concatenate([one, flat @ w["two/kernel"]], axis=1)

    d_out = 2 * (out - y) / out.size
    d_one, d_two = d_out[:, :3], d_out[:, 3:]
    d_tanh = d_one @ w["one/kernel"].T
    d_pre = d_tanh * (1 - tanh**2)
    d_flat = d_pre @ w["tanh/kernel"].T + d_two @ w["two/kernel"].T
    d_conv = d_flat.reshape(conv.shape)
    d_z = d_conv * (z > 0)
    gradients = {
        "conv/kernel": np.einsum("bhwcij,bhwo->ijco", windows, d_z),
        "tanh/kernel": flat.T @ d_pre,
        "tanh/bias": d_pre.sum(axis=0),
        "one/kernel": tanh.T @ d_one,
        "one/bias": d_one.sum(axis=0),
        "two/kernel": flat.T @ d_two,
    }
    gates = {
        "conv": (conv * d_conv).sum(axis=(0, 1, 2)),
        "tanh": (tanh * d_tanh).sum(axis=0),
    }
    return gradients, gates


def _rate(step):
    return 0.05 / (1 + 0.1 * step)


class _Oracle:
    def __init__(self, weights, scope, protecting):
        self.weights = weights
        self.scope, self.protecting = scope, protecting
        self.step = 0
        self.velocity = dict.fromkeys(weights, 0.0)
        self.utility = dict.fromkeys(_OF_UNITS, 0.0)

    def update(self, x, y, noise):
        gradients, gates = _backward(self.weights, x, y)
        for layer, gradient in gates.items():
            self.utility[layer] = (
                _BETA * self.utility[layer] - (1 - _BETA) * gradient
            )
        largest = max(u.max() for u in self.utility.values())
        rate = _rate(self.step)
        self.step += 1
        gate = {}
        for layer, names in _OF_UNITS.items():
            u = self.utility[layer] / (1 - _BETA**self.step)
            if self.scope == "local":
                ratio = u / np.sqrt((u**2).sum())
            else:
                ratio = u / largest if largest > 0 else 0 * u
            gate |= dict.fromkeys(names, 1 - 1 / (1 + np.exp(-ratio)))
        for name, w in self.weights.items():
            v = _MOMENTUM * self.velocity[name] - rate * gradients[name]
            self.velocity[name] = change = v
            if name in gate:
                if self.protecting:
                    change = gate[name] * change
                change = change - gate[name] * rate * _STDDEV * noise[name]
            self.weights[name] = (1 - rate * _DECAY) * w + change


@pytest.mark.parametrize("protecting", [True, False])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_unit_upgd(scope, protecting, monkeypatch):
    rng = np.random.default_rng(0)
    model = _build()
    variables = {
        f"{layer.name}/{name}": getattr(layer, name)
        for layer in model.layers
        for name in ("kernel", "bias")
        if getattr(layer, name, None) is not None
    }
    weights = {}
    for name, variable in variables.items():
        weights[name] = rng.normal(0, 0.4, variable.shape)
        variable.assign(weights[name])
    shapes = {name: (_STEPS, *w.shape) for name, w in weights.items()}
    noise = {
        name: rng.normal(size=shape).astype("float32")
        for name, shape in shapes.items()
    }
    x = rng.normal(size=(_STEPS, _BATCH, 6, 5, 2)).astype("float32")
    y = rng.normal(size=(_STEPS, _BATCH, 5)).astype("float32")
    optimizer = UnitUPGD(
        keras.optimizers.SGD(
            keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.1),
            momentum=_MOMENTUM,
        ),
        scope=scope,
        protecting=protecting,
        utility_decay=_BETA,
        decay=_DECAY,
        noise_stddev=_STDDEV,
        noise_refresh_steps=1,
    )
    oracle = _Oracle(weights, scope, protecting)

    def draw(weight):
        (name,) = [n for n, v in variables.items() if v is weight]
        return read_when_run(lambda: noise[name][step], tuple(weight.shape))

    monkeypatch.setattr(optimizer, "_draw_noise", draw)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.MeanSquaredError()
    run = None
    if keras.backend.backend() == "jax":
        run = compiled_step(model, optimizer, loss)
    for step in range(_STEPS):
        if run is None:
            _, gradients = loss_and_gradients(model, loss, x[step], y[step])
            optimizer.apply(gradients, model.trainable_variables)
        else:
            run(x[step], y[step])
        drawn = {name: values[step] for name, values in noise.items()}
        oracle.update(x[step].astype("float64"), y[step], drawn)
        for name, variable in variables.items():
            np.testing.assert_allclose(
                to_numpy(variable),
                oracle.weights[name],
                rtol=1e-4,
                atol=1e-4,
                err_msg=f"{name}, step {step}",
            )
    changes = [np.abs(w).max() for w in oracle.velocity.values()]
    assert min(changes) > 1e-3
