"""The `summary.json` of a run."""

import importlib.metadata
import os
import platform

import keras

from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import terminal

# What is read of a summary.
_NUMBER = (int, float)
_ENTRIES = {
    "problem": str,
    "title": str,
    "metric": dict,
    "x_axis": dict,
    "tasks_per_bin": int,
    "runs": list,
    "backend": str,
    "flags": dict,
}
_ENTRIES_OF_METRIC = {
    "name": str,
    "label": str,
    "lower_is_better": bool,
    "scale": _NUMBER,
    "format": str,
}
_ENTRIES_OF_X_AXIS = {"label": str, "per_task": _NUMBER}
_ENTRIES_OF_RUN = {
    "method": str,
    "settings": dict,
    "num_learners": int,
    "train_seconds": _NUMBER,
    "compile_seconds": _NUMBER,
    "published": list,
    "per_task": list,
}
_PACKAGES = ("keras", "numpy", "jax", "tensorflow", "torch", "tensorboard")


def make_summary(settings, **entries):
    """The content of `summary.json`.

    Args:
        settings: Dict from flag name to value.
        **entries: What was measured. Backend, device and versions are added.

    Returns:
        Dict.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    # A nightly build is a package of another name.
    versions["keras"] = keras.__version__
    return {
        **entries,
        "backend": keras.backend.backend(),
        "device": terminal.device_name(),
        "flags": settings,
        "versions": versions,
    }


def read_summary(log_dir):
    """Reads the `summary.json` of a run.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of something else.
    """
    path = os.path.join(log_dir, run_folder.SUMMARY)
    if not os.path.exists(path):
        raise FileNotFoundError(
            "There is no `summary.json`: a folder that a trainer wrote is "
            f"needed, of a run that ended. Received: {log_dir}"
        )
    summary = run_folder.read_json(path)
    for entries, wanted, where in (
        (summary, _ENTRIES, ""),
        (summary.get("metric"), _ENTRIES_OF_METRIC, "metric"),
        (summary.get("x_axis"), _ENTRIES_OF_X_AXIS, "x_axis"),
        *((run, _ENTRIES_OF_RUN, "runs") for run in _runs(summary)),
    ):
        missing = _missing(entries, wanted)
        if missing:
            raise ValueError(
                f"{path} is not of these trainers, or of another version: "
                f"it has no {', '.join(missing)}{where and f' in `{where}`'}."
            )
    name = f"{summary['metric']['name']}_per_learner"
    for run in summary["runs"]:
        for number, task in enumerate(run["per_task"]):
            if not _has_results(task, name, run["num_learners"]):
                raise ValueError(
                    f"{path} is damaged, or of another version: in `per_task` "
                    f"of {run['method']}, task {number} has no `{name}` with "
                    f"a number, or null, for each of {run['num_learners']} "
                    "learners."
                )
    return summary


def _has_results(task, name, num_learners):
    values = task.get(name) if isinstance(task, dict) else None
    return (
        isinstance(values, list)
        and len(values) == num_learners
        and all(value is None or _is_number(value) for value in values)
    )


def _is_number(value):
    return isinstance(value, _NUMBER) and not isinstance(value, bool)


def _runs(summary):
    found = summary.get("runs")
    return found if isinstance(found, list) else []


def _missing(entries, wanted):
    """Names of entries that are not there, or are of another type."""
    if not isinstance(entries, dict):
        return list(wanted)
    return [
        f"`{name}`"
        for name, kind in wanted.items()
        if not isinstance(entries.get(name), kind)
    ]
