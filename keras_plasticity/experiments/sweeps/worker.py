"""A process that trains one setting after another by a trainer.

    python -m keras_plasticity.experiments.sweeps.worker trainer.py processes

It shares the machine with others: `processes` is the number of all. It reads
requests from its standard input, a JSON object a line, and answers each by a
line. When the input ends, because its driver has, it ends what it trains as a
signal would: with a checkpoint.
"""

import contextlib
import functools
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import traceback

import keras
from absl import flags

from keras_plasticity import backend
from keras_plasticity import datasets
from keras_plasticity import experiments
from keras_plasticity.backend import xla_flags
from keras_plasticity.experiments import command_line
from keras_plasticity.experiments import device
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import method_file


class _Loaded(BaseException):
    """Ends a trainer's file where it would start to train."""


class _TooLate(BaseException):
    """Ends a run that needs what this process has settled otherwise."""


def load_trainer(path: str):
    """The functions that a trainer's file gives to `experiments.launch`.

    Args:
        path: String, the file.

    Returns:
        Tuple of `define_flags` and `run`, see `launch`.

    Raises:
        ValueError: If it does not call `launch`.
    """
    found = []

    def launch(define_flags, run):
        found.extend((define_flags, run))
        raise _Loaded

    spec = importlib.util.spec_from_file_location("__main__", path)
    module = importlib.util.module_from_spec(spec)
    # absl looks there for the module that defines a flag.
    sys.modules["__main__"] = module
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    original = command_line.launch
    command_line.launch = experiments.launch = launch
    try:
        with contextlib.suppress(_Loaded):
            spec.loader.exec_module(module)
    finally:
        command_line.launch = experiments.launch = original
    if not found:
        raise ValueError(
            "it is no trainer, which would call "
            "`keras_plasticity.experiments.launch(define_flags, run)`."
        )
    return found


def run_trainer(define_flags, run, path, arguments):
    """Runs a trainer in this process.

    Args:
        define_flags: Function, see `launch`.
        run: Function, see `launch`.
        path: String, the trainer's file.
        arguments: List of strings, its flags.

    Returns:
        Tuple of its exit status and of its message, a string. The status is
        `None` if this process cannot run it.
    """
    # Layers are named as in a fresh process, which a checkpoint compares.
    keras.utils.clear_session()
    flag_values = flags.FlagValues()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(method_file.using(arguments))
        except ValueError as error:
            return exit_status.WRONG_FLAGS, str(error)
        return _run(define_flags, run, flag_values, [path, *arguments])


def _run(define_flags, run, flag_values, arguments):
    try:
        define_flags(flag_values)
        rest = flag_values(arguments)
        if len(rest) > 1:
            raise flags.Error(f"All arguments are flags. Received: {rest[1:]}")
        run(flag_values)
    except _TooLate:
        return None, ""
    except flags.Error as error:
        return exit_status.WRONG_FLAGS, str(error)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return int(error.code or 0), str(error)
        # As Python has it: what is no number is a message.
        return exit_status.FAILED, str(error.code)
    except Exception as error:
        traceback.print_exc()
        return exit_status.FAILED, f"{type(error).__name__}: {error}"
    return exit_status.WHOLE, ""


def main():
    path, processes = sys.argv[1:]
    backend.share_memory(int(processes))
    replies = os.fdopen(os.dup(1), "w")
    # What a trainer prints is no reply.
    os.dup2(2, 1)
    requests = queue.SimpleQueue()
    is_busy, has_ended = threading.Event(), threading.Event()
    threading.Thread(
        target=_read_requests, args=(requests, is_busy, has_ended), daemon=True
    ).start()

    def reply(**content):
        # There may be nobody left to read it.
        with contextlib.suppress(OSError):
            print(json.dumps(content), file=replies, flush=True)

    try:
        trainer = load_trainer(path)
    except BaseException as error:
        reply(error=f"{path} cannot be used: {type(error).__name__}: {error}")
        return
    datasets.load_mnist = functools.cache(_unchangeable(datasets.load_mnist))
    used = []
    backend.compile_small_loops_whole = _unless_too_late(
        backend.compile_small_loops_whole, used
    )
    device.choose_device = _unless_settled(device.choose_device)
    reply(error=None)
    while True:
        request = requests.get()
        is_busy.set()
        if request is None or has_ended.is_set():
            return
        with _output_to(request["log"]):
            status, message = run_trainer(*trainer, path, request["arguments"])
        if "--dry_run" not in request["arguments"]:
            used[:] = [xla_flags.are_small_loops_whole()]
        is_busy.clear()
        reply(status=status, message=message)


def _unless_too_late(compile_small_loops_whole, used):
    """XLA reads its flags once: the first run that trains settles them.

    Args:
        compile_small_loops_whole: Function, that of `backend`.
        used: List of what was settled, whether loops are whole; empty at first.
    """

    @functools.wraps(compile_small_loops_whole)
    def wrapper(*args, **kwargs):
        compile_small_loops_whole(*args, **kwargs)
        if used and used[0] != xla_flags.are_small_loops_whole():
            raise _TooLate

    return wrapper


def _unless_settled(choose_device):
    """A process keeps the device that its first run has chosen.

    What has computed on one may not leave it, or keeps its memory: a small
    network's choice of the CPU would be that of all large ones after it.
    """
    settled = []

    @functools.wraps(choose_device)
    def wrapper(*args, **kwargs):
        chosen = choose_device(*args, **kwargs)
        settled.append(chosen)
        if chosen != settled[0]:
            raise _TooLate
        return chosen

    return wrapper


def _unchangeable(load):
    """Arrays that all runs of this process read, so that none may write."""

    @functools.wraps(load)
    def wrapper(*args, **kwargs):
        arrays = load(*args, **kwargs)
        for array in arrays:
            array.flags.writeable = False
        return arrays

    return wrapper


def _read_requests(requests, is_busy, has_ended):
    for line in sys.stdin:
        requests.put(json.loads(line))
    has_ended.set()
    requests.put(None)
    if is_busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _output_to(path):
    """A context in which all that is printed goes to the end of a file."""
    before = [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(before, 1):
            os.dup2(saved, number)
            os.close(saved)


if __name__ == "__main__":
    main()
