"""Checkpoints for bit-exact resumption.

A checkpoint is a file of NumPy's format `.npz`: a ZIP archive, which has a
checksum of each array. (The formats of Keras, Orbax and safetensors were
weighed against it: BUILD_NOTES.md.) Beside it is a `Journal` of what only
grows. Nothing in them is executed.
"""

import dataclasses
import errno
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from keras_plasticity import validation
from keras_plasticity.files import atomic_write
from keras_plasticity.training.journal import AppendOnly
from keras_plasticity.training.journal import Journal

_FORMAT = 3
# What stands in the header for an array, with its number, and for a list in the
# journal, with its name.
_ARRAY = "__array__"
_LIST = "__list__"
# What the system says of places in a file that are not there, and of a journal
# that is not.
_OF_DAMAGE = (None, errno.EINVAL, errno.ENOENT, errno.EISDIR)


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that belongs to another run."""


@dataclasses.dataclass
class Position:
    """How far a run is within a task.

    Attributes:
        group: Integer, the group of learners that trains. Those before it have
            ended the task, those after it have not begun.
        epoch: Integer, the epoch that it is in.
        steps: Integer, the steps of that epoch that are done.
        metrics: List of arrays, the group's metrics in that epoch.
        parts: List of dicts, the results of the groups before it.
    """

    group: int
    epoch: int
    steps: int
    metrics: list[np.ndarray]
    parts: list[dict[str, np.ndarray]]


@dataclasses.dataclass
class Checkpoint:
    """The state of a run.

    Attributes:
        settings: Dict from name to value, the arguments of `fit` that a run
            which resumes from here must share.
        identity: Dict, see `RunIdentity`.
        tasks_done: Integer.
        results: `AppendOnly` with a dict for each task that is done, from the
            name of each metric to a list of the learners' values.
        state: List of arrays, the learners' variables.
        callbacks: List of the states of all callbacks.
        train_seconds: Float.
        compile_seconds: Float.
        jit_compile: Boolean or `"auto"`, whether steps are compiled.
        group_sizes: List of integers, how many learners train side by side.
        position: `Position` within the next task; `None` if it has not begun.
    """

    settings: dict[str, Any]
    identity: dict[str, Any]
    tasks_done: int
    results: list[dict[str, list[float]]]
    state: list[np.ndarray]
    callbacks: list[Any]
    train_seconds: float
    compile_seconds: float
    jit_compile: bool | str
    group_sizes: list[int]
    position: Position | None = None

    def save(self, path: str, journal: Journal, is_old_whole: bool = True):
        """Writes the file.

        At any instant there is the old file or the new one, whole. The old one
        is kept as `previous(path)`.

        Args:
            path: String, the file.
            journal: `Journal` of the run, `journal_of(path)`.
            is_old_whole: Boolean; `False` if the old file is damaged, and the
                one before it shall be kept. Defaults to `True`.
        """
        arrays, lists = [], {}
        position = self.position and vars(self.position)
        content = _pack(vars(self) | {"position": position}, arrays, lists)
        header = json.dumps(
            {
                "format": _FORMAT,
                "content": content,
                # It must be there before what refers to it.
                "journal": journal.append(lists),
            }
        )
        with (
            atomic_write(
                path, previous=previous(path) if is_old_whole else None
            ) as temporary,
            open(temporary, "wb") as file,
        ):
            np.savez(
                file,
                header=np.frombuffer(header.encode(), "uint8"),
                **{str(i): array for i, array in enumerate(arrays)},
            )


def previous(path: str) -> pathlib.Path:
    """Where the checkpoint before the last one is kept."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def journal_of(path: str) -> Journal:
    """The `Journal` that belongs to a checkpoint."""
    path = pathlib.Path(path)
    return Journal(path.with_name(f"{path.name}.journal.jsonl"))


def files(path: str) -> list[str]:
    """Those files that are there to resume from, damaged or not."""
    return [
        str(each) for each in (path, previous(path)) if os.path.exists(each)
    ]


def load(path: str, journal: Journal) -> tuple[Checkpoint, str | None]:
    """Reads the last checkpoint that is whole.

    Args:
        path: String, the file.
        journal: `Journal` of the run, `journal_of(path)`.

    Returns:
        Tuple of the `Checkpoint` and a message: why it is the one before the
        last one, or `None`.

    Raises:
        CheckpointError: If neither file can be read.
    """
    before = previous(path)
    if not os.path.exists(path):
        # The process was killed between two renames, or somebody removed it.
        message = f"There is no {path}: training resumes from {before}."
        return _read(before, journal), message
    try:
        return _read(path, journal), None
    except CheckpointError as error:
        if not os.path.exists(before):
            raise
        checkpoint = _read(before, journal)
        message = (
            f"{error} It is left out: training resumes from the checkpoint "
            f"before it, {before}, with {checkpoint.tasks_done} tasks done."
        )
        return checkpoint, message


def num_tasks_done(path: str) -> int:
    """How many tasks the run of a checkpoint has finished.

    Args:
        path: String, the file; it need not exist.

    Returns:
        Integer, the number of tasks that will not be trained on again.

    Raises:
        CheckpointError: If the file is not a checkpoint, or is damaged.
    """
    path = validation.check_path("path", path)
    if not files(path):
        return 0
    return load(path, journal_of(path))[0].tasks_done


def num_tasks_begun(path: str) -> int:
    """How many tasks a run has begun that resumes from a checkpoint.

    Args:
        path: String, the file; it need not exist.

    Returns:
        Integer, the number of tasks before which `on_task_begin` of callbacks
        was called, and will not be called again.

    Raises:
        CheckpointError: If the file is not a checkpoint, or is damaged.
    """
    if not files(path):
        return 0
    saved, _ = load(path, journal_of(path))
    return saved.tasks_done + (saved.position is not None)


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
        # As text, in which NaN is like NaN.
        if str(there.get(name, missing)) != str(here.get(name, missing))
    ]


def _read(path, journal):
    try:
        # Opened here: NumPy would leave a file that it cannot read open.
        with open(path, "rb") as file:
            return _checked(_read_content(file, journal))
    except Exception as error:
        # Of any kind: a damaged archive may be anything to those who read it.
        # What the disk fails to read now may be whole.
        if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
            raise
        raise CheckpointError(
            "The file is not a checkpoint of this version of "
            "`keras_plasticity`, or is damaged. Remove it to start afresh. "
            f"Received: checkpoint={path} ({type(error).__name__}: {error})"
        ) from error


def _read_content(file, journal):
    with np.load(file, allow_pickle=False) as arrays:
        header = json.loads(bytes(arrays["header"]))
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, not {_FORMAT}")
        lists = journal.read(header["journal"])
        return _unpack(header["content"], arrays, lists)


def _checked(content):
    """The `Checkpoint` of what a file holds, if that can be one."""
    position = content.pop("position")
    if position is not None:
        position = Position(**position)
        _check_counts(vars(position), ("group", "epoch", "steps"))
        _check_arrays("metrics", position.metrics)
        for part in position.parts:
            _check_arrays("parts", part.values())
    result = Checkpoint(**content, position=position)
    _check_counts(content, ("tasks_done",))
    for name in ("train_seconds", "compile_seconds"):
        if not 0 <= float(content[name]) < math.inf:
            raise ValueError(f"{name}={content[name]!r}")
    if result.jit_compile not in (True, False, "auto"):
        raise ValueError(f"jit_compile={result.jit_compile!r}")
    for size in result.group_sizes:
        _check_counts({"group_sizes": size}, ("group_sizes",))
    for name, kind in (
        ("settings", dict),
        ("identity", dict),
        ("results", list),
        ("state", list),
        ("callbacks", list),
    ):
        if not isinstance(content[name], kind):
            raise ValueError(f"{name}={content[name]!r}")
    for name, kind in (
        ("data", dict),
        ("variables", list),
        ("model", dict),
        ("learners", list),
        ("versions", dict),
    ):
        if not isinstance(result.identity.get(name), kind):
            raise ValueError(f"identity[{name!r}] is no {kind.__name__}")
    for each in result.identity["learners"]:
        if not isinstance(each, dict):
            raise ValueError(f"identity['learners'] holds {each!r}")
    for each in result.results:
        if not isinstance(each, dict):
            raise ValueError("results hold what is no dict")
        for values in each.values():
            np.asarray(values, "float64")
    _check_arrays("state", result.state)
    if len(result.results) != result.tasks_done:
        raise ValueError(
            f"results of {len(result.results)} tasks, of {result.tasks_done} "
            "tasks done"
        )
    return result


def _check_counts(values, names):
    for name in names:
        if type(values[name]) is not int or values[name] < 0:
            raise ValueError(f"{name}={values[name]!r}")


def _check_arrays(name, arrays):
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError(f"{name} holds what is no array")


def _pack(nest, arrays, lists, path=""):
    """What the header holds of a nest.

    Args:
        nest: Nest of dicts, lists, arrays and plain values.
        arrays: List, to which the arrays are added.
        lists: Dict, to which lists that only grow are added.
        path: String, where in the checkpoint the nest is.
    """
    if isinstance(nest, dict):
        return {
            name: _pack(each, arrays, lists, f"{path}/{name}")
            for name, each in nest.items()
        }
    if isinstance(nest, AppendOnly):
        lists[path] = nest
        return {_LIST: path}
    if isinstance(nest, (list, tuple)):
        return [
            _pack(each, arrays, lists, f"{path}/{i}")
            for i, each in enumerate(nest)
        ]
    if isinstance(nest, np.ndarray):
        arrays.append(nest.astype(standard_dtype(nest.dtype), copy=False))
        return {_ARRAY: len(arrays) - 1}
    return nest


def _unpack(nest, arrays, lists):
    if isinstance(nest, dict):
        if nest.keys() == {_ARRAY}:
            return arrays[str(nest[_ARRAY])]
        if nest.keys() == {_LIST}:
            return lists[nest[_LIST]]
        return {
            name: _unpack(each, arrays, lists) for name, each in nest.items()
        }
    if isinstance(nest, list):
        return [_unpack(each, arrays, lists) for each in nest]
    return nest


def standard_dtype(dtype):
    """The type in which a checkpoint keeps arrays of a type."""
    # NumPy's files cannot hold bfloat16; float32 represents it exactly.
    return dtype if dtype.kind in "biufc" else np.dtype("float32")
