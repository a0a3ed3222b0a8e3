"""What figures and tables are made from."""

import math

import numpy as np
import pytest

from keras_plasticity.experiments import runs


def make_summary(tasks_per_bin=1, lower_is_better=True):
    return {
        "tasks_per_bin": tasks_per_bin,
        "metric": {
            "name": "loss",
            "scale": 100.0,
            "format": ".1f",
            "lower_is_better": lower_is_better,
        },
        "x_axis": {"per_task": 10},
    }


def make_run(*values, **more):
    """A run of the values of two learners in each task."""
    return {
        "per_task": [{"loss_per_learner": list(each)} for each in values],
        "num_learners": 2,
        "compile_seconds": 1.5,
        "train_seconds": 2.0,
        "published": [(10, 0.5), (31, 0.25), (32, 0.75)],
        **more,
    }


def test_bins():
    run = make_run((1, 2), (3, 4), (5, 6), (7, 8), (90, 90))
    ends, values = runs.per_bin(make_summary(2), run)
    np.testing.assert_array_equal(ends, [20, 40])
    np.testing.assert_array_equal(values, [[200, 300], [600, 700]])
    # One that has not got as far as a whole bin, and one that has nothing.
    ends, values = runs.per_bin(make_summary(9), run)
    np.testing.assert_array_equal(ends, [50])
    assert values.shape == (1, 2)
    ends, values = runs.per_bin(make_summary(2), make_run())
    assert len(ends) == len(values) == 0


@pytest.mark.parametrize(
    ("size", "lengths", "expected"),
    [
        (1, (4, 5), ""),
        (2, (4, 6), ", bins of 2 tasks"),
        (2, (4, 5), ", bins of 2 tasks, the last 1 in none"),
        (3, (5, 4), ", bins of 3 tasks, the last 2 in none"),
        (3, (3, 2), ", bins of 3 tasks"),
        (2, (2, 3), ", bins of 2 tasks, the last 1 in none"),
    ],
)
def test_what_the_bins_are(size, lengths, expected):
    labeled = {str(n): make_run(*[(0, 0)] * n) for n in lengths}
    assert runs.bins_label(make_summary(size), labeled) == expected


def test_means_leave_out_what_is_not_finite():
    values = np.array([[1.0, math.nan, 4.0], [math.inf] * 3])
    assert runs.finite_mean(values[0]) == 2.5
    assert runs.finite_mean(values[1]) is None
    assert runs.standard_error(values[0]) == pytest.approx(1.5)
    assert runs.standard_error(values[0, :2]) == 0.0
    assert runs.finite_list(values[0]) == [1.0, None, 4.0]
    np.testing.assert_array_equal(
        runs.mean_of_learners(values), [2.5, math.nan]
    )


@pytest.mark.parametrize(("lower", "best"), [(True, 2), (False, 0)])
def test_best_bin(lower, best):
    values = np.array([[3.0, 5.0], [math.nan] * 2, [1.0, math.nan], [2, 2]])
    assert runs.best_bin(make_summary(1, lower), values) == best


def test_table():
    labeled = {
        "ours": make_run((0.5, 0.75), (0.25, math.nan), (0.25, 0.5)),
        "theirs": make_run((math.nan, math.nan), (1, 1), published=[]),
        "none": make_run(),
    }
    ours, theirs = runs.rows(make_summary(), labeled)
    assert ours == {
        "method": "ours",
        "learners": "2",
        "tasks": "3",
        "first": "62.5±12.5 (n=2)",
        "best": "25.0 (1 of 2 learners)",
        "last": "37.5±12.5 (n=2)",
        # The last one is more than 5 % beyond the end.
        "published": "0.5 at 10, 0.25 at 31",
        "seconds": "3.5",
    }
    assert theirs["first"] == "diverged"
    assert theirs["published"] == "-"
    # A column that says nothing is left out.
    alone, again = runs.rows(
        make_summary(), {"a": labeled["theirs"], "b": labeled["theirs"]}
    )
    assert {*theirs} - {*alone} == {"published"} == {*theirs} - {*again}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.2"),
        (-999_999.0, "-999999.0"),
        (1e6, "1e+06"),
        (-5.4454e24, "-5.45e+24"),
    ],
)
def test_numbers_of_what_diverges_are_short(value, text):
    assert runs.format_number(value, ".1f") == text
    (row,) = runs.rows(make_summary(3), {"a": make_run(*[(value / 100,)] * 3)})
    assert row["last"] == f"{text} (n=1)"


def test_diagnostics_are_in_percent_of_the_units():
    """Two hidden layers of 6 and 4 units; the linear model has none."""
    run = make_run((1, 2), (3, 4), (5, 6))
    for i, task in enumerate(run["per_task"]):
        task["num_units"] = 10
        task["effective_rank"] = {"a": 4.0, "b": 2.0, "total": 3.0}
        task["per_learner"] = {
            "dead_units": [i, 2 * i],
            "effective_rank": [3.0, None if i == 2 else 1.0],
            "weight_magnitude": [0.5, 0.25],
        }
    ends, values = runs.diagnostic_per_bin(make_summary(2), run, "dead_units")
    np.testing.assert_array_equal(ends, [20])
    np.testing.assert_allclose(values, [[5.0, 10.0]])
    ends, values = runs.diagnostic_per_bin(
        make_summary(), run, "effective_rank"
    )
    np.testing.assert_array_equal(ends, [10, 20, 30])
    # Of five units a layer, in the mean.
    np.testing.assert_allclose(values, [[60, 20], [60, 20], [60, math.nan]])
    _, values = runs.diagnostic_per_bin(make_summary(), run, "weight_magnitude")
    np.testing.assert_array_equal(values, [[0.5, 0.25]] * 3)
    # All have diverged.
    run["per_task"][2] |= {"per_learner": {}}
    del run["per_task"][2]["effective_rank"]
    _, values = runs.diagnostic_per_bin(make_summary(), run, "effective_rank")
    np.testing.assert_allclose(values, [[60, 20], [60, 20], [math.nan] * 2])
    assert runs.has_diagnostic(run, "dead_units")
    assert not runs.has_diagnostic(run, "saturated_units")
    assert not runs.has_diagnostic(make_run((1, 2)), "dead_units")


def test_epochs_of_a_task():
    run = make_run((1, 2), (3, 4))
    run["per_task"][1]["epochs"] = {"loss": [[1, 2], [3, None], [5, 6]]}
    assert runs.epochs_of_task(run, 0) == {}
    [values] = runs.epochs_of_task(run, -1).values()
    np.testing.assert_array_equal(values, [[1, 2], [3, math.nan], [5, 6]])


def test_means_of_what_is_about_to_diverge():
    values = np.array([3e38, 3e38, np.inf], "float32")
    assert runs.finite_mean(values) == pytest.approx(3e38)
    assert runs.standard_error(values * [1, 0.5, 1]) == pytest.approx(7.5e37)
