"""Other programs that a trainer hands its results to: `--tracker`."""

import os

from absl import flags

from keras_plasticity import callbacks
from keras_plasticity import training
from keras_plasticity.callbacks.tracker import check_installed

# Flags belong to the module that calls `experiments.define_flags`.
flags.disclaim_key_flags()

_NAMES = ("csv", "mlflow", "wandb")


def define_flags(flag_values):
    """Defines `--tracker`."""
    flags.DEFINE_multi_enum(
        "tracker",
        None,
        _NAMES,
        "Besides TensorBoard: csv writes metrics.csv for each method, mlflow "
        "and wandb (offline, unless WANDB_MODE says otherwise) log to these "
        "programs. Repeat the flag for several.",
        flag_values=flag_values,
    )


def check(names):
    """Fails before a run, and not after it.

    Args:
        names: List of strings, of `--tracker`; `None` for none.

    Raises:
        ImportError: If a package is not installed.
    """
    for name in names or ():
        if name != "csv":
            check_installed(f"--tracker={name}", name)


class RecordTracker(training.TaskCallback):
    """Hands the record of each task to another program.

    A failure of that program does not end the run.

    Args:
        name: String, one of those of `--tracker`.
        tracker: `Tracker`.
        recorder: The `Recorder`, a callback before this one.
        unwritten: `Unwritten`, which is told of failures.
    """

    def __init__(self, name, tracker, recorder, unwritten):
        self._name = name
        self._tracker = tracker
        self._recorder = recorder
        self._unwritten = unwritten

    def on_task_begin(self, task, x, y):
        self._attempt(self._tracker.on_train_begin)

    def on_task_end(self, task, results):
        self._attempt(self._tracker.log, self._recorder.shown(), task)

    def on_train_end(self, logs=None):
        self._attempt(self._tracker.on_train_end)

    def get_config(self):
        return {"name": self._name}

    def get_state(self):
        return self._tracker.get_state()

    def set_state(self, state):
        self._tracker.set_state(state)

    def _attempt(self, function, *arguments):
        try:
            function(*arguments)
        except Exception as error:  # Whatever the other program raises.
            self._unwritten.add(f"--tracker={self._name}", error)


def make_tracker(name, problem, method, settings, log_dir):
    """Makes the tracker of a method's run.

    Args:
        name: String, one of those of `--tracker`.
        problem: String, the problem's name.
        method: String, the method's name.
        settings: Dict from name to value.
        log_dir: String, the folder of all methods of the run.

    Returns:
        `Tracker`.
    """
    if name == "csv":
        path = os.path.join(log_dir, method, "metrics.csv")
        return callbacks.CSVTracker(path)
    run_name = f"{method}-seed{settings['seed']}"
    settings = settings | {"log_dir": log_dir}
    if name == "mlflow":
        return callbacks.MLflowTracker(problem, run_name, settings)
    return callbacks.WandbTracker(problem, run_name, settings, log_dir)
