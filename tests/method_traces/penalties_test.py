"""Step by step against runs of the authors' code: penalties, clipping."""

import keras
import numpy as np
import pytest

import keras_plasticity
from tests.gradients import read_when_run
from tests.helpers import to_numpy
from tests.method_traces.trace import Trace
from tests.method_traces.trace import inner_optimizer
from tests.method_traces.trace import traces

_DISTANCES = {
    "l2": lambda d: 0.5 * d**2,
    "l1": abs,
    "huber": lambda d: np.where(abs(d) <= 1, 0.5 * d**2, abs(d) - 0.5),
}


@pytest.mark.parametrize(
    "name", [name for kind in _DISTANCES for name in traces(f"{kind}init")]
)
def test_l2_init(name, monkeypatch):
    trace = Trace(name)
    distance = name.partition("init")[0]
    strength = trace.settings[f"{distance}_weight"]
    is_drawn = trace.settings["sample_init_values"]
    optimizer = keras_plasticity.optimizers.L2Init(
        inner_optimizer(trace.config["optimizer"]),
        strength,
        distance,
        # As PyTorch draws kernels and biases.
        target_initializer=keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform"
        )
        if is_drawn
        else None,
        draw_biases=is_drawn,
    )
    names = [
        f"{name}_{i}"
        for name in ("kernel", "bias")
        for i in range(trace.num_layers)
    ]
    now = [0]

    def targets():
        if is_drawn:
            return [trace.data[f"drawn_{name}"][now[0]] for name in names]
        return [trace.data[f"init_{name}"] for name in names]

    def target(weight):
        weights = [
            getattr(layer, name)
            for name in ("kernel", "bias")
            for layer in trace.layers
        ]
        (i,) = [i for i, each in enumerate(weights) if each is weight]
        return read_when_run(
            lambda: targets()[i].astype("float32"), tuple(weight.shape)
        )

    def penalty(kernels, biases):
        pairs = zip(kernels + biases, targets())
        return strength * sum(
            _DISTANCES[distance](w - i).sum() for w, i in pairs
        )

    def end_step(step):
        now[0] = step + 1

    if is_drawn:
        monkeypatch.setattr(optimizer, "_target", target)
    trace.train(optimizer, end_step=end_step, penalty=penalty)
    now[0] -= 1
    # It has pulled.
    assert penalty(*trace.weights()) > 0


@pytest.mark.parametrize("name", traces("parseval"))
def test_parseval_regularization(name):
    trace = Trace(name)
    strength, scale = trace.settings["coef"], trace.settings["scale"]
    optimizer = keras_plasticity.optimizers.ParsevalRegularization(
        inner_optimizer(trace.config["optimizer"]), strength, float(scale)
    )

    def penalty(kernels, biases):
        matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
        return strength * sum(
            ((m.T @ m - scale * np.eye(m.shape[1])) ** 2).sum()
            for m in matrices
        )

    trace.train(optimizer, penalty=penalty)


@pytest.mark.parametrize("name", traces("weight_clipping"))
def test_weight_clipping(name):
    trace = Trace(name)
    kappa = trace.settings["zeta"]
    layers, exclude = trace.layers, ()
    if not trace.settings["clip_last_layer"]:
        *layers, last = layers
        exclude = [f"/{last.name}/"]
    optimizer = keras_plasticity.optimizers.WeightClipping(
        inner_optimizer(trace.config["optimizer"]), kappa, exclude
    )
    bounds = [
        kappa / np.sqrt(np.prod(layer.kernel.shape[:-1])) for layer in layers
    ]

    def compare(step):
        relative = np.concatenate(
            [
                abs(to_numpy(weight)).ravel() / bound
                for layer, bound in zip(layers, bounds)
                for weight in (layer.kernel, layer.bias)
            ]
        )
        assert relative.max() < 1 + 1e-6
        # Some that were clipped before are there, and did not move.
        at_bound = np.mean(relative > 1 - 1e-6)
        assert at_bound >= trace.data["clipped_fraction"][step] - 1e-6

    trace.train(optimizer, compare)
    assert trace.data["clipped_fraction"].max() > 0


@pytest.mark.parametrize("name", traces("spectral"))
def test_spectral_regularization(name):
    trace = Trace(name)
    settings = trace.settings
    strength = settings["reg_strength"]
    optimizer = keras_plasticity.optimizers.SpectralRegularization(
        inner_optimizer(trace.config["optimizer"]),
        strength,
        exponent=settings["k"],
        target=settings["target"],
        num_iterations=settings["num_iter"],
    )
    optimizer.build(trace.model.trainable_variables)
    starts = [v for v in optimizer.variables if "start_" in v.path]
    assert len(starts) == trace.num_layers
    for i, start in enumerate(starts):
        assert start.path.endswith(f"start_{i}")
        start.assign(trace.data[f"power_start_{i}"])

    def penalty(kernels, biases):
        total = sum((bias**2).sum() for bias in biases)
        for i, kernel in enumerate(kernels):
            v = trace.data[f"power_start_{i}"]
            for _ in range(settings["num_iter"]):
                v = kernel.T @ (kernel @ v)
                v = v / (np.linalg.norm(v) + 1e-6)
            norm = np.linalg.norm(kernel @ v)
            total += (norm ** settings["k"] - settings["target"]) ** 2
        return strength * total

    trace.train(optimizer, penalty=penalty)
