"""A user's own results, kept as a run."""

import math

import numpy as np
import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments.summary import read_summary

VALUES = np.array([[1.0, 2.0], [3.0, math.nan]])


def test_results_are_kept(tmp_path):
    experiments.save_results(
        str(tmp_path / "mine"),
        "mine",
        VALUES,
        seeds=np.array([5, 7]).tolist(),
        settings={"rate": np.float32(0.5), "is_odd": True},
        seconds=2,
    )
    summary = read_summary(str(tmp_path / "mine"))
    (run,) = summary["runs"]
    assert run["seeds"] == [5, 7] and run["num_learners"] == 2
    assert run["settings"] == {"rate": 0.5, "is_odd": True}
    assert [task["loss_per_learner"] for task in run["per_task"]] == [
        [1.0, 2.0],
        [3.0, None],
    ]


def test_the_problem_is_that_of_another_run(tmp_path):
    experiments.save_results(
        str(tmp_path / "other"),
        "other",
        VALUES,
        problem="my_problem",
        metric="accuracy",
        lower_is_better=False,
    )
    experiments.save_results(
        str(tmp_path / "mine"), "mine", VALUES, like=str(tmp_path / "other")
    )
    other = read_summary(str(tmp_path / "other"))
    mine = read_summary(str(tmp_path / "mine"))
    assert mine["problem"] == "my_problem"
    assert mine["metric"] == other["metric"]
    assert "accuracy_per_learner" in mine["runs"][0]["per_task"][0]
    assert not mine["metric"]["lower_is_better"]


def test_what_is_there_is_kept(tmp_path):
    folder = str(tmp_path)
    experiments.save_results(folder, "a", VALUES)
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        experiments.save_results(folder, "b", VALUES)
    assert read_summary(folder)["runs"][0]["method"] == "a"
    experiments.save_results(folder, "b", VALUES, overwrite=True)
    assert read_summary(folder)["runs"][0]["method"] == "b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0]}, "`values` must be an array of shape"),
        ({"values": np.zeros((0, 2))}, "`values` must be an array of shape"),
        ({"seeds": [0]}, "`seeds` must be 2 different integers"),
        ({"seeds": [1, 1]}, "`seeds` must be 2 different integers"),
        ({"seeds": [0, 0.5]}, "`seeds` must be 2 different integers"),
        ({"method": " "}, "`method` must be a name"),
        ({"settings": {"a": None}}, "`settings` must be a dict from name"),
        ({"settings": {"a": math.nan}}, "`settings` must be a dict from name"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, changes, message):
    arguments = {"method": "mine", "values": VALUES, **changes}
    with pytest.raises(ValueError, match=message):
        experiments.save_results(str(tmp_path / "new"), **arguments)
    assert not (tmp_path / "new").exists()


def test_another_run_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no `summary.json`"):
        experiments.save_results(
            str(tmp_path), "mine", VALUES, like=str(tmp_path)
        )
