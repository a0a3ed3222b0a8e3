"""The folder of a run: which run it is, and who writes to it."""

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import sys

import filelock
from absl import logging

from keras_plasticity.files import atomic_write
from keras_plasticity.files import is_alive

_SETTINGS = "settings.json"
SUMMARY = "summary.json"
# The operating system frees the lock when its process dies, however it dies.
LOCK = "run.lock"
_HOLDER = "run.lock.json"


class RunFolder:
    """The folder that a process writes a run to, which no other one may.

    Args:
        path: String.
        settings: Dict, all that the results depend on.
        is_resumed: Boolean, whether there is a run to resume.
        lock: `filelock.FileLock` of the folder, acquired.
    """

    def __init__(self, path, settings, is_resumed, lock):
        self.path = path
        self.is_resumed = is_resumed
        self._settings = settings
        self._lock = lock

    def keep(self):
        """Makes the folder anew if somebody has removed it.

        Raises:
            OSError: If it cannot be written.
        """
        if not os.path.exists(os.path.join(self.path, LOCK)):
            try:
                self._lock.release()
                self._lock = lock_folder(self.path)
            except ValueError as error:
                raise OSError(str(error)) from error
        path = os.path.join(self.path, _SETTINGS)
        if not os.path.exists(path):
            write_json(path, self._settings)

    def close(self):
        """Lets other processes have the folder."""
        unlock_folder(self.path, self._lock)


def open_folder(
    log_dir, problem, run, settings, may_grow=(), resume=False, overwrite=False
):
    """Opens the folder of a run: a new one, or one to resume or replace.

    Args:
        log_dir: String, the folder that the user asked for, or `None`.
        problem: String, the name of the problem.
        run: String, the first part of a new folder's name; the time follows.
        settings: Dict from name to value, all that the results depend on, the
            names of the methods under `"method"`.
        may_grow: Names of settings that may be larger when a run is resumed.
        resume: Boolean, whether to resume the run in the folder; or `"auto"`:
            if there is one.
        overwrite: Boolean, whether to remove the run in the folder.

    Returns:
        `RunFolder`.

    Raises:
        FileExistsError: If there is a run in the folder, and neither `resume`
            nor `overwrite`.
        ValueError: If the folder cannot be what was asked for.
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
    elif not log_dir.strip():
        raise ValueError(
            "--log_dir must be the name of a folder. Leave it out for one "
            f"with a name of its own within logs. Received: --log_dir={log_dir}"
        )
    if resume is True and _is_terminal() and not os.path.isdir(log_dir):
        raise _nothing_to_resume(log_dir)
    lock = lock_folder(log_dir)
    try:
        there = _files_of_a_run(log_dir)
        if there and not resume and not overwrite:
            raise FileExistsError(
                "--log_dir holds another run. Use --resume to continue it, "
                "--overwrite to remove it, or another folder. "
                f"Received: --log_dir={log_dir} with {there[0]}"
            )
        if resume and not there and resume != "auto" and _is_terminal():
            raise _nothing_to_resume(log_dir)
        if there:
            before = _read_settings(log_dir)
            if resume:
                _check_same(before, settings, may_grow)
            else:
                # What is found last is removed last: a run that was removed in
                # part must not be taken for an empty folder.
                _remove(log_dir, before["method"] + there)
        write_json(os.path.join(log_dir, _SETTINGS), settings)
    except OSError as error:
        unlock_folder(log_dir, lock)
        if isinstance(error, FileExistsError):
            raise
        raise _cannot_be_written(log_dir, error) from error
    except BaseException:
        unlock_folder(log_dir, lock)
        raise
    return RunFolder(log_dir, settings, bool(there) and bool(resume), lock)


def read_json(path, kind=dict):
    """Reads a JSON file.

    Args:
        path: String.
        kind: The type of what it must hold. Defaults to `dict`.

    Raises:
        ValueError: If it is damaged, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: it is not JSON ({error}). Remove the run, or "
            "give another folder."
        ) from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{path} is damaged: it must hold a JSON "
            f"{'object' if kind is dict else kind.__name__}, and holds "
            f"{str(content)[:40]!r}."
        )
    return content


def write_json(path, content):
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, allow_nan=False), encoding="utf-8"
        )


def lock_folder(log_dir):
    """The lock of a folder, which is made if need be."""
    lock = filelock.FileLock(os.path.join(log_dir, LOCK), timeout=0)
    try:
        os.makedirs(log_dir, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(
            "--log_dir is being written to by another run, "
            f"{_holder(log_dir)}. Wait for its end, stop it, or give another "
            f"folder. Received: --log_dir={log_dir}"
        ) from error
    except NotImplementedError:
        # Some file systems of clusters have no locks.
        logging.warning(
            "%s cannot be locked there: see that no other process writes to it "
            "meanwhile.",
            log_dir,
        )
    except OSError as error:
        raise _cannot_be_written(log_dir, error) from error
    try:
        write_json(
            os.path.join(log_dir, _HOLDER),
            {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "command": " ".join(sys.argv),
            },
        )
    except OSError as error:
        lock.release()
        raise _cannot_be_written(log_dir, error) from error
    return lock


def _holder(log_dir):
    """Who holds the lock of a folder, in words."""
    try:
        holder = read_json(os.path.join(log_dir, _HOLDER))
        process, host = holder["process"], holder["host"]
        command = holder["command"]
    except (OSError, ValueError, KeyError):
        return "whose process is not known"  # It is just starting.
    if host == socket.gethostname() and not is_alive(process):
        return f"what process {process} has started ({command})"
    return f"process {process} on {host} ({command})"


def unlock_folder(log_dir, lock):
    if lock.is_locked:
        # Whoever removed the folder has removed this, too.
        with contextlib.suppress(OSError):
            os.remove(os.path.join(log_dir, _HOLDER))
    lock.release()


def _nothing_to_resume(log_dir):
    return ValueError(
        "--log_dir holds no run to resume. Leave --resume out to start a new "
        "one there, or give --resume=auto to resume one if there is one. "
        f"Received: --log_dir={log_dir}"
    )


def _cannot_be_written(log_dir, error):
    return ValueError(
        "--log_dir must be a folder that can be written. "
        f"Received: --log_dir={log_dir} ({error})"
    )


def _is_terminal():
    return sys.stdin.isatty() and sys.stdout.isatty()


def _files_of_a_run(log_dir):
    """Names of the files that only a run leaves in its folder."""
    return sorted(
        name
        for name in os.listdir(log_dir)
        if name in (_SETTINGS, SUMMARY) or "tfevents" in name
    )


def _read_settings(log_dir):
    path = os.path.join(log_dir, _SETTINGS)
    if not os.path.exists(path):
        raise ValueError(
            f"The run in --log_dir has no {_SETTINGS}, which would tell what "
            "it is. Choose another folder, or remove it. "
            f"Received: --log_dir={log_dir}"
        )
    settings = read_json(path)
    methods = settings.get("method")
    if not isinstance(methods, list) or not all(
        # Of which only folders within this one may be removed.
        isinstance(name, str) and re.fullmatch(r"\w+(,\w+)*", name)
        for name in methods
    ):
        raise ValueError(
            f"{path} is damaged: its entry `method` must be a list of names of "
            f"methods, and is {str(methods)[:40]}."
        )
    return settings


def _remove(log_dir, names):
    """Removes files and the folders of methods, and nothing else."""
    for name in names:
        path = os.path.join(log_dir, name)
        if os.path.isdir(path) and not os.path.islink(path):
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
        and not (
            name in may_grow and _has_grown(before.get(name), now.get(name))
        )
    ]
    if different:
        raise ValueError(
            "The run in --log_dir has other settings, so --resume cannot "
            "continue it. Give the same flags, or another --log_dir, or "
            f"--overwrite to remove that run: {'; '.join(different)}"
        )


def _has_grown(before, now):
    numbers = all(isinstance(each, (int, float)) for each in (before, now))
    return numbers and now > before
