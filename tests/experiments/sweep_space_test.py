"""The settings of a sweep, and how they are written."""

import math

import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments.sweeps import space as spaces

RANGES = {
    "rate": experiments.Range(1e-4, 1.0, log=True),
    "units": experiments.Range(3, 5),
    "method": ["bp", "cbp,l2"],
}


def test_grid():
    space = spaces.check_space({"rate": [0.1, 1], "flip": [True, False]})
    assert spaces.grid(space) == [
        {"rate": rate, "flip": flip}
        for rate in ("0.1", "1")
        for flip in ("true", "false")
    ]


def test_draws_lie_in_their_ranges():
    space = spaces.check_space(RANGES)
    found = spaces.draw(space, 300, seed=0)
    assert len(found) == 300
    rates = [float(each["rate"]) for each in found]
    assert 1e-4 <= min(rates) < 1e-3 and 0.1 < max(rates) <= 1
    # Each power of ten is as likely as another.
    assert sum(rate < 1e-2 for rate in rates) == pytest.approx(150, abs=40)
    assert {each["units"] for each in found} == {"3", "4", "5"}
    assert {each["method"] for each in found} == {"bp", "cbp,l2"}


def test_the_first_of_more_draws_are_those_of_fewer():
    space = spaces.check_space(RANGES)
    more = spaces.draw(space, 20, seed=3)
    assert more[:7] == spaces.draw(space, 7, seed=3)
    assert more != spaces.draw(space, 20, seed=4)


def test_no_setting_is_drawn_twice():
    space = {"a": ["1", "2"], "b": ["1", "2", "3"]}
    found = spaces.draw(space, 10, seed=0)
    assert len(found) == 6
    assert sorted(map(str, found)) == sorted(map(str, spaces.grid(space)))


@pytest.mark.parametrize("log", [False, True])
def test_integers_are_drawn_to_their_ends(log):
    space = {"a": experiments.Range(1, 3, log=log)}
    found = spaces.draw(space, 5, seed=1)
    assert sorted(each["a"] for each in found) == ["1", "2", "3"]


def test_corners_have_each_value():
    space = spaces.check_space(RANGES)
    found = spaces.corners(space)
    for name, values in {
        "rate": {"0.0001", "1.0"},
        "units": {"3", "5"},
        "method": {"bp", "cbp,l2"},
    }.items():
        assert {each[name] for each in found} == values
    assert len(found) == 4


def test_optuna_depends_on_nothing_but_its_arguments():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    space = spaces.check_space(RANGES)
    history = [
        (each, abs(math.log10(float(each["rate"])) + 2))
        for each in spaces.draw(space, 30, seed=0)
    ]
    history[3] = (history[3][0], None)
    found = spaces.propose(space, history, 8, 0, lower_is_better=True)
    assert found == spaces.propose(space, history, 8, 0, lower_is_better=True)
    assert found[:5] == spaces.propose(space, history, 5, 0, True)
    assert found != spaces.propose(space, history, 8, 1, lower_is_better=True)
    # It has seen where the results are good, at 0.01.
    assert sum(1e-3 < float(each["rate"]) < 0.1 for each in found) >= 6
    assert all(3 <= int(each["units"]) <= 5 for each in found)
    assert list(found[0]) == list(space)


def test_optuna_proposes_nothing_twice():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    space = {"a": ["1", "2"], "b": ["1", "2"]}
    first = spaces.propose(space, [], 3, 0, False)
    history = [(each, 1.0) for each in first]
    assert len(spaces.propose(space, history, 8, 0, False)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,2", ("a", ["1", "2"])),
        ("a=1", ("a", ["1"])),
        ("method=bp cbp,l2", ("method", ["bp", "cbp,l2"])),
    ],
)
def test_grids_are_read(text, expected):
    assert spaces.parse_grid(text) == expected


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=1,,2", "a b=1", "a= "])
def test_what_is_no_grid(text):
    with pytest.raises(ValueError, match="--grid must be NAME=VALUE"):
        spaces.parse_grid(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1..3", experiments.Range(1, 3)),
        ("a=1e-4..1:log", experiments.Range(1e-4, 1, log=True)),
        ("a=-1.5..0.5", experiments.Range(-1.5, 0.5)),
    ],
)
def test_ranges_are_read(text, expected):
    assert spaces.parse_range(text) == ("a", expected)


@pytest.mark.parametrize(
    "text",
    ["a", "a=1", "a=1..", "a=1..x", "a=2..1", "a=0..1:log", "a=1..2:lin"]
    + ["=1..2", "a=nan..1", "a=1..2:"],
)
def test_what_is_no_range(text):
    with pytest.raises(ValueError, match="--range must be NAME=LOW..HIGH"):
        spaces.parse_range(text)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "`space` must be a dict"),
        ({"a": []}, "`space` must be a dict"),
        ({"a": [None]}, "`space` must be a dict"),
        ({"a": "12"}, "`space` must be a dict"),
        ({"--a": [1]}, "`space` must be a dict"),
        ({"a": [0.5, "0.5"]}, "each value of a flag once.*a=0.5 twice"),
    ],
)
def test_spaces_that_cannot_be(space, message):
    with pytest.raises(ValueError, match=message):
        spaces.check_space(space)


def test_ranges_that_cannot_be():
    with pytest.raises(ValueError, match="`low` must be a number below `high`"):
        experiments.Range(1.0, 1.0)
    with pytest.raises(ValueError, match="above 0. Received: low=0"):
        experiments.Range(0, 1, log=True)
    with pytest.raises(ValueError, match="`high` must be a finite number"):
        experiments.Range(0.0, math.inf)
