"""The log folder of a run, and its `summary.json`."""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil

import keras

from keras_plasticity.experiments import terminal
from keras_plasticity.files import atomic_write

_PACKAGES = ("keras", "numpy", "jax", "tensorflow", "torch", "tensorboard")
_SETTINGS = "settings.json"
_SUMMARY = "summary.json"


def open_folder(
    log_dir, problem, run, settings, may_grow=(), resume=False, overwrite=False
):
    """Opens the log folder of a run: a new one, or one to resume or replace.

    Args:
        log_dir: String, the folder that the user asked for, or `None`.
        problem: String, the name of the problem.
        run: String, the first part of a new folder's name; the time follows.
        settings: Dict from name to value, all that the results depend on, the
            names of the methods under `"method"`.
        may_grow: Names of settings that may be larger when a run is resumed.
        resume: Boolean, whether to resume the run in the folder.
        overwrite: Boolean, whether to remove the run in the folder.

    Returns:
        Tuple of the folder and of whether there is a run to resume.

    Raises:
        FileExistsError: If there is a run in the folder, and neither `resume`
            nor `overwrite`.
        ValueError: If the run in the folder has other settings.
    """
    if resume and overwrite:
        raise ValueError(
            "--resume continues a run, --overwrite removes it. Give one of "
            "them."
        )
    if log_dir is None:
        if resume or overwrite:
            raise ValueError(
                f"--{'resume' if resume else 'overwrite'} needs the folder of "
                "the run. Give it by --log_dir."
            )
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        log_dir = os.path.join("logs", problem, f"{run}-{now}")
    there = _files_of_a_run(log_dir)
    if there and not resume and not overwrite:
        raise FileExistsError(
            "--log_dir holds another run. Use --resume to continue it, "
            "--overwrite to remove it, or another folder. "
            f"Received: --log_dir={log_dir} with {there[0]}"
        )
    if there:
        before = _read_settings(log_dir)
        if resume:
            _check_same(before, settings, may_grow)
        else:
            # What is found last is removed last: a run that was removed in part
            # must not be taken for an empty folder.
            _remove(log_dir, before["method"] + there)
    os.makedirs(log_dir, exist_ok=True)
    _write(os.path.join(log_dir, _SETTINGS), settings)
    return log_dir, bool(there) and resume


def write_summary(log_dir, settings, **entries):
    """Writes `summary.json`.

    Args:
        log_dir: String, the run's folder.
        settings: Dict from flag name to value.
        **entries: What was measured. Backend, device and versions are added.

    Returns:
        Dict, what was written.
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
        "device": terminal.device_name(),
        "flags": settings,
        "versions": versions,
    }
    _write(os.path.join(log_dir, _SUMMARY), summary)
    return summary


def read_summary(log_dir):
    """Reads the `summary.json` of a run.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of something else.
    """
    path = os.path.join(log_dir, _SUMMARY)
    if not os.path.exists(path):
        raise FileNotFoundError(
            "There is no `summary.json`: a folder that a trainer wrote is "
            f"needed, of a run that ended. Received: {log_dir}"
        )
    with open(path) as file:
        try:
            summary = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if not {"problem", "runs", "metric"} <= summary.keys():
        raise ValueError(f"{path} is not of these trainers.")
    return summary


def _files_of_a_run(log_dir):
    """Names of the files that only a run leaves in its folder."""
    if not os.path.isdir(log_dir):
        return []
    return sorted(
        name
        for name in os.listdir(log_dir)
        if name in (_SETTINGS, _SUMMARY) or "tfevents" in name
    )


def _read_settings(log_dir):
    path = os.path.join(log_dir, _SETTINGS)
    if not os.path.exists(path):
        raise ValueError(
            f"The run in --log_dir has no {_SETTINGS}, which would tell what "
            "it is. Choose another folder, or remove it. "
            f"Received: --log_dir={log_dir}"
        )
    with open(path) as file:
        return json.load(file)


def _remove(log_dir, names):
    """Removes files and the folders of methods, and nothing else."""
    for name in names:
        path = os.path.join(log_dir, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)


def _check_same(before, settings, may_grow):
    # As JSON has it: tuples are lists there.
    now = json.loads(json.dumps(settings))
    names = dict.fromkeys([*before, *now])
    if before["method"] != now["method"]:
        names = ["method"]  # With it go all settings that a method has.
    different = [
        f"{name}={before.get(name)} there, {name}={now.get(name)} here"
        for name in names
        if before.get(name) != now.get(name)
        and not (name in may_grow and now.get(name, 0) > before.get(name, 0))
    ]
    if different:
        raise ValueError(
            "The run in --log_dir has other settings, so --resume cannot "
            "continue it. Give the same flags, or another --log_dir, or "
            f"--overwrite to remove that run: {'; '.join(different)}"
        )


def _write(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False))
