"""Valid arguments of all that is public, for `fuzz.py`."""

import concurrent.futures
import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import rich.console
import rich.progress
from absl import flags
from keras import ops

import keras_plasticity
from keras_plasticity import callbacks
from keras_plasticity import datasets
from keras_plasticity import diagnosis
from keras_plasticity import diagnostics
from keras_plasticity import experiments
from keras_plasticity import functional
from keras_plasticity import layers
from keras_plasticity import models
from keras_plasticity import optimizers
from keras_plasticity import streams
from keras_plasticity import training
from keras_plasticity import utils
from keras_plasticity.datasets import prepared_data
from keras_plasticity.experiments.sweeps import driver as sweep_driver
from keras_plasticity.experiments.sweeps import jobs as sweep_jobs
from tests.helpers import make_data
from tests.helpers import make_model

_PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08"
    b"\x00\x00\x00\x00"
)
# What a function that a user hands over raises is the user's.
_RAISES_WHEN_CALLED = (
    *("class", "int", "max", "function of nothing", "layer", "model"),
    *("empty model", "schedule", "initializer", "regularizer"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a public callable is called.

    Attributes:
        call: Function that takes the arguments by name.
        arguments: Dict from the name of each argument to a function that
            returns a valid value.
        use: Function of the result, which has to work as well.
        fixed: Names of arguments that are not replaced: those of Keras.
        never: Dict from argument to the names of odd values that it is not
            replaced by.
        words: Dict from argument to other words by which an error may name it.
        raises: Tuple of other errors that are documented, or that the system
            has for a path.
        weight: Float, how often it is chosen.
    """

    call: Callable
    arguments: dict[str, Callable[[], Any]]
    use: Callable = lambda result: None
    fixed: tuple[str, ...] = ()
    never: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    raises: tuple[type, ...] = ()
    weight: float = 1.0


def _is(value):
    """A function that returns a value which does not change."""
    return lambda: value


def _tensor(*values, dtype="float32"):
    return lambda: ops.convert_to_tensor(np.array(values, dtype))


_FOLDERS = itertools.count()


def _new_folder():
    return f"folder-{next(_FOLDERS)}"


# --- keras_plasticity


def _built(units, features):
    layer = layers.Dense(units)
    layer.build((None, features))
    return layer


RECIPES = {
    "keras_plasticity.connect": Recipe(
        call=keras_plasticity.connect,
        arguments={
            "layer": lambda: _built(3, 4),
            "consumer": lambda: _built(2, 3),
            "unit_of_feature": lambda: np.array([2, 0, 1]),
        },
    ),
    "keras_plasticity.derived_seed": Recipe(
        call=keras_plasticity.derived_seed,
        arguments={"seed": _is(0)},
    ),
    "keras_plasticity.weights_of": Recipe(
        call=keras_plasticity.weights_of,
        arguments={"model": make_model},
    ),
    "keras_plasticity.inspect": Recipe(
        call=keras_plasticity.inspect,
        arguments={
            "model": make_model,
            "inputs": lambda: keras.KerasTensor((2, 4)),
            "print_fn": lambda: lambda text: None,
        },
        never={"print_fn": _RAISES_WHEN_CALLED},
        words={"model": ("Model", "model")},
    ),
    "models.make_plastic": Recipe(
        call=models.make_plastic,
        arguments={
            "model": lambda: make_model(layer=keras.layers.Dense),
            "inputs": lambda: keras.KerasTensor((2, 4)),
        },
        words={"model": ("Model",), "inputs": ("call",)},
    ),
}


# --- callbacks


def _measure(monitor):
    model = make_model()
    model.compile("sgd", "mse")
    monitor.set_model(model)
    monitor.on_train_begin()
    monitor.on_epoch_begin(0)
    monitor.on_train_end()
    json.dumps(monitor.history)


def _monitor_state():
    return {
        "history": [],
        "last": [],
        "num_units": 11,
        "diverged": [],
        "before": {},
        "first": {},
    }


RECIPES |= {
    "callbacks.PlasticityMonitor": Recipe(
        call=callbacks.PlasticityMonitor,
        arguments={
            "probe_data": lambda: make_data(9),
            "log_dir": _is(None),
            "layers": lambda: ["layer_0"],
            "measures": lambda: ["dead_units", "gradient_norm"],
            "batch_size": _is(5),
            "max_rows": _is(3),
            "thresholds": lambda: {"dead_units": 0.5},
        },
        use=_measure,
        # A list of numbers is a list of inputs, and so is a dict.
        words={"probe_data": ("targets",)},
        raises=(OSError,),
    ),
    "callbacks.PlasticityMonitor.set_state": Recipe(
        call=lambda state: callbacks.PlasticityMonitor(5).set_state(state),
        arguments={"state": _monitor_state},
    ),
}


class _Boundary(callbacks.BoundaryCallback):
    """Changes nothing."""

    def on_boundary(self, model, learner, task, x, y):
        return []


def _at_boundary(make):
    """Arguments that all callbacks at boundaries have, and a use of them."""

    def use(callback):
        json.dumps(callback.get_config())
        callback.set_state(callback.get_state())
        callback.set_model(make())
        callback.on_train_begin()
        callback.on_epoch_begin(0)

    return {
        "skip": _is(0),
        "epochs": _is(None),
        "reset_optimizer": _is("none"),
    }, use


def _boundary(name, make=lambda: _compiled_model(), **arguments):
    common, use = _at_boundary(make)
    kind = getattr(callbacks, name)
    RECIPES[f"callbacks.{name}"] = Recipe(
        call=kind if name != "BoundaryCallback" else _Boundary,
        arguments=arguments | common,
        use=use,
        never={
            "build_model": _RAISES_WHEN_CALLED + ("function",),
            # Not a function of a number, or data of another model.
            "data": _RAISES_WHEN_CALLED + ("function",),
        },
        words={"build_model": ("model",), "layers": ("layer",)},
    )


def _compiled_model(layers=keras.layers):
    model = make_model(layer=layers.Dense)
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def _injectable_model(*args):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Injectable(keras.layers.Dense(3))]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def _fresh_model(learner, task):
    return _compiled_model()


_boundary("BoundaryCallback")
_boundary(
    "DASH",
    data=lambda: make_data(9),
    alpha=_is(0.5),
    min_factor=_is(0.5),
    batch_size=_is(5),
)
_boundary("FIRE", iterations=_is(2), layers=_is(None))
_boundary(
    "PlasticityInjection",
    _injectable_model,
    build_model=lambda: _injectable_model,
    seed=_is(0),
)
_boundary(
    "ResetLayers",
    layers=_is(1),
    build_model=lambda: _fresh_model,
    seed=_is(0),
)
_boundary("ResetModel", build_model=lambda: _fresh_model)
_boundary(
    "ShrinkAndPerturbTasks",
    build_model=lambda: _fresh_model,
    shrink=_is(0.5),
    perturb=_is(0.1),
)
_boundary("SpectralDiversityPreservation", gamma=_is(0.5), layers=_is(None))
_boundary("ZeroWeights", layers=lambda: ["layer_0"])
RECIPES |= {
    "callbacks.BoundaryCallback.set_state": Recipe(
        call=lambda state: _Boundary().set_state(state),
        arguments={"state": lambda: {"begun": 1, "epochs_begun": 2}},
    ),
    "callbacks.EvaluateTortoise": Recipe(
        call=callbacks.EvaluateTortoise, arguments={}
    ),
}


def _track(tracker):
    tracker.log({"loss": 0.5}, 0)
    tracker.on_train_end()


RECIPES |= {
    "callbacks.CSVTracker": Recipe(
        call=callbacks.CSVTracker,
        arguments={"path": _new_folder},
        use=_track,
        raises=(OSError,),
    ),
    "callbacks.CSVTracker.set_state": Recipe(
        call=lambda state: callbacks.CSVTracker("a.csv").set_state(state),
        arguments={"state": lambda: [{"step": 0, "loss": 0.5}]},
    ),
    # They are opened at the first step, by what may not be installed.
    "callbacks.MLflowTracker": Recipe(
        call=callbacks.MLflowTracker,
        arguments={
            "experiment": _is("tests"),
            "run_name": _is("cbp"),
            "settings": lambda: {"seed": 0},
            "tracking_uri": _new_folder,
        },
        raises=(ImportError,),
    ),
    "callbacks.WandbTracker": Recipe(
        call=callbacks.WandbTracker,
        arguments={
            "project": _is("tests"),
            "run_name": _is("cbp"),
            "settings": lambda: {"seed": 0},
            "log_dir": _new_folder,
            "mode": _is("offline"),
        },
        raises=(ImportError,),
    ),
}


# --- datasets


def _without_data(load):
    """Calls a loader where `tensorflow_datasets` has no data at all."""

    def call(**arguments):
        builder = types.SimpleNamespace(is_prepared=lambda: False)
        tfds = types.SimpleNamespace(builder=lambda name, data_dir: builder)
        with mock.patch.object(
            prepared_data, "import_tensorflow_datasets", lambda title: tfds
        ):
            load(**arguments)

    return call


RECIPES |= {
    "datasets.load_imagenet": Recipe(
        call=_without_data(datasets.load_imagenet),
        arguments={
            "data_dir": _is("data"),
            "cache_dir": _is("cache"),
            "resolution": _is(32),
        },
        never={"data_dir": ("None",)},  # Which would download.
        raises=(FileNotFoundError,),
    ),
    "datasets.load_mnist": Recipe(
        call=_without_data(datasets.load_mnist),
        arguments={"data_dir": _is("data")},
        never={"data_dir": ("None",)},
        raises=(FileNotFoundError,),
    ),
}


# --- diagnostics


def _features():
    return np.random.default_rng(0).normal(size=(6, 3))


def _arrays():
    return [np.ones((2, 3)), np.ones(3)]


_OF_DIAGNOSTICS = {
    "batch_gradient_norms": _is([1.0, 2.0]),
    "eigenvalues": _is([2.0, -1.0]),
    "features": _features,
    "gradient": _features,
    "gradient_norm": _is(1.0),
    "loss": _is(1.0),
}
_OF_ONE_DIAGNOSTIC = {
    "isometry_deviation": {"kernels": lambda: [np.ones((2, 3)), np.eye(2)]},
    "output_churn": {"before": _features, "after": _features},
    "tangent_kernel_condition": {"gradients": _features},
    "tangent_kernel_rank": {"gradients": _features},
}
for _name in diagnostics.__all__:
    _arguments = {}
    for _parameter in inspect.signature(
        getattr(diagnostics, _name)
    ).parameters.values():
        if _parameter.default is not _parameter.empty:
            _arguments[_parameter.name] = _is(_parameter.default)
        else:
            _arguments[_parameter.name] = _OF_DIAGNOSTICS.get(
                _parameter.name, _arrays
            )
    _arguments |= _OF_ONE_DIAGNOSTIC.get(_name, {})
    RECIPES[f"diagnostics.{_name}"] = Recipe(
        call=getattr(diagnostics, _name), arguments=_arguments, use=float
    )


# --- diagnosis


def _small_compiled_model():
    model = make_model(dims=(4, 2))
    model.compile("sgd", "mse")
    return model


def _float_or_array(result):
    for each in keras.tree.flatten(result):
        np.asarray(each, "float64")


def _recent(num_examples=5):
    recent = diagnosis.RecentExamples(num_examples)
    recent.add(*make_data(5, (4, 2)))
    return recent


class _ToRecord(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return make_data(5, (4, 2), seed=index)


RECIPES |= {
    "diagnosis.RecentExamples": Recipe(
        call=diagnosis.RecentExamples,
        arguments={"num_examples": _is(5)},
        use=lambda recent: recent.add(np.ones((3, 2))),
    ),
    "diagnosis.RecentExamples.add": Recipe(
        call=lambda x, y: _recent().add(x, y),
        arguments={
            "x": lambda: make_data(5, (4, 2))[0],
            "y": lambda: make_data(5, (4, 2))[1],
        },
        words={"x": ("`y`",), "y": ("`x`",)},
    ),
    "diagnosis.RecentExamples.record": Recipe(
        call=lambda data: _recent().record(data),
        arguments={"data": _ToRecord},
    ),
}

for _name in diagnosis.__all__:
    if inspect.isclass(getattr(diagnosis, _name)):
        continue
    _arguments = {
        "model": _small_compiled_model,
        "data": lambda: make_data(5, (4, 2)),
    }
    for _parameter in inspect.signature(
        getattr(diagnosis, _name)
    ).parameters.values():
        if _parameter.default is not _parameter.empty:
            _arguments[_parameter.name] = _is(_parameter.default)
    RECIPES[f"diagnosis.{_name}"] = Recipe(
        call=getattr(diagnosis, _name),
        arguments=_arguments,
        use=str if _name in ("diagnose", "measure") else _float_or_array,
        # It compiles something each time.
        weight=0.2,
    )


RECIPES["diagnosis.diagnose"] = dataclasses.replace(
    RECIPES["diagnosis.diagnose"],
    arguments={
        **RECIPES["diagnosis.diagnose"].arguments,
        "num_new": _is(3),
        "num_steps": _is(1),
        "build_model": lambda: functools.partial(make_model, dims=(4, 2)),
    },
    # What Keras says of them is Keras' own.
    fixed=("loss", "optimizer"),
    never={"build_model": _RAISES_WHEN_CALLED},
    weight=0.05,
)
for _name in ("diagnose", "measure"):
    RECIPES[f"keras_plasticity.{_name}"] = RECIPES[f"diagnosis.{_name}"]


# --- functional


def _formula(name, words=None, **arguments):
    RECIPES[f"functional.{name}"] = Recipe(
        call=getattr(functional, name), arguments=arguments, words=words or {}
    )


_UNITS = _tensor(0.5, 2.0, 1.0)
_MATRIX = _tensor([0.5, 2.0, 1.0], [0.0, 1.0, -1.0])
# Of a layer of two units.
_WEIGHTS = _tensor([0.5, -2.0], [1.0, 0.25])

_formula("adaptation", incoming_magnitude=_UNITS)
_formula(
    "advance_count",
    count=_tensor(5, dtype="int32"),
    mature=lambda: ops.convert_to_tensor(3, dtype="int32"),
    digits=_is((0, (1,), 10)),
)
_formula("below_mean", utility=_WEIGHTS, factor=_is(0.5))
_formula("erfi", x=_UNITS)
_formula("first_order_utility", weight=_WEIGHTS, gradient=_WEIGHTS)
_formula("global_protection", utility=_WEIGHTS, largest=_is(2.0))
_formula("least", utility=_WEIGHTS, number=_is(2))
_formula("local_protection", utility=_WEIGHTS)
_formula("age_bin", age=_tensor(1.0, 3000.0, 7.0), max_age=_is(5000))
_formula(
    "age_quantile",
    histogram=_tensor([0.0, 3.0, 1.0], [1.0, 0.0, 0.0]),
    quantile=_is(0.9),
)
_formula("contribution", activation_magnitude=_UNITS, outgoing_magnitude=_UNITS)
_formula("count_digits", replacement_rate=_is(1e-4), units=_is(100))
_formula("distance_gradient", difference=_UNITS, distance=_is("huber"))
_formula("dormancy_score", activation_magnitude=_UNITS)
_formula("effective_rank", features=_MATRIX)
_formula(
    "even_out_singular_values",
    matrix=_MATRIX,
    strength=_is(0.5),
    minimum=_is(1e-4),
)
_formula("gradient_score", gradient_magnitude=_UNITS)
_formula("joint_norm", tensors=lambda: [_UNITS(), _MATRIX()])
_formula(
    "least_useful_unit",
    utility=_UNITS,
    age=_tensor(1.0, 5.0, 9.0),
    maturity_threshold=_is(3),
)
_formula(
    "mean_corrected_contribution",
    activation_deviation=_UNITS,
    outgoing_magnitude=_UNITS,
)
_formula(
    "mean_magnitude",
    weights=lambda: ops.convert_to_tensor(np.ones((2, 3, 4), "float32")),
    axis=_is(1),
    words={"weights": ("axis",)},  # Which they may lack.
)
_formula("num_age_bins", max_age=_is(5000))
_formula("orthogonalize", matrix=_MATRIX, iterations=_is(3))
_formula(
    "overall",
    activation_deviation=_UNITS,
    outgoing_magnitude=_UNITS,
    incoming_magnitude=_UNITS,
)
_formula("orthogonality_gradient", matrix=_MATRIX, scale=_is(0.5))
_formula(
    "project_to_norm", tensors=lambda: [_UNITS(), _MATRIX()], norm=_is(2.0)
)
_formula(
    "reset_share",
    utility=_UNITS,
    sharpness=_is(16.0),
    threshold=_is(1.0),
    transform=_is("sigmoid"),
)
_formula("running_mean", mean=_UNITS, value=_UNITS, step_size=_UNITS)
_formula(
    "spectral_norm_and_gradient",
    matrix=_MATRIX,
    start=_UNITS,
    num_iterations=_is(3),
)
_formula(
    "shrink_towards_direction",
    weights=_MATRIX,
    direction=_MATRIX,
    minimum=_is(0.5),
    axis=_is(1),
    words={"weights": ("axis",), "direction": ("axis",)},
)
_formula("step_size", age=_tensor(1.0, 2.0, 3.0), decay_rate=_is(0.9))
_formula("weight_magnitude", outgoing_magnitude=_UNITS)


# --- layers


def _call_layer(shape):
    def use(layer):
        json.dumps(layer.get_config())
        # Activations take no `training`.
        training = (
            {"training": True}
            if "training" in (inspect.signature(layer.call).parameters)
            else {}
        )
        inputs = [np.ones(shape, "float32")]
        if isinstance(layer, layers.attention.PlasticAttention):
            inputs *= 2  # Query and value.
        layer(*inputs, **training)

    return use


def _layer(name, shape, **arguments):
    """A layer: of its arguments, those of Keras are not replaced."""
    RECIPES[f"layers.{name}"] = Recipe(
        call=getattr(layers, name),
        arguments={
            **{key: _is(value) for key, value in arguments.items()},
            "replaceable": _is(True),
        },
        use=_call_layer(shape),
        fixed=tuple(key for key in arguments if key != "equation"),
        weight=0.2,
    )


_layer("Dense", (2, 3), units=4)
RECIPES["layers.BatchNormalization"] = Recipe(
    call=layers.BatchNormalization,
    arguments={"momentum": _is(0.9)},
    use=_call_layer((2, 3)),
    fixed=("momentum",),
    weight=0.2,
)
_layer("EinsumDense", (2, 5, 3), equation="abc,cd->abd", output_shape=(5, 4))
_layer("Embedding", (2, 5), input_dim=3, output_dim=2)
_layer("MultiHeadAttention", (2, 5, 3), num_heads=2, key_dim=2)
_layer(
    "GroupQueryAttention",
    (2, 5, 3),
    head_dim=2,
    num_query_heads=2,
    num_key_value_heads=1,
)
for _rank in (1, 2, 3):
    _shape = (1, *(4,) * _rank, 2)
    _layer(f"Conv{_rank}D", _shape, filters=3, kernel_size=2)
    _layer(f"Conv{_rank}DTranspose", _shape, filters=3, kernel_size=2)
    if _rank < 3:
        _layer(f"DepthwiseConv{_rank}D", _shape, kernel_size=2)
        _layer(f"SeparableConv{_rank}D", _shape, filters=3, kernel_size=2)
    _layer(f"ConvLSTM{_rank}D", (1, 2, *_shape[1:]), filters=3, kernel_size=2)
for _name in ("GRU", "LSTM", "SimpleRNN"):
    _layer(_name, (2, 5, 3), units=4)

RECIPES["layers.Injectable"] = Recipe(
    call=layers.Injectable,
    arguments={"layer": lambda: keras.layers.Dense(3)},
    use=_call_layer((2, 4)),
    # Of an odd layer, Keras says what is wrong when it is called.
    never={"layer": ("layer", "model", "empty model")},
)
RECIPES["layers.RecentInputs"] = Recipe(
    call=layers.RecentInputs,
    arguments={"num_examples": _is(3), "name": _is("recent")},
    use=_call_layer((2, 3)),
)
RECIPES["layers.OnlineNormalization"] = Recipe(
    call=layers.OnlineNormalization,
    arguments={
        "axis": _is(-1),
        "forward_decay": _is(0.9),
        "backward_decay": _is(0.8),
        "epsilon": _is(1e-5),
        "center": _is(True),
        "scale": _is(True),
        "layer_scaling": _is(True),
        "beta_initializer": _is("zeros"),
        "gamma_initializer": _is("ones"),
        "beta_regularizer": _is("l2"),
        "gamma_regularizer": _is(None),
        "beta_constraint": _is("non_neg"),
        "gamma_constraint": _is(None),
    },
    use=_call_layer((2, 3)),
    never={
        f"{parameter}_{kind}": _RAISES_WHEN_CALLED + ("function",)
        for parameter in ("beta", "gamma")
        for kind in ("initializer", "regularizer", "constraint")
    },
    # Of an array of another shape, Keras says so when the layer is built.
    words={
        "beta_initializer": ("initializer",),
        "gamma_initializer": ("initializer",),
    },
    weight=2.0,
)
for _name, _arguments in {
    "ConcatenatedELU": {"axis": _is(-1)},
    "CReLU": {"axis": _is(-1)},
    "DeepFourier": {"axis": _is(-1)},
    "SmoothLeaky": {"alpha": _is(0.1), "p": _is(3.0), "c": _is(5.0)},
    "Rational": {
        "numerator": lambda: [0.0, 1.0, 0.5],
        "denominator": lambda: [0.5, 0.1],
    },
    "InputNormalization": {
        "axis": _is(-1),
        "momentum": _is(0.9),
        "epsilon": _is(1e-5),
    },
}.items():
    RECIPES[f"layers.{_name}"] = Recipe(
        call=getattr(layers, _name),
        arguments=_arguments,
        use=_call_layer((2, 3)),
    )
RECIPES["layers.AdaLin"] = Recipe(
    call=layers.AdaLin,
    arguments={
        "axis": _is(-1),
        "alpha_initializer": _is("zeros"),
        "alpha_regularizer": _is("l2"),
        "alpha_constraint": _is("non_neg"),
    },
    use=_call_layer((2, 3)),
    never={
        f"alpha_{kind}": _RAISES_WHEN_CALLED + ("function",)
        for kind in ("initializer", "regularizer", "constraint")
    },
    # Of an array of another shape, Keras says so when the layer is built.
    words={"alpha_initializer": ("initializer",)},
)


# --- optimizers


def _build_optimizer(optimizer):
    json.dumps(optimizer.get_config())
    model = make_model()
    optimizer.build(model.trainable_variables)
    return model


def _train(optimizer):
    model = _build_optimizer(optimizer)
    model.compile(
        optimizer=optimizer, loss="mse", run_eagerly=True, jit_compile=False
    )
    model.train_on_batch(*make_data(2))


def _train_with_recent(optimizer):
    model = make_model(before=[layers.RecentInputs(4)])
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(*make_data(8), batch_size=4, verbose=0)


def _optimizer(name, use=_train, words=None, **arguments):
    RECIPES[f"optimizers.{name}"] = Recipe(
        call=getattr(optimizers, name),
        arguments={
            "inner_optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
            **{key: _is(value) for key, value in arguments.items()},
            "name": _is("optimizer"),
        },
        use=use,
        words=words or {},
        never={"utility": _RAISES_WHEN_CALLED},
        weight=3.0,
    )


_optimizer(
    "ContinualBackprop",
    replacement_rate=0.5,
    maturity_threshold=0,
    decay_rate=0.9,
    utility="overall",
    transfer_mean=True,
    reset_optimizer_state=True,
    seed=0,
)
_optimizer(
    "CCBP",
    replacement_rate=0.1,
    sharpness=4.0,
    decay_rate=0.9,
    period=5,
    utility="contribution",
    seed=0,
    continuous=False,
    maturity_threshold=3,
    reset_optimizer_state=True,
)
_optimizer(
    "CPR",
    replacement_rate=0.1,
    sharpness=4.0,
    threshold=0.5,
    decay_rate=0.9,
    period=5,
    transform="linear",
    seed=0,
)
_optimizer(
    "DecoupledOrthogonality", strength=0.1, step_size=0.01, exclude=("layer_2",)
)
_optimizer(
    "ChurnRegularization",
    use=_train_with_recent,
    coefficient=0.5,
    distance="cross_entropy",
)
_optimizer(
    "EffectiveRank",
    use=_train_with_recent,
    rank_learning_rate=0.01,
    period=2,
    steps=2,
    layers=1,
)
_optimizer("HareAndTortoise", decay_rate=0.9, period=3, exclude=("bias",))
_optimizer("L2", l2=1e-3)
_optimizer(
    "L2Init",
    strength=0.1,
    distance="l1",
    exclude=("bias",),
    target_initializer="he_uniform",
    draw_biases=True,
    seed=0,
    words={"draw_biases": ("target_initializer",)},
)
_optimizer("NormalizeAndProject", period=2, exclude=("layer_2",))
_optimizer(
    "ParsevalRegularization", strength=0.1, scale=0.5, exclude=("layer_2",)
)
_optimizer(
    "SpectralRegularization",
    strength=0.1,
    exponent=2.0,
    target=1.0,
    num_iterations=3,
    exclude=("layer_2",),
)
_optimizer(
    "WeightClipping", kappa=1.0, exclude=("layer_2",), clip_normalization=True
)
_optimizer("WeightOptimizer", exclude=("layer_2",))
_optimizer("OptimizerWrapper", use=_build_optimizer)
_optimizer(
    "ReDo",
    threshold=0.1,
    period=5,
    score_updates=2,
    seed=0,
    outgoing="random",
    new_weights="initial",
    shared_weights="incoming",
    reset_bias_slots=True,
    words={"period": ("score_updates",)},
)
_optimizer(
    "SelectiveWeightReinitialization",
    utility="gradient",
    rule="proportional",
    replacement="resample",
    factor=0.1,
    period=3,
    decay_rate=0.5,
    seed=0,
    exclude=("bias",),
    initializer="he_uniform",
)
_optimizer(
    "ReGraMa",
    threshold=0.1,
    period=5,
    reset_optimizer_state=True,
    seed=0,
    max_fraction=0.5,
)
_optimizer(
    "SelfNormalizedResets",
    quantile=0.9,
    min_threshold=5,
    max_threshold=50,
    initial_threshold=20,
    threshold_period=10,
    seed=0,
    words={
        "max_threshold": ("min_threshold", "initial_threshold"),
        "min_threshold": ("initial_threshold",),
    },
)
_optimizer(
    "ShrinkAndPerturb",
    l2=1e-3,
    noise_stddev=1e-3,
    noise_refresh_steps=10,
    seed=0,
)
_optimizer(
    "ShrinkAndPerturbByInitializer",
    shrink=0.9,
    perturb=0.1,
    initializer="he_uniform",
    noise_refresh_steps=10,
    seed=0,
    perturb_biases=True,
    period=2,
)
_optimizer("TRAC", betas=(0.5, 0.9), scale=0.1, epsilon=1e-3, exclude=("bias",))
_optimizer(
    "UPGD",
    scope="local",
    protecting=True,
    utility_decay=0.9,
    decay=0.1,
    noise_stddev=0.1,
    noise_refresh_steps=10,
    seed=0,
    exclude=("bias",),
)
_optimizer(
    "UnitUPGD",
    scope="local",
    protecting=True,
    utility_decay=0.9,
    decay=0.1,
    noise_stddev=0.1,
    noise_refresh_steps=10,
    seed=0,
    exclude=("bias",),
)
_optimizer(
    "UnitResetOptimizer",
    use=_build_optimizer,
    reset_optimizer_state=True,
    seed=0,
)


@functools.cache
def _built_redo():
    model = make_model()
    optimizer = optimizers.ReDo(keras.optimizers.SGD(0.1), seed=0)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def _hidden_units():
    model = make_model()
    optimizer = optimizers.ReDo(keras.optimizers.SGD(0.1), seed=0)
    optimizer.build(model.trainable_variables)
    return optimizer.hidden[0]


def _on_examples(method):
    return Recipe(
        call=lambda **kwargs: getattr(_built_redo()[1], method)(**kwargs),
        arguments={
            "model": lambda: _built_redo()[0],
            "x": lambda: make_data(3)[0],
        },
        words={"x": ("input", "inputs")},
        # Of another model: Keras says that its shapes do not fit.
        never={"model": ("model", "empty model")},
    )


RECIPES |= {
    "optimizers.UnitResetOptimizer.observe": _on_examples("observe"),
    "optimizers.ReDo.recycle": _on_examples("recycle"),
    "optimizers.OptimizerWrapper.add_copy": Recipe(
        call=lambda **kwargs: _built_redo()[1].add_copy(**kwargs),
        arguments={
            "reference_variable": lambda: _built_redo()[0].layers[0].kernel,
            "name": _is("copy"),
        },
    ),
    "optimizers.OptimizerWrapper.add_seed_generator": Recipe(
        call=lambda **kwargs: _built_redo()[1].add_seed_generator(**kwargs),
        arguments={"seed": _is(0)},
    ),
    "optimizers.OptimizerWrapper.now": Recipe(
        call=lambda **kwargs: _built_redo()[1].now(**kwargs),
        arguments={"name": _is("threshold")},
    ),
    "optimizers.OptimizerWrapper.is_statistic": Recipe(
        call=optimizers.OptimizerWrapper.is_statistic,
        arguments={"variable": lambda: keras.Variable(np.ones(3))},
    ),
    "optimizers.HiddenUnits.add_variable": Recipe(
        call=lambda **kwargs: _hidden_units().add_variable(**kwargs),
        arguments={
            "name": _is("count"),
            "shape": _is((3,)),
            "dtype": _is("float32"),
            "initializer": _is(0.5),
            "restarts": _is(True),
        },
        never={"initializer": _RAISES_WHEN_CALLED + ("function",)},
    ),
}


# --- streams


def _use_stream(stream):
    assert len(stream) > 0
    for array in stream.task(0):
        assert np.isfinite(array).all()


def _images():
    return np.arange(6 * 4, dtype="uint8").reshape(6, 2, 2)


def _binary_class_pairs():
    return streams.BinaryClassPairs(_images(), [0, 1, 2] * 2, 3, 1, 1)


def _regression():
    return streams.SlowlyChangingRegression(3, 5)


def _of_stream(method, build, **arguments):
    return Recipe(
        call=lambda **kwargs: getattr(build(), method)(**kwargs),
        arguments=arguments,
        raises=(IndexError,),
    )


RECIPES |= {
    "streams.BinaryClassPairs": Recipe(
        call=streams.BinaryClassPairs,
        arguments={
            "images": _images,
            "labels": lambda: np.array([0, 1, 2] * 2),
            "num_tasks": _is(3),
            "train_images_per_class": _is(1),
            "test_images_per_class": _is(1),
            "scale": _is("unit"),
            "seed": _is(0),
            "reshuffle_each_pass": _is(True),
        },
        use=_use_stream,
    ),
    "streams.BinaryClassPairs.order": _of_stream(
        "order", _binary_class_pairs, index=_is(1), epoch=_is(0)
    ),
    "streams.BinaryClassPairs.task": _of_stream(
        "task", _binary_class_pairs, index=_is(1)
    ),
    "streams.BinaryClassPairs.test": _of_stream(
        "test", _binary_class_pairs, index=_is(1)
    ),
    "streams.LabelPermutedImages": Recipe(
        call=streams.LabelPermutedImages,
        arguments={
            "images": _images,
            "labels": lambda: np.arange(6) % 3,
            "num_tasks": _is(3),
            "examples_per_task": _is(4),
            "seed": _is(0),
        },
        use=_use_stream,
    ),
    "streams.LabelPermutedImages.task": _of_stream(
        "task",
        lambda: streams.LabelPermutedImages(_images(), np.arange(6)),
        index=_is(1),
    ),
    "streams.OnlinePermutedImages": Recipe(
        call=streams.OnlinePermutedImages,
        arguments={
            "images": _images,
            "labels": lambda: np.arange(6),
            "num_tasks": _is(3),
            "examples_per_task": _is(4),
            "seed": _is(0),
        },
        use=_use_stream,
    ),
    "streams.OnlinePermutedImages.task": _of_stream(
        "task",
        lambda: streams.OnlinePermutedImages(_images(), np.arange(6)),
        index=_is(1),
    ),
    "streams.SlowlyChangingRegression": Recipe(
        call=streams.SlowlyChangingRegression,
        arguments={
            "num_tasks": _is(3),
            "examples_per_task": _is(5),
            "flip_one": _is(True),
            "seed": _is(0),
            "num_bits": _is(20),
            "num_slow_bits": _is(15),
            "num_target_units": _is(10),
            "beta": _is(0.7),
            "negatives": _is("code"),
        },
        use=_use_stream,
    ),
    "streams.SlowlyChangingRegression.target": _of_stream(
        "target", _regression, x=lambda: np.ones((2, 20))
    ),
    "streams.SlowlyChangingRegression.task": _of_stream(
        "task", _regression, index=_is(1)
    ),
}


# --- training


def _compiled(learner=0):
    model = make_model()
    model.compile(
        optimizer=optimizers.L2(keras.optimizers.SGD(0.1)), loss="mse"
    )
    return model


class _Stream:
    def __len__(self):
        return 2

    def task(self, index):
        return make_data(3, seed=index)


@functools.cache
def _fitted_trainer():
    trainer = training.OnlineTrainer(_compiled())
    trainer.fit(_Stream())
    return trainer


def _edit(**arguments):
    with _fitted_trainer().edit(**arguments):
        pass


RECIPES |= {
    "training.OnlineTrainer": Recipe(
        call=training.OnlineTrainer,
        arguments={
            "model": lambda: _compiled,
            "num_learners": _is(2),
            "jit_compile": _is("auto"),
        },
    ),
    "training.OnlineTrainer.fit": Recipe(
        call=lambda **kwargs: training.OnlineTrainer(_compiled()).fit(**kwargs),
        arguments={
            "stream": _Stream,
            "batch_size": _is(2),
            "epochs": _is(1),
            "first_task": _is(0),
            "num_tasks": _is(1),
            "callbacks": lambda: [training.TaskCallback()],
            "on_nan": _is("stop"),
            "checkpoint": _new_folder,
            "resume": _is(False),
        },
        words={"batch_size": ("batch",), "num_tasks": ("tasks",)},
        never={"stream": _RAISES_WHEN_CALLED},
        raises=(OSError,),
        weight=0.5,
    ),
    "training.OnlineTrainer.model": Recipe(
        call=lambda **kwargs: _fitted_trainer().model(**kwargs),
        arguments={"learner": _is(0)},
    ),
    "training.OnlineTrainer.edit": Recipe(
        call=_edit, arguments={"learner": _is(0)}
    ),
    "training.num_tasks_done": Recipe(
        call=training.num_tasks_done,
        arguments={"path": _is("checkpoint.npz")},
        words={"path": ("checkpoint",)},
        raises=(OSError,),
    ),
}


# --- utils


def _writing(method, **arguments):
    def call(**arguments):
        with utils.SummaryWriter(_new_folder()) as writer:
            getattr(writer, method)(**arguments)

    RECIPES[f"utils.SummaryWriter.{method}"] = Recipe(
        call=call, arguments=arguments, weight=0.5
    )


_writing(
    "band_charts", charts=lambda: {"task/loss": ("loss", "lower", "upper")}
)
_writing("histogram", tag=_is("a"), values=lambda: np.ones(3), step=_is(0))
_writing(
    "hparams",
    hparams=lambda: {"rate": 0.1},
    results=lambda: {"loss": 0.5},
    step=_is(3),
)
_writing("image", tag=_is("a"), png=_is(_PNG), step=_is(0))
_writing("scalar", tag=_is("a"), value=_is(0.5), step=_is(0))
_writing("text", tag=_is("a"), markdown=_is("words"), step=_is(0))


def _show(bar):
    with bar:
        bar.advance(bar.add_task("work", total=2))


RECIPES |= {
    "utils.ProgressBar": Recipe(
        call=utils.ProgressBar,
        arguments={
            "console": lambda: rich.console.Console(file=io.StringIO()),
            "speed_estimate_period": _is(30.0),
        },
        use=_show,
    ),
    "utils.SummaryWriter": Recipe(
        call=utils.SummaryWriter,
        arguments={
            "log_dir": _new_folder,
            "first_step": _is(0),
            "suffix": _is(".rows"),
        },
        use=lambda writer: writer.close(),
        raises=(OSError,),
        weight=0.5,
    ),
    "utils.markdown_table": Recipe(
        call=utils.markdown_table,
        arguments={
            "header": _is(("flag", "value")),
            "rows": lambda: [("seed", 0)],
            "escape": _is(True),
        },
    ),
}


# --- experiments


def _flag_values():
    values = flags.FlagValues()
    experiments.define_flags(values)
    values(["trainer", f"--log_dir={_new_folder()}", "--method=bp"])
    return values


def _flag():
    return experiments.Flag("bound", "largest weight", 1.0, "(0, inf)")


def _part():
    return experiments.Part("mine", "what I do", flags=(_flag(),))


def _method():
    (method,) = experiments.choose_methods(_flag_values(), {}, ["bp"])
    return method


def _problem_arguments():
    return {
        "name": _is("problem"),
        "title": _is("A problem"),
        "metric": _is("squared_error"),
        "result": _is("loss"),
        "metric_label": _is("squared error"),
        "examples_per_task": _is(5),
        "num_probe_examples": _is(4),
        "num_weights": _is(9),
        "defaults": lambda: {"learning_rate": 0.01},
        "published": lambda: lambda method: [(1, 0.5)],
        "lower_is_better": _is(True),
        "scale": _is(1.0),
        "format": _is(".2f"),
        "tasks_per_bin": _is(1),
        "x_label": _is("tasks"),
        "x_per_task": _is(1),
        "num_learners": _is(1),
        "methods": lambda: ["bp"],
        "diagnostics": _is(False),
        "may_grow": lambda: ["num_tasks"],
    }


def _problem():
    arguments = _problem_arguments()
    return experiments.Problem(**{k: make() for k, make in arguments.items()})


def _build_model(method, seed):
    model = keras.Sequential([keras.Input((20,)), method.layers.Dense(1)])
    model.compile(method.optimizer(seed, "he_uniform"), "mse")
    return model


def _finished_run():
    folder = "finished"
    if not os.path.exists(folder):
        values = flags.FlagValues()
        experiments.define_flags(values)
        values(["trainer", f"--log_dir={folder}", "--method=bp"])
        _run(values)
    return folder


def _run(flag_values, **arguments):
    return experiments.run(
        **{
            "flag_values": flag_values,
            "problem": _problem(),
            "build_model": _build_model,
            "build_stream": lambda seed: streams.SlowlyChangingRegression(
                1, 5, seed=seed
            ),
            "num_tasks": 1,
            **arguments,
        }
    )


class _NoProcesses:
    """In place of the processes of a sweep: every run is done, of no result."""

    at_a_time = 1

    def __init__(self, trainer, processes):
        pass

    def check(self, arguments):
        return _done(None)

    def submit(self, job):
        return _done(sweep_jobs.Outcome(1, "nothing is trained", []))

    def stop(self):
        pass

    def end_idle(self):
        pass

    def close(self, at_once=False):
        pass


def _done(result):
    future = concurrent.futures.Future()
    future.set_result(result)
    return future


def _sweep(**arguments):
    with mock.patch.object(sweep_driver, "LocalProcesses", _NoProcesses):
        try:
            return experiments.sweep(**arguments)
        except SystemExit:  # As all runs have failed.
            return None


def _suite(**arguments):
    with mock.patch.object(sweep_driver, "LocalProcesses", _NoProcesses):
        try:
            return experiments.suite(**arguments)
        except SystemExit:
            return None


_BOOTSTRAP = {
    "statistic": _is("mean"),
    "confidence": _is(0.95),
    "num_resamples": _is(100),
    "small_sample": _is(True),
    "seed": _is(0),
}


def _launch(**arguments):
    with mock.patch.object(sys, "argv", ["trainer"]):
        experiments.launch(**arguments)


RECIPES |= {
    "experiments.Flag": Recipe(
        call=experiments.Flag,
        arguments={
            "name": _is("bound"),
            "help": _is("largest weight"),
            "default": _is(0.5),
            "interval": _is("(0, 1]"),
            "choices": _is(()),
            "type": _is(float),
        },
        use=lambda flag: (hash(flag), flag.allows(0.5)),
    ),
    "experiments.Flag.allows": Recipe(
        call=lambda **kwargs: _flag().allows(**kwargs),
        arguments={"value": _is(0.5)},
    ),
    "experiments.Method": Recipe(
        call=experiments.Method,
        arguments={
            "parts": lambda: (_part(),),
            "settings": lambda: {"bound": 1.0},
            "changed": lambda: frozenset(["bound"]),
        },
        use=lambda method: (method.name, method.gain, method.layers),
    ),
    "experiments.Method.has": Recipe(
        call=lambda **kwargs: _method().has(**kwargs),
        arguments={"name": _is("bp")},
    ),
    "experiments.Method.hidden": Recipe(
        call=lambda **kwargs: _method().hidden(units=3, **kwargs),
        arguments={
            "weighted": _is("Dense"),
            "name": _is("hidden"),
            "kernel_initializer": lambda: keras.initializers.HeUniform(0),
        },
    ),
    "experiments.Method.optimizer": Recipe(
        call=lambda **kwargs: _method().optimizer(**kwargs),
        arguments={"seed": _is(0), "initializer": _is("he_uniform")},
    ),
    "experiments.Method.network": Recipe(
        call=lambda **kwargs: _method().network(**kwargs),
        arguments={"layers": lambda: [keras.layers.Dense(3)]},
    ),
    "experiments.Method.task_callbacks": Recipe(
        call=lambda **kwargs: _method().task_callbacks(**kwargs),
        arguments={"build_model": lambda: _build_model, "seeds": lambda: [0]},
    ),
    "experiments.Part": Recipe(
        call=experiments.Part,
        arguments={
            "name": _is("mine"),
            "about": _is("what I do"),
            "implementation": _is("`my_package.Mine`"),
            "flags": lambda: (_flag(),),
            "omits": _is(("momentum",)),
            "excludes": _is(("l2",)),
            "optimizer": _is(None),
            "wrap": _is(None),
            "input_layer": _is(None),
            "activation": _is(None),
            "normalization": _is(None),
            "after_activation": _is(None),
            "around_layers": _is(None),
            "plastic_layers": _is(False),
            "hidden_layers": _is(True),
            "smallest_batch": _is(1),
            "task_callback": _is(None),
        },
        use=lambda part: (hash(part), part.contradicts(_part())),
        weight=2.0,
    ),
    "experiments.Part.contradicts": Recipe(
        call=lambda **kwargs: _part().contradicts(**kwargs),
        arguments={"other": _part},
    ),
    "experiments.Range": Recipe(
        call=experiments.Range,
        arguments={"low": _is(0.1), "high": _is(1.0), "log": _is(True)},
        use=lambda each: (each.is_integer, hash(each)),
    ),
    "experiments.Problem": Recipe(
        call=experiments.Problem,
        arguments=_problem_arguments(),
        weight=2.0,
    ),
    "experiments.choose_methods": Recipe(
        call=experiments.choose_methods,
        arguments={
            "flag_values": _flag_values,
            "problem_defaults": lambda: {"learning_rate": 0.1},
            "default_methods": lambda: ["bp"],
            "parts": _is(experiments.PARTS),
        },
    ),
    "experiments.compare": Recipe(
        call=experiments.compare,
        arguments={
            "folders": lambda: [_finished_run()],
            "output": _is("compared"),
            "num_tasks": _is(1),
            "baseline": _is(None),
        },
        raises=(OSError,),
        weight=0.3,
    ),
    "experiments.Estimate": Recipe(
        call=experiments.Estimate,
        arguments={
            "value": _is(0.5),
            "low": _is(0.25),
            "high": _is(0.75),
            "n": _is(3),
            "confidence": _is(0.95),
        },
        use=lambda estimate: (str(estimate), estimate.meets_zero),
    ),
    "experiments.area_under_curve": Recipe(
        call=experiments.area_under_curve,
        arguments={"values": lambda: np.ones((3, 2))},
    ),
    "experiments.check_separate_seeds": Recipe(
        call=experiments.check_separate_seeds,
        arguments={
            "selection_seeds": lambda: [0, 1],
            "report_seeds": lambda: [2, 3],
        },
    ),
    "experiments.estimate": Recipe(
        call=experiments.estimate,
        arguments={"scores": lambda: [0.5, 0.7], **_BOOTSTRAP},
    ),
    "experiments.last_tenth": Recipe(
        call=experiments.last_tenth,
        arguments={"values": lambda: np.ones((3, 2))},
    ),
    "experiments.paired_difference": Recipe(
        call=experiments.paired_difference,
        arguments={
            "scores": lambda: [0.5, 0.7],
            "others": lambda: [0.4, 0.3],
            **_BOOTSTRAP,
        },
    ),
    "experiments.probability_of_improvement": Recipe(
        call=experiments.probability_of_improvement,
        arguments={
            "scores": lambda: [0.5, 0.7],
            "others": lambda: [0.4, 0.3],
            "lower_is_better": _is(True),
            **{k: v for k, v in _BOOTSTRAP.items() if k != "statistic"},
        },
    ),
    "experiments.save_results": Recipe(
        call=experiments.save_results,
        arguments={
            "log_dir": _new_folder,
            "method": _is("mine"),
            "values": lambda: np.ones((3, 2)),
            "seeds": lambda: [3, 4],
            "like": _is(None),
            "problem": _is("stream"),
            "metric": _is("loss"),
            "lower_is_better": _is(True),
            "settings": lambda: {"rate": 0.5},
            "seconds": _is(1.5),
            "overwrite": _is(False),
        },
        raises=(OSError,),
    ),
    "experiments.suite": Recipe(
        call=_suite,
        arguments={
            "size": _is("minutes"),
            "methods": lambda: ["bp"],
            "problems": lambda: ["slowly_changing_regression"],
            "log_dir": _new_folder,
            "method_file": _is(None),
            "against": _is(None),
            "data_dir": _is(None),
            "trainers": _is(None),
            "processes": _is(1),
            "ray_address": _is(None),
            "resume": _is(False),
        },
        raises=(OSError,),
        weight=0.3,
    ),
    "experiments.unpaired_difference": Recipe(
        call=experiments.unpaired_difference,
        arguments={
            "scores": lambda: [0.5, 0.7],
            "others": lambda: [0.4, 0.3, 0.6],
            **_BOOTSTRAP,
        },
    ),
    "experiments.sweep": Recipe(
        call=_sweep,
        arguments={
            "trainer": _is(__file__),
            "space": lambda: {"learning_rate": [0.1, 0.2]},
            "log_dir": _new_folder,
            "flags": lambda: {"method": "bp"},
            "sampler": _is("grid"),
            "num_settings": _is(None),
            "sampler_seed": _is(0),
            "measure": _is("last_tenth"),
            "processes": _is(1),
            "ray_address": _is(None),
            "retries": _is(3),
            "table_format": _is("csv"),
            "report_seeds": _is(None),
            "resume": _is(False),
        },
        raises=(OSError,),
        weight=0.3,
    ),
    "experiments.separate_seeds": Recipe(
        call=experiments.separate_seeds,
        arguments={
            "num_selection": _is(2),
            "num_report": _is(3),
            "first_seed": _is(0),
        },
    ),
    "experiments.configure_backend": Recipe(
        call=experiments.configure_backend,
        arguments={
            "flag_values": _flag_values,
            "problem": _problem,
            "batch_size": _is(1),
        },
    ),
    "experiments.define_flags": Recipe(
        call=experiments.define_flags,
        arguments={
            "flag_values": flags.FlagValues,
            "data_set": _is("MNIST"),
            "parts": _is(experiments.PARTS),
            "defaults": lambda: {"l2": 0.1, "shrink": {None: 1.0, "l2": 2.0}},
        },
    ),
    "experiments.draw_pytorch_biases": Recipe(
        call=experiments.draw_pytorch_biases,
        arguments={
            "model": make_model,
            "rng": lambda: np.random.default_rng(0),
        },
    ),
    "experiments.has_defaults": Recipe(
        call=experiments.has_defaults,
        arguments={
            "flag_values": _flag_values,
            "names": lambda: ["learning_rate", "seed"],
        },
    ),
    "experiments.launch": Recipe(
        call=_launch,
        arguments={
            "define_flags": lambda: lambda flag_values: None,
            "run": lambda: lambda flag_values: None,
        },
        never={
            "define_flags": _RAISES_WHEN_CALLED,
            "run": _RAISES_WHEN_CALLED,
        },
        raises=(SystemExit,),
        weight=0.3,
    ),
    "experiments.methods_table": Recipe(
        call=experiments.methods_table,
        arguments={"parts": lambda: (_part(),)},
    ),
    "experiments.pytorch_initializer": Recipe(
        call=experiments.pytorch_initializer,
        arguments={"rng": lambda: np.random.default_rng(0)},
    ),
    "experiments.run": Recipe(
        call=experiments.run,
        arguments={
            "flag_values": _flag_values,
            "problem": _problem,
            "build_model": lambda: _build_model,
            "build_stream": lambda: lambda seed: _regression(),
            "num_tasks": _is(1),
            "batch_size": _is(1),
            "epochs": _is(1),
            "task_callbacks": lambda: [training.TaskCallback()],
            "parts": _is(experiments.PARTS),
        },
        never={
            "build_model": _RAISES_WHEN_CALLED,
            "build_stream": _RAISES_WHEN_CALLED,
        },
        words={"build_model": ("model",), "build_stream": ("stream",)},
        raises=(SystemExit,),
        weight=0.3,
    ),
    "experiments.tasks_per_bin": Recipe(
        call=experiments.tasks_per_bin,
        arguments={"published": _is(50), "num_tasks": _is(20)},
    ),
}

_HOOK = "called by the library, in steps that are traced; subclasses override"
_CALLED = "called by the library, or by subclasses that override another"
_MADE = "made by the library, not by people"

NOT_FUZZED = {
    "callbacks.BoundaryCallback.acts_on": _CALLED,
    "callbacks.BoundaryCallback.layers_named": _CALLED,
    "callbacks.BoundaryCallback.on_boundary": _CALLED,
    "optimizers.HiddenUnits": _MADE,
    "optimizers.HiddenUnits.begin_step": _HOOK,
    "optimizers.HiddenUnits.mean_over_consumers": _HOOK,
    "optimizers.HiddenUnits.replace": _HOOK,
    "optimizers.HiddenUnits.reset_partially": _HOOK,
    "optimizers.HiddenUnits.take_in_gradients": _HOOK,
    "optimizers.OptimizerWrapper.apply_inner": _HOOK,
    "optimizers.OptimizerWrapper.apply_inner_and_tell": _HOOK,
    "optimizers.OptimizerWrapper.build_inner": _HOOK,
    "optimizers.UnitResetOptimizer.step_size": _HOOK,
    "optimizers.OptimizerWrapper.make_step": _HOOK,
    "optimizers.OptimizerWrapper.settings": _HOOK,
    "optimizers.Outgoing": _MADE,
    "optimizers.UnitResetOptimizer.add_state": _HOOK,
    "optimizers.UnitResetOptimizer.add_units": _HOOK,
    "optimizers.UnitResetOptimizer.before_replacement": _HOOK,
    "optimizers.UnitResetOptimizer.choose": _HOOK,
    "optimizers.UnitResetOptimizer.mark": _HOOK,
    "optimizers.UnitResetOptimizer.most_due": _HOOK,
    "optimizers.UnitResetOptimizer.num_due": _HOOK,
    "optimizers.UnitResetOptimizer.replace_due": _HOOK,
    "optimizers.UnitResetOptimizer.update_statistics": _HOOK,
    "optimizers.WeightOptimizer.acts_on": _HOOK,
    "optimizers.WeightOptimizer.add_state": _HOOK,
    "optimizers.WeightOptimizer.after_update": _HOOK,
    "optimizers.WeightOptimizer.before_update": _HOOK,
    "optimizers.WeightOptimizer.change_gradients": _HOOK,
    "optimizers.WeightOptimizer.choose": _HOOK,
    "streams.Stream": "a protocol",
    "streams.Stream.task": "a protocol",
    "training.AppendOnly": "a list",
    "training.CheckpointError": "an exception",
    "training.TaskCallback": "takes no argument",
    "training.TaskCallback.on_progress": _HOOK,
    "training.TaskCallback.on_task_begin": _HOOK,
    "training.TaskCallback.on_task_end": _HOOK,
    "training.TaskCallback.on_task_epoch_end": _HOOK,
    "training.TaskCallback.on_train_end": _HOOK,
    "training.TaskCallback.set_state": _HOOK,
}
