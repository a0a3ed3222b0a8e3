"""A thousand of the cases of `fuzz.py`, and what it calls a failure."""

import time
import warnings

import pytest

from tests import fuzz
from tests import fuzz_recipes
from tests.odd_values import ODD_VALUES

pytestmark = pytest.mark.usefixtures("fast_compilation")


def test_all_that_is_public_has_a_recipe():
    assert fuzz.missing_recipes() == []


def test_valid_arguments_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, recipe in fuzz_recipes.RECIPES.items():
        outcome = fuzz.call(name, {}, seconds=60)
        allowed = {"accepted", *(error.__name__ for error in recipe.raises)}
        assert outcome.kind in allowed | {"FileNotFoundError"}, outcome


def test_odd_arguments_work_or_are_refused():
    pytest.importorskip("matplotlib")
    assert fuzz.failures(fuzz.run(cases=1000, seed=0)) == []


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda rate: rate, None),
        (
            lambda rate: _raise(ValueError("`rate` is no rate. Received: -1")),
            None,
        ),
        (
            lambda rate: _raise(TypeError("`rate` must not be 'False'.")),
            None,
        ),
        (
            lambda rate: _raise(ValueError("`rates` are odd. Received: -1")),
            "names none of",
        ),
        (
            lambda rate: _raise(TypeError("`rate` must be a number.")),
            "does not say what was received",
        ),
        (lambda rate: {}[rate], "KeyError"),
        (lambda rate: warnings.warn("hm"), "UserWarning"),
        (lambda rate: time.sleep(9), "took more than"),
    ],
)
def test_what_is_a_failure(call, problem, monkeypatch):
    recipe = fuzz_recipes.Recipe(call=call, arguments={"rate": lambda: 0.1})
    monkeypatch.setitem(fuzz_recipes.RECIPES, "mine", recipe)
    outcome = fuzz.call("mine", {"rate": "'False'"}, seconds=0.2)
    assert outcome.case == "mine(rate='False')"
    assert problem in outcome.problem if problem else not outcome.problem


def test_what_is_public_needs_recipes(monkeypatch):
    monkeypatch.delitem(fuzz_recipes.RECIPES, "optimizers.L2")
    monkeypatch.setitem(
        fuzz_recipes.RECIPES,
        "streams.Nothing",
        fuzz_recipes.Recipe(call=int, arguments={}),
    )
    monkeypatch.delitem(
        fuzz_recipes.RECIPES["models.make_plastic"].arguments, "inputs"
    )
    assert fuzz.missing_recipes() == [
        "optimizers.L2: no recipe",
        "streams.Nothing: not public",
        "models.make_plastic: no valid value for `inputs`",
    ]
    with pytest.raises(SystemExit, match="optimizers.L2: no recipe"):
        fuzz.run(cases=1, seed=0)


def test_odd_values_are_new_each_time():
    for make in ODD_VALUES.values():
        if isinstance(make(), (list, dict, set)):
            assert make() is not make()
