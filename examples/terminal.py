"""What the trainers tell: on the terminal, and in `summary.json`."""

import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys

import keras
import numpy as np
from absl import flags
from rich import console
from rich import progress
from rich import table

from keras_plasticity import training

_TERMINAL = console.Console()
_MOST_ROWS = 12
_PACKAGES = ("keras", "numpy", "jax", "tensorflow", "torch", "tensorboard")


def flag_values(module):
    """The flags that a module defines.

    Args:
        module: The trainer's module.

    Returns:
        Dict from flag name to value.
    """
    defined = flags.FLAGS.get_key_flags_for_module(module)
    return {flag.name: flag.value for flag in defined}


def start_log_dir(log_dir, problem, run):
    """Settles where a run logs to.

    Args:
        log_dir: String, the folder that the user asked for, or `None`.
        problem: String, the name of the problem.
        run: String, what sets the run apart. The time is added to it.

    Returns:
        String, the folder. It exists, and holds no other run.

    Raises:
        FileExistsError: If there are logs in the folder that was asked for.
    """
    if log_dir is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        log_dir = os.path.join("logs", problem, f"{run}-{now}")
    os.makedirs(log_dir, exist_ok=True)
    logs = [
        name
        for name in os.listdir(log_dir)
        if name == "summary.json" or "tfevents" in name
    ]
    if logs:
        raise FileExistsError(
            "`--log_dir` holds another run, whose curves would mix with those "
            "of this one. Choose another folder, or remove it. "
            f"Received: --log_dir={log_dir} with {sorted(logs)[0]}"
        )
    return log_dir


def device_name():
    """The device that Keras computes on, such as `cpu:0` or `cuda:0`."""
    # Every backend's tensors know where they lie; no common function does.
    device = keras.ops.zeros(()).device
    name = str(device).rpartition("device:")[2].lower()
    kind = getattr(device, "device_kind", name)
    return name if kind in name else f"{name} ({kind})"


def print_start(title, settings):
    """Prints the backend, its device and the settings of a run.

    Args:
        title: String.
        settings: Dict from name to value.
    """
    _TERMINAL.print(
        f"{title}: backend {keras.backend.backend()} on {device_name()}",
        style="bold",
        highlight=False,
    )
    for name, value in settings.items():
        _TERMINAL.print(f"  --{name}={value}", highlight=False, soft_wrap=True)


class TaskProgress(training.TaskCallback):
    """A progress bar with tasks done, the last figure and the time left.

    It is a context manager and a callback of `training.OnlineTrainer`.

    Args:
        title: String, what stands before the bar.
        num_tasks: Integer.
        figure: Function of the results of a task that returns a string.
    """

    def __init__(self, title, num_tasks, figure):
        self._figure = figure
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:.1f}/{task.total} tasks"),
            progress.TextColumn("{task.fields[last]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=_TERMINAL,
            # Tasks may take minutes: a short memory would never see two.
            speed_estimate_period=24 * 3600,
        )
        self._bar = self._progress.add_task(title, total=num_tasks, last="")
        self._num_done = 0

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()

    def on_progress(self, task, done):
        self._progress.update(self._bar, completed=self._num_done + done)

    def on_task_end(self, task, results):
        self._num_done += 1
        self._progress.update(
            self._bar, completed=self._num_done, last=self._figure(results)
        )


def print_table(title, columns, records):
    """Prints what a run measured, at most a dozen rows of it.

    Args:
        title: String.
        columns: Dict from heading to a function of a record that returns the
            string for that column.
        records: List with the record of each task.
    """
    result = table.Table(*columns, title=title)
    for column in result.columns:
        column.justify = "right"
    shown = np.linspace(
        0, len(records) - 1, min(len(records), _MOST_ROWS)
    ).astype(int)
    for index in shown:
        result.add_row(*(cell(records[index]) for cell in columns.values()))
    _TERMINAL.print(result)


def write_summary(log_dir, settings, **entries):
    """Writes `summary.json`.

    Args:
        log_dir: String, the run's folder.
        settings: Dict from flag name to value.
        **entries: What was measured. Backend, device and versions are added.

    Returns:
        String, the path of the file.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    summary = {
        **entries,
        "backend": keras.backend.backend(),
        "device": device_name(),
        "flags": settings,
        "versions": versions,
    }
    path = os.path.join(log_dir, "summary.json")
    with open(path, "w") as file:
        json.dump(summary, file, indent=2, allow_nan=False)
    return path


def new_figure():
    """A figure to draw a run's curves on.

    Returns:
        Tuple of `matplotlib` figure and axes.
    """
    # Imported here: a run can do without a figure, and say so.
    from matplotlib import figure

    result = figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = result.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return result, axes


def check_matplotlib():
    """Fails before a run, and not after it, if no figure can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("The figure needs matplotlib: pip install -e '.[figures]'")


def standard_error(values):
    """Standard error of the mean over learners, those that are finite.

    Args:
        values: Float array of shape `(num_learners,)`.

    Returns:
        Float, 0 for less than two values.
    """
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def finite_mean(values):
    """Mean over the learners whose value is finite; `None` without any."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def finite_list(values):
    """A list for `summary.json`, where `None` stands for what is not finite."""
    return [float(v) if math.isfinite(v) else None for v in values]


def format_mean(text, values):
    """A text with the mean over the learners whose value is finite."""
    mean = finite_mean(values)
    return "diverged" if mean is None else text.format(mean)
