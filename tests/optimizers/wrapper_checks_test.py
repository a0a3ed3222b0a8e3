"""One table of optimizer wrappers, and one list of checks for all of them.

A new wrapper needs one row in `ROWS`, and has every check.
"""

import functools
import itertools
import json
import types
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import keras_compat
from keras_plasticity.optimizers import CCBP
from keras_plasticity.optimizers import CPR
from keras_plasticity.optimizers import L2
from keras_plasticity.optimizers import TRAC
from keras_plasticity.optimizers import UPGD
from keras_plasticity.optimizers import ChurnRegularization
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import DecoupledOrthogonality
from keras_plasticity.optimizers import EffectiveRank
from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.optimizers import L2Init
from keras_plasticity.optimizers import NormalizeAndProject
from keras_plasticity.optimizers import OptimizerWrapper
from keras_plasticity.optimizers import ParsevalRegularization
from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import ReGraMa
from keras_plasticity.optimizers import SelectiveWeightReinitialization
from keras_plasticity.optimizers import SelfNormalizedResets
from keras_plasticity.optimizers import ShrinkAndPerturb
from keras_plasticity.optimizers import ShrinkAndPerturbByInitializer
from keras_plasticity.optimizers import SpectralRegularization
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.optimizers import UnitUPGD
from keras_plasticity.optimizers import WeightClipping
from keras_plasticity.optimizers import WeightOptimizer
from keras_plasticity.optimizers.partial_reset_optimizer import (
    PartialResetOptimizer,
)
from keras_plasticity.optimizers.settings import all_hyperparameters
from keras_plasticity.training import OnlineTrainer
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.helpers import docstring_example
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import parameters
from tests.helpers import to_numpy
from tests.helpers import weights_of

_BACKEND = keras.backend.backend()
# Of all that is drawn.
_SEED = 3


class Row(NamedTuple):
    """A wrapper, and the settings that it is checked with.

    Attributes:
        name: String.
        kind: The class.
        visible: Dict, settings under which it does something in each of the
            first few updates; if it resets units, in the first four.
        nothing: Dict, settings under which it is the inner optimizer; `None`
            if there are none.
        config: Dict, a value other than the default for every setting.
        needs_plastic: Boolean, whether the model has to have plastic layers.
        num_recent: Integer, how many examples it has to remember.
        is_slow: Boolean, whether it takes more than the few updates made here
            to learn much, or what it does was done too recently.
        inside: `Row` of a wrapper between this one and the inner optimizer.
    """

    name: str
    kind: type
    visible: dict
    nothing: dict | None
    config: dict
    needs_plastic: bool = False
    num_recent: int = 0
    is_slow: bool = False
    inside: "Row | None" = None

    def make(self, inner, **settings):
        if self.inside is not None:
            inner = self.inside.make(inner)
        return self.kind(inner, **{**self.visible, **settings})

    def make_nothing(self, inner):
        if self.inside is not None:
            inner = self.inside.make_nothing(inner)
        return self.kind(inner, **self.nothing)

    @property
    def resets_units(self):
        return issubclass(self.kind, UnitResetOptimizer)

    @property
    def replaces_units(self):
        is_partial = issubclass(self.kind, PartialResetOptimizer)
        return self.resets_units and not is_partial

    @property
    def has_seed(self):
        return "seed" in self.config


_L2 = Row("L2", L2, {"l2": 0.1}, {"l2": 0}, {"l2": 0.5})
_SHRINK_AND_PERTURB = Row(
    "ShrinkAndPerturb",
    ShrinkAndPerturb,
    {"l2": 0.1, "noise_stddev": 0.01, "noise_refresh_steps": 3, "seed": _SEED},
    {"l2": 0, "noise_stddev": 0},
    {"l2": 0.5, "noise_stddev": 0.25, "noise_refresh_steps": 7, "seed": 9},
)
_CONTINUAL_BACKPROP = Row(
    "ContinualBackprop",
    ContinualBackprop,
    {"replacement_rate": 0.1, "maturity_threshold": 1, "seed": _SEED},
    {"replacement_rate": 0},
    {
        "replacement_rate": 0.25,
        "maturity_threshold": 7,
        "decay_rate": 0.5,
        "utility": "overall",
        "transfer_mean": True,
        "reset_optimizer_state": False,
        "seed": 9,
    },
    needs_plastic=True,
)
_UPGD = Row(
    "UPGD",
    UPGD,
    {"decay": 0.1, "noise_stddev": 0.1, "noise_refresh_steps": 3}
    | {"seed": _SEED},
    {"protecting": False, "decay": 0, "noise_stddev": 0},
    {
        "scope": "local",
        "protecting": False,
        "utility_decay": 0.5,
        "decay": 0.5,
        "noise_stddev": 0.25,
        "noise_refresh_steps": 7,
        "seed": 9,
        "exclude": ["bias"],
    },
    is_slow=True,
)
_REINITIALIZATION = Row(
    "SelectiveWeightReinitialization",
    SelectiveWeightReinitialization,
    {"factor": 0.01, "period": 2, "seed": _SEED},
    {"period": 10**6},
    {
        "utility": "magnitude",
        "rule": "proportional",
        "replacement": "mean",
        "initializer": "he_uniform",
        "factor": 0.5,
        "period": 7,
        "decay_rate": 0.5,
        "seed": 9,
        "exclude": ["bias"],
    },
    is_slow=True,
)
ROWS = [
    _L2,
    _SHRINK_AND_PERTURB,
    # Without a table of noise.
    _SHRINK_AND_PERTURB._replace(
        name="ShrinkAndPerturb_1",
        visible={**_SHRINK_AND_PERTURB.visible, "noise_refresh_steps": 1},
    ),
    Row(
        "ShrinkAndPerturbByInitializer",
        ShrinkAndPerturbByInitializer,
        {"noise_refresh_steps": 3, "seed": _SEED},
        {"shrink": 1, "perturb": 0},
        {
            "shrink": 0.5,
            "perturb": 0.25,
            "initializer": "he_normal",
            "perturb_biases": True,
            "noise_refresh_steps": 7,
            "seed": 9,
            "period": 3,
        },
    ),
    _CONTINUAL_BACKPROP,
    Row(
        "ReDo",
        ReDo,
        {"threshold": 0.3, "period": 2, "score_updates": 2, "seed": _SEED},
        {"threshold": 1e9, "period": 10**6},
        {
            "threshold": 0.5,
            "period": 7,
            "score_updates": 3,
            "reset_optimizer_state": False,
            "seed": 9,
            "outgoing": "random",
            "new_weights": "initial",
            "shared_weights": "incoming",
            "reset_bias_slots": True,
        },
        needs_plastic=True,
    ),
    Row(
        "SelfNormalizedResets",
        SelfNormalizedResets,
        {
            "min_threshold": 8,
            "initial_threshold": 16,
            "max_threshold": 32,
            "threshold_period": 3,
            "seed": _SEED,
        },
        {"min_threshold": 10**6, "max_threshold": 10**6}
        | {"initial_threshold": 10**6},
        {
            "quantile": 0.5,
            "min_threshold": 7,
            "max_threshold": 70,
            "initial_threshold": 17,
            "threshold_period": 5,
            "reset_optimizer_state": False,
            "seed": 9,
        },
        needs_plastic=True,
    ),
    _CONTINUAL_BACKPROP._replace(name="ContinualBackprop_L2", inside=_L2),
    # Penalties and projections.
    Row(
        "ChurnRegularization",
        ChurnRegularization,
        {"coefficient": 0.3},
        {"coefficient": 0},
        {"coefficient": 0.5, "distance": "cross_entropy"},
        num_recent=16,
    ),
    Row(
        "EffectiveRank",
        EffectiveRank,
        {"rank_learning_rate": 0.1, "period": 1},
        {"rank_learning_rate": 0},
        {
            "rank_learning_rate": 0.5,
            "period": 7,
            "steps": 2,
            "layers": ["layer_0"],
        },
        num_recent=16,
    ),
    Row(
        "L2Init",
        L2Init,
        {"strength": 0.1},
        {"strength": 0},
        {
            "strength": 0.5,
            "distance": "huber",
            "exclude": ["bias"],
            "target_initializer": "he_normal",
            "draw_biases": True,
            "seed": 9,
        },
    ),
    Row(
        "ParsevalRegularization",
        ParsevalRegularization,
        {"strength": 0.01},
        {"strength": 0},
        {"strength": 0.5, "scale": 2.0, "exclude": ["layer_2"]},
    ),
    Row(
        "SpectralRegularization",
        SpectralRegularization,
        {"strength": 0.01},
        {"strength": 0},
        {
            "strength": 0.5,
            "exponent": 3.0,
            "target": 2.0,
            "num_iterations": 4,
            "exclude": ["layer_2"],
        },
    ),
    Row(
        "DecoupledOrthogonality",
        DecoupledOrthogonality,
        {"strength": 0.1},
        {"strength": 0},
        {"strength": 0.5, "step_size": 0.25, "exclude": ["layer_2"]},
    ),
    Row(
        "WeightClipping",
        WeightClipping,
        {"kappa": 1.5},
        {"kappa": 1e9},
        {"kappa": 3.0, "exclude": ["layer_2"], "clip_normalization": True},
    ),
    Row(
        "NormalizeAndProject",
        NormalizeAndProject,
        {"period": 2},
        {"period": 10**6},
        {"period": 7, "exclude": ["layer_2"]},
    ),
    # Noise, clipping and gates of single weights.
    _UPGD,
    # Without a table of noise, compared within a unit, and not protecting.
    _UPGD._replace(
        name="UPGD_local",
        visible={"scope": "local", "protecting": False}
        | {**_UPGD.visible, "noise_refresh_steps": 1},
        is_slow=False,
    ),
    # The same of units.
    _UPGD._replace(name="UnitUPGD", kind=UnitUPGD, needs_plastic=True),
    _UPGD._replace(
        name="UnitUPGD_local",
        kind=UnitUPGD,
        visible={"scope": "local", "protecting": False}
        | {**_UPGD.visible, "noise_refresh_steps": 1},
        needs_plastic=True,
        is_slow=False,
    ),
    _REINITIALIZATION,
    _REINITIALIZATION._replace(
        name="SelectiveWeightReinitialization_proportional",
        visible={"rule": "proportional", "factor": 0.05, "period": 2}
        | {"utility": "magnitude", "decay_rate": 0.5, "seed": _SEED}
        | {"initializer": "glorot_uniform"},
    ),
    # Resets of units, or of parts of them.
    Row(
        "ReGraMa",
        ReGraMa,
        {"threshold": 0.05, "period": 3, "seed": _SEED},
        {"threshold": 1e9, "period": 10**6},
        {
            "threshold": 0.5,
            "period": 7,
            "reset_optimizer_state": False,
            "seed": 9,
            "max_fraction": 0.5,
        },
        needs_plastic=True,
    ),
    Row(
        "CPR",
        CPR,
        {
            "replacement_rate": 0.05,
            "decay_rate": 0.5,
            "period": 1,
            "seed": _SEED,
        },
        {"replacement_rate": 0, "period": 1},
        {
            "replacement_rate": 0.5,
            "sharpness": 4,
            "threshold": 0.75,
            "decay_rate": 0.5,
            "period": 7,
            "transform": "linear",
            "seed": 9,
        },
        needs_plastic=True,
    ),
    Row(
        "CCBP",
        CCBP,
        {
            "replacement_rate": 0.05,
            "decay_rate": 0.5,
            "period": 2,
            "utility": "contribution",
            "seed": _SEED,
        },
        {"replacement_rate": 0, "period": 1},
        {
            "replacement_rate": 0.5,
            "sharpness": 4,
            "decay_rate": 0.5,
            "period": 7,
            "utility": "gradient_norm",
            "seed": 9,
            "continuous": False,
            "maturity_threshold": 5,
            "reset_optimizer_state": True,
        },
        needs_plastic=True,
    ),
    # Other optimizers.
    Row(
        "TRAC",
        TRAC,
        {"betas": [0.9, 0.99], "scale": 0.05},
        None,
        {"betas": [0.5, 0.25], "scale": 0.5, "epsilon": 0.25}
        | {"exclude": ["bias"]},
        is_slow=True,
    ),
    Row(
        "HareAndTortoise",
        HareAndTortoise,
        {"decay_rate": 0.5, "period": 2},
        {"period": 10**6},
        {"decay_rate": 0.5, "period": 7, "exclude": ["bias"]},
    ),
    # Methods of a user's own, as the base classes' docstrings have them.
    Row(
        "PullBack",
        docstring_example(OptimizerWrapper)["PullBack"],
        {"strength": 0.1},
        {"strength": 0.0},
        {"strength": 0.5},
    ),
    Row(
        "DecayKernels",
        docstring_example(WeightOptimizer)["DecayKernels"],
        {"rate": 0.01},
        {"rate": 0.0},
        {"rate": 0.5, "exclude": ["bias"]},
    ),
    Row(
        "ReplaceSilent",
        docstring_example(UnitResetOptimizer)["ReplaceSilent"],
        {"patience": 2, "seed": _SEED},
        {"patience": 10**6},
        {"patience": 5, "reset_optimizer_state": False, "seed": 9},
        needs_plastic=True,
    ),
]
_ROWS = {row.name: row for row in ROWS}
# One of each kind: changes gradients; changes weights; replaces units.
_KINDS = ("L2", "ShrinkAndPerturb", "ContinualBackprop")


def rows(*quick, where=lambda row: True):
    """Parametrizes a check over the table.

    Args:
        *quick: Names of the rows that are not slow. By default all.
        where: Function, which rows the check is for.
    """
    names = [row.name for row in ROWS if where(row)]
    values = [
        _ROWS[name]
        if not quick or name in quick
        else pytest.param(_ROWS[name], marks=pytest.mark.slow)
        for name in names
    ]
    return pytest.mark.parametrize("row", values, ids=names)


def resets(row):
    return row.resets_units


def replaces(row):
    return row.replaces_units


def can_do_nothing(row):
    return row.nothing is not None


pytestmark = pytest.mark.usefixtures("fast_compilation")


_DIMS = (4, 6, 5, 3)
_BATCH = 8
# Steps of a short run and of a long one.
_FEW, _MANY = 4, 12
# A TensorFlow graph takes longer to make than to do without.
_EAGERLY = {"run_eagerly": _BACKEND == "tensorflow"}
# Two programs, which a compiler may round differently.
_ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def _sgd(**kwargs):
    return keras.optimizers.SGD(0.1, momentum=0.5, **kwargs)


def _adam(**kwargs):
    return keras.optimizers.Adam(0.01, **kwargs)


def _data(steps=_MANY):
    """Inputs, and targets that are soon learned: linear functions."""
    x, _ = make_data(steps * _BATCH, _DIMS)
    weights = np.random.default_rng(2).normal(size=(_DIMS[0], _DIMS[-1]))
    return x, (x @ weights).astype("float32")


def _first_layers(row):
    if row is None or not row.num_recent:
        return []
    return [keras_plasticity.layers.RecentInputs(row.num_recent)]


def _layers(model):
    """The layers of a model that compute something."""
    return [
        layer
        for layer in model.layers
        if not isinstance(layer, keras_plasticity.layers.RecentInputs)
    ]


def _make_model(row=None, seed=1, dims=_DIMS, **kwargs):
    """A chain of dense layers, of which a unit each is silent."""
    is_plastic = row is not None and row.needs_plastic
    source = keras_plasticity.layers if is_plastic else keras.layers
    model = make_model(
        dims,
        source.Dense,
        "relu",
        seed,
        _first_layers(row),
        kernel_initializer="he_normal",
        **kwargs,
    )
    for layer in _layers(model)[:-1]:
        bias = to_numpy(layer.bias)
        bias[0] = -4.0
        layer.bias.assign(bias)
    return model


def _fit(model, first, last, batch_size=_BATCH, **kwargs):
    """Trains on the batches from `first` to `last` of the data."""
    part = slice(first * _BATCH, last * _BATCH)
    x, y = (array[part] for array in _data())
    return model.fit(
        x, y, batch_size=batch_size, shuffle=False, verbose=0, **kwargs
    )


def _run(row, optimizer, steps=_FEW, model=None, **kwargs):
    """A trained model."""
    model = _make_model(row) if model is None else model
    model.compile(optimizer, "mse", **{**_EAGERLY, **kwargs})
    _fit(model, 0, steps)
    return model


def _both(outer, inner):
    """A `Row` of models that suit both."""
    return outer._replace(
        needs_plastic=outer.needs_plastic or inner.needs_plastic,
        num_recent=max(outer.num_recent, inner.num_recent),
    )


def _values(model):
    """All weights of a model, what it observed last excepted, by name."""
    return {
        variable.path[variable.path.rindex(f"{layer.name}/") :]: to_numpy(
            variable
        )
        for layer in _layers(model)
        for variable in layer.weights
        if "input_" not in variable.path and "num_ex" not in variable.path
    }


def _assert_equal(actual, expected, **tolerance):
    """Bit for bit, or within `rtol` and `atol`."""
    assert actual.keys() == expected.keys() and actual
    for key, value in expected.items():
        if tolerance:
            np.testing.assert_allclose(
                actual[key], value, err_msg=key, **tolerance
            )
        else:
            np.testing.assert_array_equal(actual[key], value, err_msg=key)


def _differ(actual, expected):
    return any(np.any(actual[key] != expected[key]) for key in expected)


def _resetting(optimizer):
    """The `UnitResetOptimizer` among wrappers."""
    while not isinstance(optimizer, UnitResetOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _num_replaced(row, optimizer):
    if not row.replaces_units:
        return None
    return _resetting(optimizer).num_replaced()


@functools.cache
def _reference(name):
    """The run that others are compared with: compiled, by `fit`.

    Returns:
        Namespace of what `_values` gives after the `first` step, a `short` run
        and a `long` one; numbers of units replaced in these runs, `None` for a
        wrapper that replaces none; how often Python computed the loss in the
        first step, and in all; and the `model`, which has trained once more on
        all data.
    """
    row = _ROWS[name]
    calls = []

    def loss(y, prediction):
        calls.append(None)
        return ops.mean(ops.square(y - prediction), axis=-1)

    model = _make_model(row)
    optimizer = row.make(_sgd())
    model.compile(optimizer, loss)
    result = types.SimpleNamespace(model=model)
    _fit(model, 0, 1)
    result.calls_first = len(calls)
    result.first = _values(model)
    _fit(model, 1, _FEW)
    result.short = _values(model)
    result.short_replaced = _num_replaced(row, optimizer)
    _fit(model, _FEW, _MANY)
    result.long = _values(model)
    result.long_replaced = _num_replaced(row, optimizer)
    _fit(model, 0, _MANY)
    result.calls = len(calls)
    return result


@functools.cache
def _plain_run(name, steps=_FEW):
    """What `_values` gives after a run of an inner optimizer alone."""
    return _values(_run(None, _INNER[name](), steps))


def _weights_in(values):
    return {k: v for k, v in values.items() if "statistics" not in k}


# What a wrapper does, seen on one compiled run of each.


@rows()
def test_does_something(row):
    reference = _reference(row.name)
    assert _differ(reference.short, _plain_run("momentum"))
    if row.replaces_units:
        assert set(reference.short_replaced) == {"layer_0", "layer_1"}
        assert all(reference.short_replaced.values())


@rows(where=lambda row: not row.is_slow)
def test_converges(row):
    reference = _reference(row.name)
    x, y = _data()
    start = _make_model(row)
    losses = [
        np.mean((to_numpy(model(x)) - y) ** 2)
        for model in (start, reference.model)
    ]
    assert losses[1] < 0.5 * losses[0]


@rows()
def test_compiles_once(row):
    if _BACKEND == "torch":
        pytest.skip("PyTorch compiles nothing.")
    reference = _reference(row.name)
    assert reference.calls == reference.calls_first


@rows(*_KINDS)
def test_hyperparameters_are_held_in_variables(row, monkeypatch):
    """So learners that differ in them train by one program without a check."""
    if _BACKEND != "jax":
        pytest.skip("Others have no common program.")
    from keras_plasticity.training import program_settings
    from keras_plasticity.training.jax_programs import Programs

    def make(settings):
        model = _make_model(row)
        model.compile(row.make(_sgd(), **settings), "mse")
        keras_compat.build_for_training(model, *batch)
        return model

    batch = tuple(array[:_BATCH] for array in _data())
    other = {
        name: row.config[name]
        for name in all_hyperparameters(row.kind)
        if name in row.config
    }
    first, second = make({}), make(other)
    assert program_settings.surely_same_program(
        *map(program_settings.settings_of, (first, second))
    )
    # To compare their programs.
    monkeypatch.setattr(
        program_settings, "surely_same_program", lambda *_: False
    )
    programs = Programs(batch)
    assert programs.add(first) == programs.add(second) == 0


@rows()
def test_iterations_are_those_of_the_inner_optimizer(row):
    optimizer = _reference(row.name).model.optimizer
    assert int(optimizer.iterations) == 2 * _MANY
    assert int(optimizer.inner_optimizer.iterations) == 2 * _MANY


@rows()
def test_learning_rate_is_that_of_the_inner_optimizer(row):
    inner = keras.optimizers.SGD(0.5)
    optimizer = row.make(inner)
    optimizer.learning_rate = 0.25
    np.testing.assert_allclose(inner.learning_rate, 0.25)
    np.testing.assert_allclose(optimizer.learning_rate, 0.25)


@rows()
def test_state_is_in_variables(row):
    # Whatever is not there is neither saved nor carried by a JAX step.
    model = _make_model(row)
    optimizer = row.make(_adam())
    optimizer.build(model.trainable_variables)
    ids = [id(v) for v in optimizer.variables]
    assert len(set(ids)) == len(ids)
    for variable in optimizer.inner_optimizer.variables:
        assert id(variable) in ids
    if row.has_seed and row.kind is not L2Init:  # Which draws nothing here.
        assert id(optimizer._seed_generator.state) in ids
    # The model's own are not the optimizer's. (On PyTorch, `variables` are
    # what a `state_dict` holds.)
    own = model.weights if _BACKEND == "torch" else model.variables
    assert not set(ids) & {id(v) for v in own}


# The inner optimizer.

_INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": _sgd,
    "adam": _adam,
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9),
    "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=0.01),
    "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=0.02),
    # Would be smaller if statistics were among the gradients.
    "global_clipnorm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.05),
    "ema": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "ema_overwriting": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
    "accumulating": lambda: _sgd(gradient_accumulation_steps=2),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(
        _sgd(), initial_scale=8.0
    ),
}
_QUICK_PAIRS = {
    ("L2", "adam"),
    ("ShrinkAndPerturb", "accumulating"),
    ("ShrinkAndPerturbByInitializer", "loss_scale"),
    ("ContinualBackprop", "global_clipnorm"),
    ("ContinualBackprop", "ema_overwriting"),
    ("ContinualBackprop", "schedule"),
    ("ContinualBackprop", "loss_scale"),
    ("ReDo", "momentum"),
}


@pytest.mark.parametrize(
    "name, inner",
    [
        (row.name, inner)
        if (row.name, inner) in _QUICK_PAIRS
        else pytest.param(row.name, inner, marks=pytest.mark.slow)
        for row in ROWS
        for inner in _INNER
        if row.nothing is not None
    ],
)
def test_strength_0_is_the_inner_optimizer(name, inner):
    row = _ROWS[name]
    model = _make_model(row)
    start = _values(model)
    optimizer = row.make_nothing(_INNER[inner]())
    _run(row, optimizer, model=model)
    weights = _weights_in(_values(model))
    _assert_equal(weights, _plain_run(inner))
    assert _differ(weights, _weights_in(start))
    if row.replaces_units:
        # Units have ages all the same.
        updates = 2 if inner == "accumulating" else 4
        np.testing.assert_array_equal(_layers(model)[0].age, updates)
        assert not any(optimizer.num_replaced().values())


@rows(
    "ShrinkAndPerturb",
    "ContinualBackprop",
    # In the second half of a batch, the first one is among recent examples.
    where=lambda row: row.kind is not ChurnRegularization,
)
def test_accumulated_steps_equal_the_joined_batch(row):
    optimizer = row.make(_sgd(gradient_accumulation_steps=2))
    model = _make_model(row)
    model.compile(optimizer, "mse")
    x, y = _data()
    half = _BATCH // 2
    before = _weights_in(_values(model))
    model.train_on_batch(x[:half], y[:half])
    _assert_equal(_weights_in(_values(model)), before)
    for i in range(1, 2 * _FEW):
        part = slice(i * half, (i + 1) * half)
        model.train_on_batch(x[part], y[part])
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    _assert_equal(_values(model), reference.short, **_ROUNDING)


@pytest.mark.parametrize("place", ["inside", "outside"])
@rows("L2", "ContinualBackprop")
def test_loss_scale_and_skipped_steps(row, place):
    # Powers of two: the scaled run is the same but for roundings.
    def scale(optimizer):
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)

    if place == "inside":
        optimizer = row.make(scale(_sgd()))
    else:
        optimizer = scale(row.make(_sgd()))
    model = _make_model(row)
    model.compile(optimizer, "mse")
    x, y = _data()
    for i in range(_FEW):
        part = slice(i * _BATCH, (i + 1) * _BATCH)
        if i == 2:
            before = _values(model)
            # Too large a target: the gradient overflows, nothing else does.
            model.train_on_batch(x[part], np.full_like(y[part], 1e38))
            _assert_equal(_values(model), before)
        model.train_on_batch(x[part], y[part])
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    _assert_equal(_values(model), reference.short, **_ROUNDING)


@rows("L2")
def test_loss_scale_factor(row):
    optimizer = row.make(_sgd(loss_scale_factor=8.0))
    model = _run(row, optimizer)
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    _assert_equal(_values(model), reference.short, **_ROUNDING)


@rows("ContinualBackprop")
def test_moving_average_takes_the_place_of_the_weights(row):
    inner = _sgd(use_ema=True, ema_momentum=0.5)
    model = _run(row, row.make(inner))
    weights = weights_of(model)
    for key, value in weights.items():
        # As Keras names the variable that belongs to a weight.
        (average,) = [
            variable
            for variable in inner.variables
            if variable.path.endswith(f"{key.replace('/', '_')}_average")
        ]
        np.testing.assert_array_equal(value, to_numpy(average), err_msg=key)
        assert np.any(value != _reference(row.name).short[key])


@rows("ContinualBackprop", where=lambda row: row.inside is None)
def test_swap_ema_weights_callback(row):
    # The callback asks the optimizer for `inner_optimizer` by name.
    optimizer = row.make(_sgd(use_ema=True, ema_momentum=0.5))
    model = _make_model(row)
    model.compile(optimizer, "mse", **_EAGERLY)
    _fit(
        model,
        0,
        2,
        epochs=2,
        validation_data=_data(1),
        callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
    )
    for values in weights_of(model).values():
        assert np.all(np.isfinite(values))


# What is read, set and called on the wrapper.

_SETTINGS = {
    "weight_decay": 0.25,
    "clipnorm": 0.5,
    "global_clipnorm": 0.5,
    "clipvalue": 0.5,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 8.0,
    "gradient_accumulation_steps": 2,
}
# Where a wrapper stands: functions of a row and of the innermost optimizer
# that return the wrapper whose attributes are set, and the whole.
_PLACES = {
    "alone": lambda make, inner: [make(inner)] * 2,
    "wrapped": lambda make, inner: [L2(make(inner), 0.0)] * 2,
    "around": lambda make, inner: [make(L2(inner, 0.0))] * 2,
    "around_loss_scale": lambda make, inner: (
        [make(keras.optimizers.LossScaleOptimizer(inner))] * 2
    ),
    "in_loss_scale": lambda make, inner: (
        lambda wrapper: [wrapper, keras.optimizers.LossScaleOptimizer(wrapper)]
    )(make(inner)),
}
_places = pytest.mark.parametrize("place", _PLACES)


@_places
@rows(*_KINDS)
def test_settings_are_those_of_the_inner_optimizer(row, place):
    inner = _sgd()
    wrapper, _ = _PLACES[place](row.make, inner)
    expected = {name: getattr(inner, name) for name in _SETTINGS}
    for name, value in _SETTINGS.items():
        if name == "loss_scale_factor" and place == "around_loss_scale":
            continue
        setattr(wrapper, name, value)
        expected[name] = value
        for optimizer in (inner, wrapper):
            assert expected == {n: getattr(optimizer, n) for n in _SETTINGS}


@rows("L2")
def test_loss_is_scaled_once(row):
    optimizer = row.make(keras.optimizers.LossScaleOptimizer(_sgd()))
    optimizer.loss_scale_factor = None
    with pytest.raises(
        ValueError,
        match="`loss_scale_factor` must be `None` where a `LossScaleOptimizer` "
        "scales the loss. Received: loss_scale_factor=8.0",
    ):
        optimizer.loss_scale_factor = 8.0


@pytest.mark.parametrize(
    "run, settings",
    [
        ("clipvalue", {"clipvalue": 0.01}),
        ("ema_overwriting", {"use_ema": True, "ema_overwrite_frequency": 3}),
    ],
)
@rows("ContinualBackprop", where=can_do_nothing)
def test_settings_set_on_the_wrapper_act(row, run, settings):
    optimizer = row.make_nothing(keras.optimizers.SGD(0.1, ema_momentum=0.5))
    for name, value in settings.items():
        setattr(optimizer, name, value)
    model = _run(row, optimizer)
    _assert_equal(_weights_in(_values(model)), _plain_run(run))
    # The wrapper made no averages and accumulators of its own.
    twin, other = row.make_nothing(_INNER[run]()), _make_model(row)
    twin.build(other.trainable_variables)
    assert len(optimizer.variables) == len(twin.variables)


@rows("ContinualBackprop")
def test_settings_that_need_variables(row):
    optimizer, model = row.make(_sgd()), _make_model(row)
    optimizer.build(model.trainable_variables)
    for name in ("use_ema", "gradient_accumulation_steps"):
        with pytest.raises(ValueError, match=f"`{name}` needs .* set before"):
            setattr(optimizer, name, _SETTINGS[name])
        setattr(optimizer, name, None)


@_places
@pytest.mark.parametrize("by", ["var_names", "var_list"])
@rows(*_KINDS, where=can_do_nothing)
def test_exclude_from_weight_decay(row, by, place):
    model = _make_model(row)
    excluded = {"layer_0/bias", "layer_1/bias", "layer_2/bias"}
    argument = {"var_names": ["bias"]}
    if by == "var_list":
        excluded = {"layer_0/kernel", "layer_1/bias"}
        argument = {
            "var_list": [_layers(model)[0].kernel, _layers(model)[1].bias]
        }
    wrapper, whole = _PLACES[place](
        row.make_nothing, keras.optimizers.SGD(0.1, weight_decay=0.5)
    )
    wrapper.exclude_from_weight_decay(**argument)
    start = weights_of(model)
    # No gradients: all that is left is the decay.
    model.compile(whole, lambda y, prediction: 0.0 * prediction, **_EAGERLY)
    _fit(model, 0, 1)
    for key, value in weights_of(model).items():
        expected = start[key] * (1.0 if key in excluded else 0.95)
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=key)


@rows()
def test_argument_of_another_optimizer(row):
    inner = _sgd()
    optimizer = row.make(inner)
    kind = row.kind.__name__
    with pytest.raises(
        AttributeError,
        match="`momentum` is an argument of the `SGD` inside this "
        f"`{kind}`. Set it there, .* Received: momentum=0.9",
    ):
        optimizer.momentum = 0.9
    assert inner.momentum == 0.5
    outer = OptimizerWrapper(keras.optimizers.LossScaleOptimizer(optimizer))
    for name in row.config:
        with pytest.raises(
            AttributeError,
            match=f"`{name}` is an argument of the `{kind}` inside this "
            "`OptimizerWrapper`",
        ):
            setattr(outer, name, 0)
    # What is no argument of any is the user's own.
    optimizer.note = "mine"
    assert optimizer.note == "mine"


@rows("ContinualBackprop")
def test_set_weights(row):
    optimizer, model = row.make(L2(_adam(use_ema=True))), _make_model(row)
    optimizer.build(model.trainable_variables)
    values = [
        np.full(v.shape, i % 7, v.dtype)
        for i, v in enumerate(optimizer.variables)
    ]
    optimizer.set_weights(values)
    for variable, value in zip(optimizer.variables, values):
        np.testing.assert_array_equal(to_numpy(variable), value)
    for wrong in (values[1:], [*values[:-1], np.zeros((9, 9))]):
        with pytest.raises(ValueError, match="one array for each of the"):
            optimizer.set_weights(wrong)


@rows(*_KINDS)
def test_steps_by_hand(row):
    model = _make_model(row)
    variables = model.trainable_variables
    optimizer = row.make(_sgd())
    grads = [ops.zeros(v.shape, v.dtype) for v in variables]
    for step in (1, 2):
        steps = optimizer.apply_gradients(zip(grads, variables))
        assert int(steps) == step
    with pytest.raises(NotImplementedError, match="Call `apply`"):
        optimizer.update_step(grads[0], variables[0], 0.1)


@rows("L2")
def test_several_inner_optimizers(row):
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("This Keras has no `MultiOptimizer`.")
    inner = _sgd()
    optimizer = row.make(
        keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner))
    )
    assert optimizer.optimizers == [inner]
    optimizer.loss_scale_factor = 4.0
    assert inner.loss_scale_factor == 4.0
    message = "have settings of their own. Change those of each of"
    with pytest.raises(AttributeError, match=message):
        optimizer.weight_decay = 0.1
    with pytest.raises(AttributeError, match=message):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert not hasattr(row.make(inner), "optimizers")


# Frozen layers, and variables without gradient.


@pytest.mark.parametrize("frozen", mostly_slow([0, 1, 2, 3], 1))
@rows("ContinualBackprop")
def test_frozen_layer_is_never_changed(row, frozen):
    model = _make_model(row, dims=(4, 6, 5, 5, 3))
    _layers(model)[frozen].trainable = False
    start = weights_of(model)
    optimizer = row.make(_sgd())
    # It looks at hidden layers, or at the outputs.
    last = {EffectiveRank: 2, ChurnRegularization: 3}.get(row.kind, -1)
    if frozen <= last:
        with pytest.raises(ValueError, match="freeze no layer"):
            _run(row, optimizer, model=model)
        return
    _run(row, optimizer, model=model)
    end = weights_of(model)
    for key in start:
        same = np.array_equal(start[key], end[key])
        assert same == key.startswith(f"layer_{frozen}/"), key
    if row.replaces_units:
        # Nor are units replaced that it reads: they would lose weights of it.
        expected = {"layer_0", "layer_1", "layer_2"}
        expected -= {f"layer_{frozen}", f"layer_{frozen - 1}"}
        replaced = _num_replaced(row, optimizer)
        assert set(replaced) == expected and all(replaced.values())


def _two_branches(row):
    """Two networks that have nothing but their inputs in common."""
    source = keras_plasticity.layers if row.needs_plastic else keras.layers
    inputs = x = keras.Input((4,))
    for layer in _first_layers(row):
        x = layer(x)
    outputs = []
    for name in "ab":
        hidden = source.Dense(5, activation="relu", name=f"{name}_0")(x)
        outputs.append(source.Dense(1, name=f"{name}_1")(hidden))
    return keras.Model(inputs, outputs)


@rows("ShrinkAndPerturb", "ContinualBackprop")
def test_variable_without_gradient_is_left_alone(row):
    model = _two_branches(row)
    variables = model.trainable_variables
    optimizer = row.make(_sgd())
    optimizer.build(variables)
    # The loss of a step may not reach one branch of the model. Backends other
    # than JAX give `None` for it; there a user may.
    grads = [
        ops.ones(v.shape, v.dtype) if "a_" in v.path else None
        for v in variables
    ]
    start = [to_numpy(v) for v in variables]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(grads, variables)
    for gradient, variable, before in zip(grads, variables, start):
        same = np.array_equal(to_numpy(variable), before)
        if gradient is None:
            assert same, variable.path
        elif not OptimizerWrapper.is_statistic(variable):
            assert not same, variable.path


# Numbers.


@pytest.mark.parametrize(
    "policy",
    mostly_slow(
        ["mixed_bfloat16", "bfloat16", "mixed_float16", "float16", "float64"],
        "bfloat16",
    ),
)
# TensorFlow is the one that refuses to compute with two dtypes.
@rows(*(() if _BACKEND == "tensorflow" else _KINDS[1:]))
def test_dtypes_are_kept(row, policy):
    if policy == "float64" and _BACKEND == "jax":
        pytest.skip("JAX has no float64 by default.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        optimizer = row.make(_sgd())
        model = _run(row, optimizer, steps=1)
        first = weights_of(model)
        _fit(model, 1, _FEW)
    finally:
        keras.config.set_dtype_policy(before)
    expected = keras.DTypePolicy(policy).variable_dtype
    weights = [v for v in model.weights if not OptimizerWrapper.is_statistic(v)]
    assert {v.dtype for v in weights} == {expected}
    for variable in weights:
        value = to_numpy(variable).astype("float64")
        assert np.all(np.isfinite(value)), variable.path
        assert np.any(value), variable.path
    statistics = [v for v in model.weights if OptimizerWrapper.is_statistic(v)]
    assert {v.dtype for v in statistics} <= {"float32"}
    if row.replaces_units:
        optimizer = _resetting(optimizer)
        for units in optimizer._network.hidden:
            for variable in units.variables:
                assert variable.dtype in ("float32", "int32"), variable.path
        # What is due is a matter of counting, whatever the precision.
        assert sum(optimizer.num_replaced().values()) > 0
        return
    # Roundings to 8 binary digits. In later steps, they may switch a unit on or
    # off for one example, which then makes a run of its own.
    reference = _reference(row.name).first
    for key, value in first.items():
        np.testing.assert_allclose(
            value.astype("float32"),
            reference[key],
            rtol=0.01,
            atol=0.005,
            err_msg=key,
        )


@rows("ContinualBackprop", where=lambda row: row.has_seed)
def test_same_seed_same_run(row):
    models = [_run(row, row.make(_sgd())) for _ in range(2)]
    _assert_equal(*map(_values, models))


@rows(
    *_KINDS,
    # Of which the row draws nothing.
    where=lambda row: row.has_seed and row.kind is not L2Init,
)
def test_other_seed_other_run(row):
    model = _run(row, row.make(_sgd(), seed=2))
    reference = _reference(row.name).short
    assert _differ(_weights_in(_values(model)), reference)


# Loops.


@rows("ContinualBackprop", *(["PullBack"] if _BACKEND == "tensorflow" else []))
def test_run_eagerly(row):
    if _BACKEND == "torch":
        pytest.skip("PyTorch compiles nothing.")
    optimizer = row.make(_sgd())
    model = _run(row, optimizer, run_eagerly=True)
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    _assert_equal(_values(model), reference.short, **_ROUNDING)


@pytest.mark.parametrize(
    "method",
    ["stateless_apply"] if _BACKEND == "jax" else ["apply", "apply_gradients"],
)
@rows("ShrinkAndPerturb", "ContinualBackprop")
def test_loops_by_hand(row, method):
    # On JAX, `apply` is what `test_run_eagerly` runs.
    model = _make_model(row)
    variables = model.trainable_variables
    optimizer = row.make(_sgd())
    loss = keras.losses.MeanSquaredError()

    def step(x, y):
        _, grads = loss_and_gradients(model, loss, x, y)
        if method == "apply":
            optimizer.apply(grads, variables)
        else:
            optimizer.apply_gradients(zip(grads, variables))

    if method == "stateless_apply":
        step = compiled_step(model, optimizer, loss)
    x, y = _data()
    for i in range(_FEW):
        part = slice(i * _BATCH, (i + 1) * _BATCH)
        step(x[part], y[part])
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    _assert_equal(_values(model), reference.short, **_ROUNDING)


class _Stream:
    """The data, as three tasks."""

    def __len__(self):
        return 3

    def task(self, index):
        steps = _MANY // 3
        part = slice(index * steps * _BATCH, (index + 1) * steps * _BATCH)
        return tuple(array[part] for array in _data())


def _compiled(row, inner="momentum", learner=0):
    model = _make_model(row, 1 + learner)
    settings = {"seed": _SEED + learner} if row.has_seed else {}
    model.compile(row.make(_INNER[inner](), **settings), "mse", **_EAGERLY)
    return model


@rows("ShrinkAndPerturb")
def test_engine_equals_fit(row):
    model = _compiled(row)
    OnlineTrainer(model).fit(_Stream(), batch_size=_BATCH)
    reference = _reference(row.name)
    assert _num_replaced(row, model.optimizer) == reference.long_replaced
    _assert_equal(_values(model), reference.long, **_ROUNDING)


# On JAX, small models train side by side, larger ones on a CPU one by one.
@pytest.mark.parametrize(
    "most", mostly_slow([3000, 0], 3000) if _BACKEND == "jax" else [None]
)
@pytest.mark.parametrize(
    "inner", mostly_slow(["momentum", "accumulating"], "accumulating")
)
@rows("ShrinkAndPerturb", "ContinualBackprop")
def test_learners_side_by_side_equal_each_alone(row, inner, most, monkeypatch):
    if _BACKEND == "jax":
        from keras_plasticity.training import jax_loop

        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", most)
    trainer = OnlineTrainer(lambda i: _compiled(row, inner, i), 2)
    trainer.fit(lambda i: _Stream(), batch_size=_BATCH)
    for learner in range(2):
        model = trainer.model(learner)
        alone = _compiled(row, inner, learner)
        _fit(alone, 0, _MANY)
        replaced = _num_replaced(row, alone.optimizer)
        assert _num_replaced(row, model.optimizer) == replaced
        _assert_equal(_values(model), _values(alone), **_ROUNDING)


# What is kept.


@pytest.mark.parametrize("kind", mostly_slow(["model", "weights"], "model"))
@pytest.mark.parametrize(
    "inner", mostly_slow(["momentum", "accumulating", "loss_scale"], "momentum")
)
@rows("ShrinkAndPerturb", "ContinualBackprop")
def test_going_on_is_never_having_stopped(row, inner, kind, tmp_path):
    # In the middle of a table of noise, and of an accumulated step.
    middle, steps = 5, _FEW + 5
    optimizer = row.make(_INNER[inner]())
    model = _run(row, optimizer, middle)
    if kind == "model":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    else:
        # Of a run that had come further, in the same program.
        loaded = _make_model(row, seed=2)
        _run(row, row.make(_INNER[inner]()), 2, loaded)
        model.save_weights(tmp_path / "all.weights.h5")
        loaded.load_weights(tmp_path / "all.weights.h5")
    _assert_equal(_values(loaded), _values(model))
    done = _num_replaced(row, optimizer)
    assert _num_replaced(row, loaded.optimizer) == done
    for each in (model, loaded):
        _fit(each, middle, steps)
    _assert_equal(_values(loaded), _values(model))
    total = _num_replaced(row, optimizer)
    assert _num_replaced(row, loaded.optimizer) == total
    assert int(loaded.optimizer.iterations) == int(optimizer.iterations)


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="TensorFlow's own.")
@pytest.mark.parametrize(
    "inner, into",
    [
        ("accumulating", "not_built"),
        pytest.param("adam", "itself", marks=pytest.mark.slow),
        pytest.param("loss_scale", "built", marks=pytest.mark.slow),
    ],
)
@rows("ShrinkAndPerturb", "ContinualBackprop", "ReplaceSilent")
def test_tensorflow_checkpoint(row, inner, into, tmp_path):
    import tensorflow as tf

    # In the middle of a table of noise, and of an accumulated step.
    middle, steps = 5, _FEW + 5

    def make(seed):
        model = _make_model(row, seed=seed)
        optimizer = row.make(
            _ROWS["ShrinkAndPerturb"].make(_INNER[inner](), seed=seed),
            **({"seed": seed} if row.has_seed else {}),
        )
        model.compile(optimizer, "mse", **_EAGERLY)
        return model, optimizer, tf.train.Checkpoint(m=model, o=optimizer)

    model, optimizer, checkpoint = make(1)
    _fit(model, 0, middle)
    path = checkpoint.save(tmp_path / "checkpoint")
    _fit(model, middle, steps)
    expected = _values(model)
    replaced = _num_replaced(row, optimizer)
    state = [to_numpy(v) for v in optimizer.variables]
    if into != "itself":
        model, optimizer, checkpoint = make(2)
    if into == "built":
        optimizer.build(model.trainable_variables)
    status = checkpoint.restore(path)
    _fit(model, middle, steps)
    status.assert_consumed()
    _assert_equal(_values(model), expected)
    assert _num_replaced(row, optimizer) == replaced
    for variable, value in zip(optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


@pytest.mark.skipif(_BACKEND != "torch", reason="PyTorch's own.")
@rows("ContinualBackprop", where=resets)
def test_torch_state_dict(row):
    model = _make_model(row)
    before = model.state_dict()
    _run(row, row.make(_sgd()), model=model)
    state = model.state_dict()
    assert state.keys() == before.keys()
    state = {key: value.clone() for key, value in state.items()}
    expected = {
        name: [to_numpy(getattr(layer, name)) for layer in _layers(model)]
        for name in ("kernel", "bias", "utility", "age", "mean_activation")
    }
    assert all(np.any(value) for value in expected["age"][:-1])
    _fit(model, 0, 1)
    model.load_state_dict(state)
    for name, values in expected.items():
        for layer, value in zip(_layers(model), values):
            variable = getattr(layer, name)
            np.testing.assert_array_equal(to_numpy(variable), value)
            # Of a layer as part of a user's own `torch.nn.Module`, too.
            (own,) = [
                tensor
                for key, tensor in layer.state_dict().items()
                if key == f"_torch_params.{variable.path}"
            ]
            np.testing.assert_array_equal(own, value)


def _arguments(kind):
    """Names of all arguments of a wrapper's constructor."""
    refused = {"kwargs"}
    if kind is CPR:
        refused.add("reset_optimizer_state")
    return {
        name
        for base in kind.__mro__
        if issubclass(base, OptimizerWrapper)
        and not base.__name__.startswith("_")
        for name in [each.name for each in parameters(base)]
        if name not in refused
    }


@rows()
def test_config(row):
    default = row.kind(_sgd()).get_config()
    assert set(default) == _arguments(row.kind)
    # The row has another value for each.
    assert set(row.config) == set(default) - {"inner_optimizer", "name"}
    inner = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.AdamW(0.125, weight_decay=0.5, clipnorm=2.0),
        dynamic_growth_steps=17,
    )
    settings = {**row.config, "name": "other_name"}
    optimizer = row.kind(
        row.inside.make(inner) if row.inside else inner, **settings
    )
    config = optimizer.get_config()
    for key in settings:
        assert config[key] != default[key]
    text = json.dumps(config)
    loaded = json.loads(text)
    twin = row.kind.from_config(loaded)
    # The caller's dict is left as it was.
    assert json.dumps(loaded) == text
    assert json.dumps(twin.get_config()) == text
    serialized = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    assert json.dumps(serialized["config"]) == text
    again = keras.optimizers.deserialize(serialized)
    for each in (twin, again):
        assert type(each) is row.kind
        assert json.dumps(each.get_config()) == text
        np.testing.assert_allclose(each.learning_rate, 0.125)


# One wrapper around another.

_PLAIN = [row.name for row in ROWS if row.inside is None]
_QUICK_NESTED = {
    ("ShrinkAndPerturb", "ContinualBackprop", "inner"),
}


@pytest.mark.parametrize(
    "outer, inner, active",
    [
        case
        if case in _QUICK_NESTED
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(_PLAIN, _PLAIN, ("outer", "inner"))
        if not all(_ROWS[name].resets_units for name in case[:2])
        # Each with one of each kind.
        and not {*_KINDS, "EffectiveRank"}.isdisjoint(case[:2])
        and can_do_nothing(_ROWS[case[case[2] == "outer"]])
    ],
)
def test_nested(outer, inner, active):
    # That which does nothing changes nothing.
    outer, inner = _ROWS[outer], _ROWS[inner]
    if active == "outer":
        row, optimizer = outer, outer.make(inner.make_nothing(_sgd()))
    else:
        row, optimizer = inner, outer.make_nothing(inner.make(_sgd()))
    model = _make_model(_both(outer, inner))
    _run(None, optimizer, model=model)
    reference = _reference(row.name)
    assert _num_replaced(row, optimizer) == reference.short_replaced
    expected = _weights_in(reference.short)
    _assert_equal(_weights_in(_values(model)), expected, **_ROUNDING)
    if row.replaces_units:
        _assert_equal(_values(model), reference.short, **_ROUNDING)


@pytest.mark.parametrize("between", ["nothing", "loss_scale", "wrapper"])
@rows(where=resets)
@pytest.mark.parametrize(
    "outer", [row for row in ROWS if resets(row)], ids=lambda row: row.name
)
def test_unit_resets_are_not_nested(outer, row, between):
    inner = row.make(_sgd())
    if between == "loss_scale":
        inner = keras.optimizers.LossScaleOptimizer(inner)
    elif between == "wrapper":
        inner = L2(inner)
    with pytest.raises(
        ValueError,
        match=f"`inner_optimizer` of a `{outer.kind.__name__}` must not itself "
        f"be or hold a `{row.kind.__name__}`: units would be replaced twice",
    ):
        outer.kind(inner)


# Replaced units.


def _train_until_replaced(row, model, optimizer):
    """Trains up to an update in which a unit of the last layer but one goes."""
    model.compile(optimizer, "mse", **_EAGERLY)
    x, y = _data()
    for i in range(_MANY):
        part = slice(i * _BATCH, (i + 1) * _BATCH)
        model.train_on_batch(x[part], y[part])
        if i > 0 and np.any(to_numpy(_layers(model)[-2].age) == 0):
            return
    raise AssertionError("No unit was replaced.")


def _slots(optimizer, weight):
    """The slots of a weight in a Keras optimizer, found by their names."""
    prefix = weight.path.replace("/", "_") + "_"
    return [
        to_numpy(variable)
        for variable in optimizer.variables
        if variable.path.split("/")[-1].startswith(prefix)
    ]


@pytest.mark.parametrize("inner", mostly_slow(["momentum", "adam"], "adam"))
@rows("ReDo", where=replaces)
def test_slots_of_replaced_units_begin_anew(row, inner):
    model = _make_model(row)
    inner = _INNER[inner]()
    optimizer = row.make(inner)
    _train_until_replaced(row, model, optimizer)
    _, layer, reader = _layers(model)
    new = to_numpy(layer.age) == 0
    assert 0 < new.sum() < len(new)
    for slot in _slots(inner, layer.kernel):
        np.testing.assert_array_equal(slot[:, new], 0.0)
        assert np.all(np.any(slot[:, ~new], axis=0))
    for slot in _slots(inner, reader.kernel):
        np.testing.assert_array_equal(slot[new], 0.0)
        assert np.all(np.any(slot[~new], axis=1))
    for slot in _slots(inner, layer.bias):
        # ReDo leaves them as they are.
        is_reset = "bias" in optimizer.slots_to_reset
        assert np.any(slot[new]) == (not is_reset)
        assert np.all(slot[~new])


# Models of several kinds.


def _make_kind(kind, row):
    source = keras_plasticity.layers if row.needs_plastic else keras.layers
    hidden = {"activation": "relu", "bias_initializer": "ones"}
    if kind == "convolutional":
        inputs = x = keras.Input((6, 6, 2))
        for layer in _first_layers(row):
            x = layer(x)
        x = source.Conv2D(4, 3, name="first", **hidden)(x)
        x = keras.layers.MaxPooling2D()(x)
        x = source.Conv2D(5, 2, name="second", **hidden)(x)
        x = keras.layers.Flatten()(x)
    else:
        inputs = x = keras.Input((4,))
        for layer in _first_layers(row):
            x = layer(x)
        x = skip = source.Dense(6, name="stem")(x)
        x = source.Dense(5, name="first", **hidden)(x)
        x = source.Dense(6, name="second")(x)
        x = keras.layers.Add()([x, skip])
    model = keras.Model(inputs, source.Dense(3, name="output")(x))
    for layer in _layers(model):
        if layer.name in ("stem", "second") and kind == "residual":
            layer.replaceable = False  # `Add` merges their units.
        if getattr(layer, "activation", None) is keras.activations.relu:
            # One unit is silent.
            bias = to_numpy(layer.bias)
            bias[0] = -9.0
            layer.bias.assign(bias)
    return model


@pytest.mark.parametrize(
    "kind", mostly_slow(["convolutional", "residual"], "residual")
)
@rows("ContinualBackprop")
def test_models_of_other_kinds(row, kind):
    model = _make_kind(kind, row)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * _BATCH, *model.input_shape[1:])).astype("f4")
    y = np.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    y = np.tile(y.reshape(-1, 1), 3)
    optimizer = row.make(
        _sgd() if not row.replaces_units else keras.optimizers.SGD(0.0)
    )
    start = _weights_in(_values(model))
    model.compile(optimizer, "mse", **_EAGERLY)
    model.fit(x, y, _BATCH, shuffle=False, verbose=0)
    end = _weights_in(_values(model))
    for key, value in end.items():
        assert np.all(np.isfinite(value)), key
    if not row.replaces_units:
        assert all(np.any(end[key] != start[key]) for key in end)
        return
    replaced = _num_replaced(row, optimizer)
    hidden = ["first", "second"] if kind == "convolutional" else ["first"]
    assert set(replaced) == set(hidden) and all(replaced.values())
    # Nothing but replacement has changed these weights.
    may_change = {
        key: np.zeros(value.shape, bool) for key, value in end.items()
    }
    readers = {"first": "second", "second": "output"}
    for name in hidden:
        # Of all updates there were; a new unit is younger.
        age = to_numpy(model.get_layer(name).age)
        new = age < 4
        assert np.any(new) and not np.all(new)
        may_change[f"{name}/kernel"][..., new] = True
        may_change[f"{name}/bias"][new] = True
        outgoing = may_change[f"{readers[name]}/kernel"]
        if outgoing.ndim == 2 and len(outgoing) != len(new):
            new = np.tile(new, len(outgoing) // len(new))
        outgoing[..., new, :] = True
    for key, value in end.items():
        changed = value != start[key]
        assert not np.any(changed & ~may_change[key]), key
        assert np.any(changed) == np.any(may_change[key]), key


# Bad input.


@pytest.mark.parametrize("inner", ["sgd", None, 0.1])
@rows()
def test_inner_is_not_an_optimizer(row, inner):
    with pytest.raises(TypeError, match="must be a `keras.optimizers.Opt"):
        row.make(inner)


@rows()
def test_argument_of_the_inner_optimizer(row):
    with pytest.raises(
        ValueError,
        match=f"`{row.kind.__name__}` does not take `clipnorm`.*on the "
        "`inner_optimizer` instead. Received: clipnorm=1.0",
    ):
        row.make(_sgd(), clipnorm=1.0)


@rows()
def test_apply_before_build(row):
    with pytest.raises(ValueError, match="must already be built"):
        row.make(_sgd()).apply([0.0])


@rows()
def test_number_of_gradients(row):
    model = _make_model(row)
    optimizer = row.make(_sgd())
    optimizer.build(model.trainable_variables)
    number = len(model.trainable_variables)
    for variables in ((model.trainable_variables,), ()):
        with pytest.raises(
            ValueError, match=f"1 gradients, {number} variables"
        ):
            optimizer.apply([ops.zeros((4, 6))], *variables)


@rows()
def test_no_gradients(row):
    optimizer = row.make(_sgd())
    optimizer.apply([], [])
    assert not optimizer.built


@rows()
def test_other_model(row):
    optimizer = row.make(_sgd())
    # Variables know their layers only as long as there is a model.
    model, other = _make_model(row), _make_model(row)
    optimizer.build(model.trainable_variables)
    gradients = [ops.zeros(v.shape) for v in other.trainable_variables]
    with pytest.raises(
        ValueError, match=f"`{row.kind.__name__}` was built on another model"
    ):
        optimizer.apply(gradients, other.trainable_variables)


@rows(where=resets)
def test_inner_is_built(row):
    inner, model = _sgd(), _make_model(row)
    inner.build(model.trainable_variables)
    with pytest.raises(ValueError, match="`inner_optimizer` is already built"):
        row.make(inner).build(model.trainable_variables)


@rows(where=resets)
def test_no_plastic_layer(row):
    with pytest.raises(ValueError, match="There is no plastic layer"):
        row.make(_sgd()).build(_make_model().trainable_variables)
