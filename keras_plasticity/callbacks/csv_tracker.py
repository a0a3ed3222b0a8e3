import csv
import math
import pathlib
from typing import Any

from keras_plasticity import validation
from keras_plasticity.callbacks.tracker import Tracker
from keras_plasticity.files import atomic_write
from keras_plasticity.training import AppendOnly


class CSVTracker(Tracker):
    """Writes metrics to a CSV file, a row for each step.

    It is a callback for `model.fit`, where a step is an epoch, and for
    `keras_plasticity.training.OnlineTrainer`, where it is a task. There, the
    results of several learners are their mean, over those whose value is
    finite, with its standard error in the column `<name>_standard_error`, and
    their number in the column `learners`.

    (`keras.callbacks.CSVLogger` writes what `fit` logs, too. This callback is
    for loops without `fit`, for runs that are resumed, and for logs that get
    further entries on the way.)

    Args:
        path: String, the file. It is replaced if there is one, unless training
            is resumed from a checkpoint: then the file has all rows of an
            unbroken run.

    Example:

    ```python
    tracker = keras_plasticity.callbacks.CSVTracker("metrics.csv")
    model.fit(x, y, epochs=10, callbacks=[tracker])
    ```
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = pathlib.Path(validation.check_path("path", path))
        self._rows = []
        self._columns = ["step"]
        # Whether the file has all rows.
        self._is_whole = False

    def get_state(self) -> Any:
        return AppendOnly(self._rows)

    def set_state(self, state: Any):
        """Continues the rows of another tracker.

        Args:
            state: What its `get_state` returned.
        """
        self._rows = [
            dict(validation.check_mapping("state", row, ["step"]))
            for row in validation.check_list("state", state)
        ]
        for row in self._rows:
            self._add_columns(row)
            self._last_step = row["step"]

    def _open(self):
        self._rewrite()

    def _write(self, numbers, step):
        row = {"step": step}
        for name, number in numbers.items():
            # JSON, which checkpoints are made of, has no other numbers.
            row[name] = number if math.isfinite(number) else str(number)
        self._rows.append(row)
        has_new = self._add_columns(row)
        if has_new or not self._is_whole or not self._path.exists():
            self._rewrite()
            return
        # What fails leaves half a line.
        self._is_whole = False
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            self._writer(file).writerow(row)
        self._is_whole = True

    def _add_columns(self, row):
        """Adds the columns of a row; returns whether there are new ones."""
        new = [name for name in row if name not in self._columns]
        self._columns += new
        return bool(new)

    def _rewrite(self):
        self._is_whole = False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(self._path) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(self._rows)
        self._is_whole = True

    def _writer(self, file):
        return csv.DictWriter(file, self._columns, restval="")
