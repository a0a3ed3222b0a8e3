"""What callbacks that hand metrics to another program have in common."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.training import TaskCallback


class Tracker(keras.callbacks.Callback, TaskCallback):
    """Base class of callbacks that hand metrics to another program.

    In `fit` they hand over the logs of each epoch; a later `fit` continues from
    the last step. In `OnlineTrainer` they hand over the results of each task:
    of several learners the mean of those whose value is finite, its standard
    error as `<name>_standard_error`, and their number as `learners`. A callback
    that is resumed from a checkpoint continues its run.

    Subclasses implement `_open`, `_write` and `_close`.

    Args:
        settings: Dict from name to value, the settings of the run; `None` for
            none.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None):
        super().__init__()
        if settings is not None:
            validation.check_mapping("settings", settings)
        self._settings = dict(settings or {})
        self._is_open = False
        self._last_step = -1
        # What the other program calls the run, once it has begun.
        self._run_id = None

    def log(self, values: Mapping[str, float], step: int):
        """Hands over some numbers, in a loop of one's own.

        Args:
            values: Dict from name to number.
            step: Integer, not below that of the call before.
        """
        validation.check_mapping("values", values)
        step = validation.check_integer("step", step, 0)
        numbers = {}
        for name, value in values.items():
            name = validation.check_string("values", name)
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError) as error:
                rule = "a dict of numbers"
                raise validation.error("values", rule, values) from error
        self._start()
        self._write(numbers, step)
        self._last_step = step

    def on_train_begin(self, logs: dict | None = None):
        self._start()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        step = epoch if epoch > self._last_step else self._last_step + 1
        self.log(logs or {}, step)

    def on_task_begin(self, task: int, x: Any, y: Any):
        self._start()

    def on_task_end(self, task: int, results: dict[str, np.ndarray]):
        values = {}
        for name, each in results.items():
            finite = each[np.isfinite(each)]
            values[name] = finite.mean() if len(finite) else math.nan
            if len(each) > 1:
                error = math.nan
                if len(finite) > 1:
                    error = finite.std(ddof=1) / math.sqrt(len(finite))
                values[f"{name}_standard_error"] = error
                values["learners"] = len(finite)
        self.log(values, task)

    def on_train_end(self, logs: dict | None = None):
        """Ends the run; a later `fit` continues it."""
        if self._is_open:
            self._is_open = False
            self._close()

    def get_state(self) -> Any:
        return {"run_id": self._run_id, "last_step": self._last_step}

    def set_state(self, state: Any):
        """Continues the run of another tracker.

        Args:
            state: What its `get_state` returned.
        """
        validation.check_mapping(
            "state",
            state,
            ("run_id", "last_step"),
            "what `get_state` returned",
        )
        if state["run_id"] is not None:
            validation.check_string("state", state["run_id"])
        self._run_id = state["run_id"]
        self._last_step = validation.check_integer(
            "state", state["last_step"], -1
        )

    def _start(self):
        if not self._is_open:
            self._open()
            self._is_open = True

    def _open(self):
        """Begins the run, or continues it."""
        raise NotImplementedError

    def _write(self, numbers, step):
        """Hands over a dict of floats."""
        raise NotImplementedError

    def _close(self):
        """Ends the run."""


def check_installed(user: str, package: str):
    """Fails at the start, and not when there is something to write.

    Args:
        user: String, what needs the package.
        package: String; the extra that installs it has the same name.

    Raises:
        ImportError: If it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{user} needs {package}: pip install -e '.[{package}]'"
        )
