"""Settings that may be changed later, and those that may not."""

import inspect

import keras
import numpy as np
import pytest

from keras_plasticity import optimizers
from keras_plasticity.optimizers import settings
from keras_plasticity.optimizers.settings import all_hyperparameters
from keras_plasticity.optimizers.settings import all_settings
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy
from tests.helpers import train

_SGD = keras.optimizers.SGD

pytestmark = pytest.mark.usefixtures("fast_compilation")
# Class -> arguments, and for each hyper-parameter another value.
_CASES = {
    "ContinualBackprop": (
        {"seed": 1, "maturity_threshold": 2, "replacement_rate": 0.1},
        {"replacement_rate": 0.3, "maturity_threshold": 50, "decay_rate": 0.5},
    ),
    "ReDo": (
        {"seed": 1, "threshold": 0.5, "period": 3},
        {"threshold": 0.9, "period": 2, "score_updates": 2},
    ),
    "SelfNormalizedResets": (
        {
            "seed": 1,
            "min_threshold": 1,
            "initial_threshold": 100,
            "threshold_period": 5,
        },
        {"quantile": 0.01, "min_threshold": 8, "threshold_period": 2},
    ),
    "L2": ({"l2": 0.1}, {"l2": 0.5}),
    "ShrinkAndPerturb": (
        {"seed": 1, "noise_refresh_steps": 5},
        {"l2": 0.3, "noise_stddev": 0.1},
    ),
    "ShrinkAndPerturbByInitializer": (
        {"seed": 1, "noise_refresh_steps": 1},
        {"shrink": 0.5, "perturb": 0.5},
    ),
}
_FIXED = {
    "ContinualBackprop": {
        "utility": "overall",
        "transfer_mean": True,
        "reset_optimizer_state": False,
        "seed": 5,
    },
    "ReDo": {
        "seed": 5,
        "reset_optimizer_state": False,
        "outgoing": "random",
        "new_weights": "initial",
        "shared_weights": "incoming",
        "reset_bias_slots": True,
    },
    "SelfNormalizedResets": {
        "max_threshold": 100,
        "initial_threshold": 1000,
        "seed": 5,
        "reset_optimizer_state": False,
    },
    "L2": {},
    "ShrinkAndPerturb": {"noise_refresh_steps": 7, "seed": 5},
    "ShrinkAndPerturbByInitializer": {
        "noise_refresh_steps": 7,
        "initializer": "zeros",
        "perturb_biases": True,
        "period": 2,
        "seed": 5,
    },
}
_changes = pytest.mark.parametrize(
    ("method", "name"),
    mostly_on_torch(
        [(m, n) for m, (_, values) in _CASES.items() for n in values],
        ("ContinualBackprop", "replacement_rate"),
        ("ContinualBackprop", "decay_rate"),
        ("SelfNormalizedResets", "quantile"),
        ("ShrinkAndPerturb", "noise_stddev"),
    ),
)


def _make(method, **kwargs):
    settings = {**_CASES[method][0], **kwargs}
    return getattr(optimizers, method)(_SGD(0.05), **settings)


def _run(optimizer, num=40):
    model = make_model(activation="relu")
    train(model, optimizer, make_data(num))
    return model


def test_each_setting_has_a_case():
    for method, (_, values) in _CASES.items():
        kind = getattr(optimizers, method)
        assert set(all_hyperparameters(kind)) == set(values)
        assert set(all_settings(kind)) == {*values, *_FIXED[method]}


@_changes
def test_a_change_takes_effect_at_the_next_step(method, name):
    value = _CASES[method][1][name]
    x, y = make_data(80)
    models = []
    for change in ("never", "later", "both"):
        optimizer = _make(method)
        model = make_model(activation="relu")
        model.compile(optimizer, "mse")
        for part in range(2):
            if part == 1 and change != "never":
                setattr(optimizer, name, value)
                assert getattr(optimizer, name) == value
            if part == 1 and change == "both":
                # A new function is compiled, which must make no difference.
                model.compile(optimizer, "mse")
            each = slice(40 * part, 40 * (part + 1))
            model.fit(x[each], y[each], batch_size=1, shuffle=False, verbose=0)
        models.append(model)
    never, later, both = models
    assert_same_weights(later, both)
    # Weights differ, or at least the books that are kept.
    assert any(
        np.any(value != other)
        for value, other in zip(_state(later), _state(never))
    )


def _state(model):
    settings = model.optimizer.hyperparameter_variables()
    return [
        to_numpy(variable)
        for variable in model.weights + model.optimizer.variables
        if not any(variable is setting for setting in settings)
    ]


@_changes
def test_changed_values_are_saved(method, name, tmp_path):
    value = _CASES[method][1][name]
    optimizer = _make(method)
    model = _run(optimizer)
    setattr(optimizer, name, value)
    assert optimizer.get_config()[name] == value
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert getattr(loaded.optimizer, name) == value
    # Variables that are restored decide.
    other = _make(method)
    twin = _run(other)
    assert getattr(other, name) != value
    store = {}
    optimizer.save_own_variables(store)
    other.load_own_variables(store)
    assert getattr(other, name) == value
    assert twin is not None


@pytest.mark.parametrize(
    ("method", "name"), [(m, n) for m, v in _FIXED.items() for n in v]
)
def test_what_cannot_change_says_so(method, name):
    optimizer = _make(method)
    before = getattr(optimizer, name)
    model = make_model()
    optimizer.build(model.trainable_variables)
    with pytest.raises(
        ValueError,
        match=f"`{name}` of a `{method}` cannot change once it is built",
    ):
        setattr(optimizer, name, _FIXED[method][name])
    assert getattr(optimizer, name) == before


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("ContinualBackprop", "replacement_rate", 5.0),
        ("ContinualBackprop", "decay_rate", 1.0),
        ("ContinualBackprop", "maturity_threshold", -1),
        ("ReDo", "threshold", float("nan")),
        ("ReDo", "period", 0),
        ("ReDo", "score_updates", 4),
        ("SelfNormalizedResets", "quantile", 1.0),
        ("SelfNormalizedResets", "min_threshold", 10**6),
        ("L2", "l2", -0.1),
        ("ShrinkAndPerturb", "noise_stddev", -1),
        ("ShrinkAndPerturbByInitializer", "shrink", 1.5),
    ],
)
def test_setters_check(method, name, value, is_built):
    optimizer = _make(method)
    model = make_model()
    if is_built:
        optimizer.build(model.trainable_variables)
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}={value}"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


def test_rate_from_and_to_zero():
    optimizer = _make("ContinualBackprop", replacement_rate=0.0)
    model = _run(optimizer)
    assert set(optimizer.num_replaced().values()) == {0}
    optimizer.replacement_rate = 0.5
    model.fit(*make_data(40), batch_size=4, verbose=0)
    replaced = optimizer.num_replaced()
    assert min(replaced.values()) > 0
    optimizer.replacement_rate = 0.0
    model.fit(*make_data(40), batch_size=4, verbose=0)
    assert optimizer.num_replaced() == replaced


def test_noise_cannot_be_turned_on():
    optimizer = _make("ShrinkAndPerturb", noise_stddev=0.0)
    _run(optimizer)
    with pytest.raises(ValueError, match="built on a model with 0"):
        optimizer.noise_stddev = 0.1


class TestSchedules:
    @staticmethod
    def _step_at(update, before, after):
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [update], [before, after]
        )

    def test_replacement_rate(self):
        numbers = []
        for rate in (self._step_at(10, 0.0, 0.05), 0.05):
            optimizer = _make("ContinualBackprop", replacement_rate=rate)
            model = make_model((4, 40, 3), activation="relu")
            model.compile(optimizer, "mse")
            x, y = make_data(160, (4, 40, 3))
            counts = []
            for part in range(4):
                each = slice(40 * part, 40 * (part + 1))
                model.fit(x[each], y[each], batch_size=4, verbose=0)
                counts.append(optimizer.num_replaced()["layer_0"])
            numbers.append(np.diff(counts))
        # No unit of the first is too young at first.
        assert numbers[0][0] == pytest.approx(20, abs=3)
        assert np.all(numbers[0] > 0) and np.all(numbers[1] > 0)

    @pytest.mark.parametrize(
        "rate", mostly_on_torch([0.01, 0.1, 1e-3, 0.3, 1.0], 0.01)
    )
    def test_constant_schedule_is_the_constant(self, rate):
        models = []
        for value in (rate, self._step_at(10**6, rate, 0.0)):
            optimizer = _make("ContinualBackprop", replacement_rate=value)
            models.append(_run(optimizer))
        assert_same_weights(*models)

    @pytest.mark.parametrize(
        ("method", "name"),
        mostly_on_torch(
            [
                ("L2", "l2"),
                ("ShrinkAndPerturb", "noise_stddev"),
                ("ShrinkAndPerturbByInitializer", "shrink"),
            ],
            ("ShrinkAndPerturb", "noise_stddev"),
        ),
    )
    def test_others(self, method, name):
        value = _CASES[method][1][name]
        models = []
        for each in (value, self._step_at(10**6, value, 0.0)):
            models.append(_run(_make(method, **{name: each})))
        assert_same_weights(*models, rtol=1e-6)

    def test_saving(self, tmp_path):
        schedule = self._step_at(5, 0.1, 0.2)
        optimizer = _make("ContinualBackprop", replacement_rate=schedule)
        model = _run(optimizer)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
        assert loaded.replacement_rate.get_config() == schedule.get_config()

    def test_built_on_a_schedule(self):
        optimizer = _make(
            "ContinualBackprop", replacement_rate=self._step_at(5, 0.1, 0.2)
        )
        _run(optimizer)
        with pytest.raises(ValueError, match="from or to a schedule"):
            optimizer.replacement_rate = 0.1
        optimizer = _make("L2")
        _run(optimizer)
        with pytest.raises(ValueError, match="from or to a schedule"):
            optimizer.l2 = self._step_at(5, 0.1, 0.2)

    def test_those_that_say_so_take_schedules(self):
        found = {}
        for name in optimizers.__all__:
            each = getattr(optimizers, name)
            if not issubclass(each, optimizers.OptimizerWrapper):
                continue
            for parameter in inspect.signature(each).parameters.values():
                setting = inspect.getattr_static(each, parameter.name, None)
                if isinstance(setting, settings.Hyperparameter):
                    says_so = "Schedule" in str(parameter.annotation)
                    found[f"{name}.{parameter.name}"] = says_so
                    assert says_so == setting.schedules, (name, parameter.name)
        assert found["EffectiveRank.rank_learning_rate"]
        assert not found["ContinualBackprop.decay_rate"]

    def test_no_schedule(self):
        with pytest.raises(ValueError, match="`decay_rate` must be a number"):
            _make("ContinualBackprop", decay_rate=self._step_at(5, 0.1, 0.2))
