"""What the trainers print: settings, progress and tables."""

import contextlib
import sys

import keras
from rich import box
from rich import console
from rich import progress
from rich import table

from keras_plasticity import training
from keras_plasticity.utils import progress_bar

# Of what a flag holds, such as a folder, nothing is markup.
_TERMINAL = console.Console(markup=False, emoji=False, highlight=False)


class LastingStream:
    """A stream that takes text even if it can no longer be written.

    Such as the output of a run that goes to a file on a disk which is full, or
    to a reader that has gone.

    Args:
        stream: Text stream.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output():
    """A context in which printing does not fail."""
    with (
        contextlib.redirect_stdout(LastingStream(sys.stdout)),
        contextlib.redirect_stderr(LastingStream(sys.stderr)),
    ):
        yield


def console_of_terminal():
    """The `rich.console.Console` that all of this prints to."""
    return _TERMINAL


def device_name():
    """The device that Keras computes on, such as `cpu:0` or `cuda:0`."""
    # Every backend's tensors know where they lie; no common function does.
    device = keras.ops.zeros(()).device
    name = str(device).rpartition("device:")[2].lower()
    kind = getattr(device, "device_kind", name)
    return name if kind in name else f"{name} ({kind})"


def print_start(title, device_choice, settings):
    """Prints the backend, its device and the settings of a run.

    Args:
        title: String.
        device_choice: String, the kind of device and why it was chosen.
        settings: Dict from name to value.
    """
    _TERMINAL.print(
        f"{title}: backend {keras.backend.backend()} on {device_name()}",
        style="bold",
    )
    _TERMINAL.print(f"  device: {device_choice}")
    print_settings("  ", settings)


def print_settings(title, settings):
    """Prints settings as the flags that they are."""
    words = [
        f"--{name}={value}"
        for name, values in settings.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    _TERMINAL.print(f"{title}{' '.join(words)}")


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
        self._progress = progress_bar.ProgressBar(
            progress.TextColumn("{task.completed:.1f}/{task.total} tasks"),
            progress.TextColumn("{task.fields[last]}"),
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

    def get_state(self):
        return self._num_done

    def set_state(self, state):
        self._num_done = state
        # Tasks of another day say nothing of the time that is left.
        self._progress.reset(self._bar, completed=state)


def print_table(title, columns, records):
    """Prints what a run measured.

    Args:
        title: String.
        columns: Dict from heading to a function of a record that returns the
            string for that column.
        records: List of the records, one a row.
    """
    result = table.Table(title=title, box=box.SIMPLE_HEAD)
    for name in columns:
        # Folded where the terminal is narrow: cut, names of methods look alike.
        result.add_column(name, justify="right", overflow="fold")
    for record in records:
        result.add_row(*(cell(record) for cell in columns.values()))
    _TERMINAL.print(result)
