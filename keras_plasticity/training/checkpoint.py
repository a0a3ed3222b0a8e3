"""Checkpoints for bit-exact resumption."""

import dataclasses
import json
import os
import zipfile
from typing import Any

import numpy as np

from keras_plasticity import validation
from keras_plasticity.files import atomic_write

_FORMAT = 1


@dataclasses.dataclass
class Checkpoint:
    """The state of a run at a task boundary.

    Attributes:
        settings: Dict of JSON-serializable values, which a run that resumes
            from here must share.
        progress: Dict of JSON-serializable values: how far the run has come.
        results: Dict from the name of each metric to an array of shape
            `(tasks, num_learners)`.
        state: List of arrays, the learners' variables.
    """

    settings: dict[str, Any]
    progress: dict[str, Any]
    results: dict[str, np.ndarray]
    state: list[np.ndarray]

    def save(self, path: str):
        """Writes the file.

        At any instant there is the old file or the new one, whole.

        Args:
            path: String, the file.
        """
        header = json.dumps(
            {
                "format": _FORMAT,
                "settings": self.settings,
                "progress": self.progress,
            }
        )
        arrays = {"header": np.array(header)}
        for name, values in self.results.items():
            arrays[f"results/{name}"] = values
        for number, values in enumerate(self.state):
            arrays[f"state/{number}"] = _to_standard_dtype(values)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)


def load(path: str) -> Checkpoint:
    """Reads what `Checkpoint.save` wrote.

    Args:
        path: String, the file.

    Returns:
        The `Checkpoint`.

    Raises:
        ValueError: If the file is not a checkpoint, or is damaged.
    """
    try:
        # Opened here: NumPy would leave a file that it cannot read open.
        with (
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            header = json.loads(str(arrays["header"]))
            if header["format"] != _FORMAT:
                raise KeyError(f"format {header['format']}")
            return Checkpoint(
                settings=header["settings"],
                progress=header["progress"],
                results={
                    name.removeprefix("results/"): arrays[name]
                    for name in arrays.files
                    if name.startswith("results/")
                },
                state=[
                    arrays[f"state/{number}"]
                    for number in range(
                        sum(name.startswith("state/") for name in arrays.files)
                    )
                ],
            )
    except (
        KeyError,
        ValueError,
        EOFError,
        IsADirectoryError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"The file is not a checkpoint of this version of "
            "`keras_plasticity`, or is damaged. Remove it to start afresh. "
            f"Received: checkpoint={path} ({type(error).__name__}: {error})"
        ) from error


def num_tasks_done(path: str) -> int:
    """How many tasks the run of a checkpoint has finished.

    Args:
        path: String, the file; it need not exist.

    Returns:
        Integer, the number of tasks that will not be trained on again.

    Raises:
        ValueError: If the file is not a checkpoint, or is damaged.
    """
    path = validation.check_path("path", path)
    return load(path).progress["tasks_done"] if os.path.exists(path) else 0


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Compares the settings of two runs.

    Args:
        there: Dict, the settings of the earlier run.
        here: Dict, those of this one.

    Returns:
        List with a string for each setting that differs.
    """
    missing = "nothing"
    return [
        f"{name}: {there.get(name, missing)} there, "
        f"{here.get(name, missing)} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name, missing) != here.get(name, missing)
    ]


def _to_standard_dtype(values):
    # NumPy's files cannot hold bfloat16; float32 represents it exactly.
    is_standard = values.dtype.kind in "biufc"
    return values if is_standard else values.astype("float32")
