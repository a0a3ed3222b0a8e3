"""Keeps a user's own results as a run that can be compared with others."""

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_plasticity import validation
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import runs
from keras_plasticity.experiments import summary as summary_file

_OF_A_PROBLEM = ("problem", "title", "metric", "x_axis", "tasks_per_bin")


def save_results(
    log_dir: str,
    method: str,
    values: np.ndarray,
    seeds: Sequence[int] | None = None,
    like: str | None = None,
    problem: str = "stream",
    metric: str = "loss",
    lower_is_better: bool = True,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    overwrite: bool = False,
):
    """Keeps results of a training loop of your own, for `compare`.

    Writes the `summary.json` that the trainers write.

    Args:
        log_dir: String, the folder. It is made if it is not there.
        method: String, what tables and figures call it.
        values: Array of shape `(num_tasks, num_learners)`, such as
            `results["loss"]` of `training.OnlineTrainer`. NaN is a learner
            that has diverged.
        seeds: Sequence of integers, the seed of each learner, by which
            differences from other methods are paired. Defaults to `None`: 0,
            1, 2 and so on.
        like: String, the log folder of a run of the same problem, of which
            `problem`, `metric` and `lower_is_better` are taken. Defaults to
            `None`.
        problem: String, the name of the problem. Defaults to `"stream"`.
        metric: String, the name of what `values` are. Defaults to `"loss"`.
        lower_is_better: Boolean. Defaults to `True`.
        settings: Dict from name to number, string or boolean, by which two
            runs of the method are told apart. Defaults to `None`: none.
        seconds: Number, how long the training took. Defaults to `0.0`.
        overwrite: Boolean, whether results that are in the folder may be
            replaced. Defaults to `False`.

    Raises:
        FileExistsError: If the folder holds results, and not `overwrite`.
        FileNotFoundError: If `like` holds no run that ended.
        OSError: If the folder cannot be written.
        ValueError: If an argument is not as described.

    Example:

    ```python
    # Two methods, ten tasks, three learners.
    results = np.random.default_rng(0).random((2, 10, 3))
    keras_plasticity.experiments.save_results("logs/a", "a", results[0])
    keras_plasticity.experiments.save_results("logs/b", "b", results[1])
    ```
    """
    log_dir = validation.check_path("log_dir", log_dir)
    method = _check_name("method", method)
    rule = "an array of shape `(num_tasks, num_learners)`"
    values = validation.check_array("values", values, rule).astype("float64")
    if values.ndim != 2 or not values.size:
        raise validation.error("values", rule, values)
    seeds = _check_seeds(seeds, values.shape[1])
    settings = {} if settings is None else settings
    settings = dict(validation.check_mapping("settings", settings))
    for name, value in settings.items():
        rule = "a dict from name to number, string or boolean"
        is_plain = isinstance(value, (str, bool)) or validation.is_number(value)
        if not isinstance(name, str) or not is_plain:
            raise validation.error("settings", rule, settings)
        # JSON knows no numbers of NumPy.
        settings[name] = value.item() if hasattr(value, "item") else value
    about = {
        "problem": _check_name("problem", problem),
        "title": problem.replace("_", " "),
        "metric": {
            "name": _check_name("metric", metric),
            "label": metric.replace("_", " "),
            "lower_is_better": validation.check_boolean(
                "lower_is_better", lower_is_better
            ),
            "scale": 1.0,
            "format": ".4g",
        },
        "x_axis": {"label": "tasks", "per_task": 1},
        "tasks_per_bin": 1,
    }
    seconds = validation.check_not_negative("seconds", seconds)
    overwrite = validation.check_boolean("overwrite", overwrite)
    if like is not None:
        other = summary_file.read_summary(validation.check_path("like", like))
        about = {name: other[name] for name in _OF_A_PROBLEM}
    path = os.path.join(log_dir, run_folder.SUMMARY)
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(
            "`log_dir` holds results. Use another folder, or `overwrite=True` "
            f"to replace them. Received: log_dir={log_dir}"
        )
    name = about["metric"]["name"]
    run = {
        "method": method,
        "settings": settings,
        "num_learners": len(seeds),
        "seeds": seeds,
        "train_seconds": seconds,
        "compile_seconds": 0.0,
        "published": [],
        "per_task": [
            {
                "task": task,
                name: runs.finite_mean(each),
                f"{name}_per_learner": runs.finite_list(each),
            }
            for task, each in enumerate(values)
        ],
    }
    os.makedirs(log_dir, exist_ok=True)
    run_folder.write_json(
        path, summary_file.make_summary({}, **about, runs=[run])
    )


def _check_name(name, value):
    value = validation.check_string(name, value)
    if not value.strip():
        raise validation.error(
            name, "a name, a string that is not empty", value
        )
    return value


def _check_seeds(seeds, num_learners):
    if seeds is None:
        return list(range(num_learners))
    rule = (
        f"{num_learners} different integers, one for each learner of `values`"
    )
    seeds = validation.check_list("seeds", seeds, rule=rule)
    if (
        not all(map(validation.is_integer, seeds))
        or len({*seeds}) != len(seeds)
        or len(seeds) != num_learners
    ):
        raise validation.error("seeds", rule, seeds)
    return list(map(int, seeds))
