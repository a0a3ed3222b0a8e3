"""Rows of TensorBoard's table of settings, of runs that were made up."""

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from keras_plasticity import utils
from keras_plasticity.experiments import hparams
from tests.experiments.experiment_test import rows_of


def make_summary(tasks_per_bin=1):
    return {
        "flags": {"seed": 5},
        "backend": "jax",
        "metric": {
            "name": "accuracy",
            "scale": 100.0,
            "lower_is_better": False,
        },
        "x_axis": {"per_task": 1},
        "tasks_per_bin": tasks_per_bin,
    }


def make_run(method, *values):
    """A run with the values of each task's learners."""
    return {
        "method": method,
        "settings": {"learning_rate": 0.5, "momentum": None},
        "num_learners": len(values[0]),
        "per_task": [{"accuracy_per_learner": list(v)} for v in values],
    }


def numbers(row):
    return {
        name: value.number_value
        for name, value in row.items()
        if value.WhichOneof("kind") == "number_value"
    }


def test_a_row_for_each_learner(tmp_path):
    run = make_run("bp", (0.1, 0.6), (0.4, 0.2), (0.3, None))
    hparams.write(make_summary(), [run], tmp_path)
    [first] = rows_of(tmp_path / "bp" / "seed_5")
    [second] = rows_of(tmp_path / "bp" / "seed_6")
    assert not list((tmp_path / "bp").glob("events*"))
    assert numbers(first) == pytest.approx(
        {
            "1_last_accuracy": 30,
            "2_best_accuracy": 40,
            "3_first_accuracy": 10,
            "learning_rate": 0.5,
            "seed": 5,
            "num_learners": 1,
            "num_tasks": 3,
        }
    )
    assert first["method"].string_value == "bp"
    assert first["momentum"].string_value == "None"
    # It has diverged.
    assert "1_last_accuracy" not in second
    assert second["2_best_accuracy"].number_value == pytest.approx(60)
    # As TensorBoard sorts the columns, what is looked for first comes first.
    assert sorted(first)[:3] == [
        "1_last_accuracy",
        "2_best_accuracy",
        "3_first_accuracy",
    ]


def test_results_are_those_of_bins(tmp_path):
    run = make_run("bp", *([v] for v in (0.1, 0.3, 0.9, 0.1, 0.2)))
    hparams.write(make_summary(tasks_per_bin=2), [run], tmp_path)
    [row] = rows_of(tmp_path / "bp")
    results = [v for k, v in sorted(numbers(row).items()) if k[0] in "123"]
    np.testing.assert_allclose(results, [50, 50, 20])


def test_one_learner_has_its_row_where_its_charts_are(tmp_path):
    folder = tmp_path / "bp"
    with utils.SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.scalar("against_tasks/accuracy", step, step)
    run = make_run("bp", [0.1], [0.2])
    hparams.write(make_summary(), [run], tmp_path)
    [row] = rows_of(folder)
    assert row["1_last_accuracy"].number_value == pytest.approx(20)
    # A run that was resumed has new results, and the charts that it had.
    run["per_task"].append({"accuracy_per_learner": [0.7]})
    hparams.write(make_summary(), [run], tmp_path)
    [row] = rows_of(folder)
    assert row["1_last_accuracy"].number_value == pytest.approx(70)
    assert row["num_tasks"].number_value == 3
    assert len(list(folder.iterdir())) == 2
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Tensors("against_tasks/accuracy")) == 3


def test_more_rows_than_tensorboard_shows(tmp_path):
    few, many = make_run("bp", [0.2, 0.4]), make_run("cbp", [0.5] * 36)
    hparams.write(make_summary(), [few, many], tmp_path)
    [row] = rows_of(tmp_path / "bp")
    assert row["1_last_accuracy"].number_value == pytest.approx(30)
    assert row["num_learners"].number_value == 2
    assert rows_of(tmp_path / "cbp")
    assert len(list(tmp_path.rglob("events*"))) == 2
    many["num_learners"] = 35
    many["per_task"] = [{"accuracy_per_learner": [0.5] * 35}]
    hparams.write(make_summary(), [few, many], tmp_path)
    assert len(list(tmp_path.rglob("events*"))) == 37
