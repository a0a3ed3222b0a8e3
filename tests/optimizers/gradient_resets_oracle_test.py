"""ReGraMa, CPR and CCBP against slow NumPy transcriptions."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.optimizers import CCBP
from keras_plasticity.optimizers import CPR
from keras_plasticity.optimizers import ReGraMa
from tests import reference_algorithm as reference
from tests import reference_resets
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_SGD = (
    lambda **kwargs: keras.optimizers.SGD(0.1, **kwargs),
    lambda shape: reference.SGD(shape, 0.1),
)
_MOMENTUM = (
    lambda **kwargs: keras.optimizers.SGD(0.05, momentum=0.9, **kwargs),
    lambda shape: reference.SGD(shape, 0.05, 0.9),
)
_ADAM = (
    lambda **kwargs: keras.optimizers.Adam(0.005, **kwargs),
    lambda shape: reference.Adam(shape, 0.005),
)
# Shapes of kernels.
_DENSE = ((5, 9), (9, 7), (7, 8), (8, 2))
# Images of 7 x 6, then 5 x 5, then 4 x 3 of 5 channels.
_CONVOLUTIONAL = ((3, 2, 2, 7), (2, 3, 7, 5), (60, 6), (6, 3))
_DEFAULTS = {
    "optimizers": _SGD,
    "kernels": _DENSE,
    "use_bias": True,
    "activation": "relu",
    "batch_size": 3,
    "accumulated": 1,
    "updates": 40,
}
_CASES = {
    "sgd": {},
    "momentum": {"optimizers": _MOMENTUM},
    "adam": {"optimizers": _ADAM},
    "convolutional": {"kernels": _CONVOLUTIONAL, "optimizers": _MOMENTUM},
    "convolutional_without_bias": {
        "kernels": _CONVOLUTIONAL,
        "use_bias": False,
        "optimizers": _ADAM,
    },
    "without_bias": {"use_bias": False},
    "tanh": {"activation": "tanh"},
    "batch_1": {"batch_size": 1},
    "accumulated": {"accumulated": 3, "optimizers": _MOMENTUM},
    "at_each_update": {"period": 1, "updates": 12},
}
_QUICK = ("adam", "convolutional", "accumulated")
_REGRAMA = {"threshold": 0.45, "period": 4, "max_fraction": 1.0}
_REGRAMA_CASES = {
    **_CASES,
    "fraction": {"max_fraction": 0.2, "optimizers": _ADAM},
    "convolutional_fraction": {
        "max_fraction": 0.3,
        "kernels": _CONVOLUTIONAL,
        "optimizers": _MOMENTUM,
    },
}
_CPR = {
    "replacement_rate": 0.2,
    "sharpness": 5.0,
    "threshold": 0.8,
    "decay_rate": 0.7,
    "period": 6,
    "transform": "sigmoid",
}
_DISCRETE = {
    "continuous": False,
    "maturity_threshold": 9,
    "replacement_rate": 0.17,
    "reset_optimizer_state": True,
    "period": 2,
}
_CCBP = {
    "replacement_rate": 0.6,
    "sharpness": 3.0,
    "decay_rate": 0.8,
    "period": 5,
    "utility": "gradient_magnitude",
    "continuous": True,
    "maturity_threshold": 0,
    "reset_optimizer_state": False,
}
_CPR_CASES = {
    **_CASES,
    "exponential": {"transform": "exponential"},
    "softplus": {"transform": "softplus", "kernels": _CONVOLUTIONAL},
    "linear": {"transform": "linear", "sharpness": 1.5},
}
_CCBP_CASES = {
    **_CASES,
    "norm": {"utility": "gradient_norm"},
    "convolutional_norm": {
        "utility": "gradient_norm",
        "kernels": _CONVOLUTIONAL,
    },
    "contribution": {"utility": "contribution", "kernels": _CONVOLUTIONAL},
    "adaptable": {
        "utility": "adaptable_contribution",
        "kernels": _CONVOLUTIONAL,
        "optimizers": _ADAM,
    },
    "maturity": {"maturity_threshold": 12, "optimizers": _ADAM},
    "convolutional_slots": {
        "kernels": _CONVOLUTIONAL,
        "optimizers": _ADAM,
        "reset_optimizer_state": True,
        "replacement_rate": 1.0,
    },
    "discrete": {**_DISCRETE, "optimizers": _ADAM},
    "discrete_convolutional": {
        **_DISCRETE,
        "kernels": _CONVOLUTIONAL,
        "optimizers": _ADAM,
        "utility": "contribution",
    },
    "discrete_momentum": {
        **_DISCRETE,
        "optimizers": _MOMENTUM,
        "maturity_threshold": 0,
        "utility": "adaptable_contribution",
        "period": 3,
    },
    "discrete_slots_stay": {
        **_DISCRETE,
        "optimizers": _ADAM,
        "reset_optimizer_state": False,
        "accumulated": 2,
    },
}


@keras.saving.register_keras_serializable(package="tests")
class CountedKernels(keras.initializers.Initializer):
    """Whole kernels, different at each draw, and yet known beforehand."""

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        n = 0.0
        if isinstance(self.seed, keras.random.SeedGenerator):
            n = ops.cast(self.seed.next()[1] % 17, "float32")
        i = ops.arange(int(np.prod(shape)), dtype="float32")
        values = 0.4 * ops.sin(1.0 + 0.7 * i + 1.3 * n)
        return ops.cast(ops.reshape(values, shape), dtype or "float32")

    def get_config(self):
        return {"seed": self.seed}


def _new_kernel(n, shape):
    i = np.arange(np.prod(shape))
    return 0.4 * np.sin(1.0 + 0.7 * i + 1.3 * (n % 17)).reshape(shape)


def _chance(n):
    return 0.5 + 0.5 * np.sin(2.3 * n)


def _uniform(shape, seed):
    """Of one number, by how many draws there were before."""
    n = ops.cast(seed.next()[1], "float32")
    return ops.reshape(0.5 + 0.5 * ops.sin(2.3 * n), shape)


def _make_model(case):
    kernels = case["kernels"]
    is_convolutional = len(kernels[0]) == 4
    layers = [keras.Input((7, 6, 2) if is_convolutional else (5,))]
    for i, shape in enumerate(kernels):
        arguments = {
            "activation": case["activation"],
            "use_bias": case["use_bias"],
            "kernel_initializer": CountedKernels(),
        }
        if i == len(kernels) - 1:
            arguments["activation"] = None
        if len(shape) == 4:
            layers.append(
                keras_plasticity.layers.Conv2D(
                    shape[-1], shape[:2], **arguments
                )
            )
            continue
        if i > 0 and len(kernels[i - 1]) == 4:
            layers.append(keras.layers.Flatten())
        layers.append(keras_plasticity.layers.Dense(shape[-1], **arguments))
    model = keras.Sequential(layers)
    rng = np.random.default_rng(4)
    weighted = [layer for layer in model.layers if layer.weights]
    for layer, shape in zip(weighted, kernels):
        assert tuple(layer.kernel.shape) == shape
        scale = np.prod(shape[:-1]) ** -0.5
        layer.kernel.assign(1.3 * rng.normal(0, scale, shape))
        if layer.bias is not None:
            layer.bias.assign(rng.normal(0, 0.2, shape[-1:]))
    return model, weighted


def _make_data(case):
    rng = np.random.default_rng(2)
    num = case["batch_size"] * case["accumulated"] * case["updates"]
    shape = (7, 6, 2) if len(case["kernels"][0]) == 4 else (5,)
    x = rng.normal(0, 1, (num, *shape)).astype("float32")
    y = rng.normal(0, 1, (num, case["kernels"][-1][-1])).astype("float32")
    return x, y


def _run(case, optimizer_class, oracle_class, settings, **oracle_settings):
    """Trains both, and compares the weights and what is known of the units."""
    model, weighted = _make_model(case)
    x, y = _make_data(case)
    make_inner, make_reference = case["optimizers"]
    oracle = oracle_class(
        reference_resets.ConvolutionalNetwork(
            [to_numpy(layer.kernel) for layer in weighted],
            [
                None if layer.bias is None else to_numpy(layer.bias)
                for layer in weighted
            ],
            activation=case["activation"],
            loss="mse",
        ),
        make_reference,
        _new_kernel,
        **settings,
        **oracle_settings,
    )
    size, accumulated = case["batch_size"], case["accumulated"]
    batches = [
        (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)
    ]
    for i in range(0, len(batches), accumulated):
        oracle.step(batches[i : i + accumulated])
    inner = make_inner(
        gradient_accumulation_steps=accumulated if accumulated > 1 else None
    )
    optimizer = optimizer_class(inner, seed=7, **settings)
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
    assert oracle.t == case["updates"] and oracle.resets >= 5
    for i, layer in enumerate(weighted):
        for actual, expected in (
            (layer.kernel, oracle.network.kernels[i]),
            (layer.bias, oracle.network.biases[i]),
        ):
            if actual is not None:
                np.testing.assert_allclose(
                    to_numpy(actual),
                    expected,
                    rtol=1e-3,
                    atol=1e-4,
                    err_msg=actual.path,
                )
    variables = {v.name: to_numpy(v) for v in optimizer.variables}
    for i in oracle.hidden:
        if hasattr(oracle, "u"):
            path = weighted[i].path.replace("/", "_")
            np.testing.assert_allclose(
                variables[f"{path}_gradient_utility"], oracle.u[i], rtol=1e-3
            )
    return optimizer, oracle


@pytest.mark.parametrize(
    "name", mostly_slow(_REGRAMA_CASES, *_QUICK, "fraction")
)
def test_regrama(name):
    case = {**_DEFAULTS, **_REGRAMA, **_REGRAMA_CASES[name]}
    optimizer, oracle = _run(
        case,
        ReGraMa,
        reference_resets.ReGraMa,
        {key: case[key] for key in _REGRAMA},
    )
    assert sum(optimizer.num_replaced().values()) == oracle.resets
    # Float32 is not asked for the impossible.
    assert oracle.closest > 1e-5
    assert (oracle.spared > 3) == (case["max_fraction"] < 1)
    if name in _QUICK:
        # Weights between two units that were replaced together are drawn.
        assert oracle.shared_weights > 0


@pytest.mark.parametrize(
    "name", mostly_slow(_CPR_CASES, *_QUICK, "softplus", "linear")
)
def test_cpr(name):
    case = {**_DEFAULTS, **_CPR, **_CPR_CASES[name]}
    _run(
        case,
        CPR,
        reference_resets.CPR,
        {key: case[key] for key in _CPR},
    )


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        _CCBP_CASES,
        *_QUICK,
        "contribution",
        "adaptable",
        "maturity",
        "discrete",
    ),
)
def test_ccbp(name, monkeypatch):
    case = {**_DEFAULTS, **_CCBP, **_CCBP_CASES[name]}
    monkeypatch.setattr(keras.random, "uniform", _uniform)
    optimizer, oracle = _run(
        case,
        CCBP,
        reference_resets.CCBP,
        {key: case[key] for key in _CCBP},
        chance=_chance,
    )
    assert sum(optimizer.num_replaced().values()) == oracle.replaced
    if not case["continuous"]:
        assert oracle.replaced > 20 and oracle.closest > 1e-5
    if case["maturity_threshold"] or not case["continuous"]:
        for units, ages in zip(optimizer.hidden, oracle.age):
            np.testing.assert_allclose(to_numpy(units.age), ages, rtol=1e-4)
