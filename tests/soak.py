"""Runs of the trainers under whatever may happen to them.

    KERAS_BACKEND=jax python -m tests.soak --kills=200 --files=5000

Each part prints one line with what it counted, and fails with what it found:

- `kills`: trainers are ended by random signals at random instants, and resumed
    until they are done. Results must equal those of a run that nobody ended.
- `files`: each file that a run is loaded from is damaged in random ways. It
    must be read as it was written, or refused with one clear error.
- `disks`: no file can be written any more, or the folder vanishes, at a random
    instant, for a while or for good. The run must go on, say what is missing,
    and be resumed to the same results.
- `clocks`: the clock jumps back and forth.
- `tasks`: memory and open files do not grow with the number of tasks.
- `folders`: two processes on one folder: one has it, the other is refused.

Runs are forked from a process that has imported all, so that they start at
once. Trainers whose data are not in `KERAS_PLASTICITY_DATA_DIR` are left out,
and that is said.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib

import keras
import numpy as np

from keras_plasticity import experiments
from keras_plasticity import training
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.training import checkpoint as checkpoints
from keras_plasticity.training import online_trainer
from keras_plasticity.training import saver
from tests.examples.trainers import load
from tests.examples.trainers import parse

_DATA_DIR = os.environ.get("KERAS_PLASTICITY_DATA_DIR")
# So few steps are not compiled on PyTorch and TensorFlow, where each takes half
# a millisecond or more.
_EXAMPLES = 2000 if keras.backend.backend() == "jax" else 60
# Two methods each, with tasks long enough to be ended within.
_TRAINERS = {
    "slowly_changing_regression": [
        f"--num_examples={4 * _EXAMPLES}",
        f"--examples_per_task={_EXAMPLES}",
        "--num_learners=2",
        "--replacement_rate=0.01",
        "--diagnostics",
        "--method=linear",
        "--method=cbp",
    ],
    "online_permuted_mnist": [
        f"--data_dir={_DATA_DIR}",
        "--num_tasks=4",
        f"--examples_per_task={_EXAMPLES}",
        "--hidden_units=8",
        "--num_learners=2",
        "--replacement_rate=0.01",
        "--method=bp",
        "--method=cbp,shrink_and_perturb",
    ],
    "continual_imagenet": [
        f"--data_dir={_DATA_DIR}",
        "--num_tasks=3",
        "--train_images_per_class=20",
        "--test_images_per_class=10",
        "--epochs=3",
        "--batch_size=10",
        "--num_learners=1",
        "--method=cbp",
    ],
}
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# How a run may end that was ended by signals.
_ENDS = {0, -signal.SIGKILL} | {
    end for number in _SIGNALS[1:] for end in (128 + number, -number)
}


class Found(AssertionError):
    """Something that must not be."""


def check(is_right, message):
    if not is_right:
        raise Found(message)


class Run:
    """One process of a trainer.

    Args:
        name: String, the trainer.
        log_dir: `pathlib.Path`.
        arguments: List of its other flags.
        before: Function that the process calls before it begins.
    """

    def __init__(self, name, log_dir, arguments=(), before=None):
        self.start = time.monotonic()
        # Not a file: it could not be written on a full disk. A run says less
        # than what a pipe holds.
        self._output, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_run(end, name, log_dir, arguments, before)
        os.close(end)

    def _be_the_run(self, output, name, log_dir, arguments, before):
        status = 70
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            # Checkpoints and calls of the device at many instants.
            saver._MAX_SHARE = float("inf")
            saver._SECONDS_WITHIN_TASK = 0.1
            online_trainer._MOST_STEPS = _EXAMPLES // 20
            online_trainer._FEWEST_STEPS = 1
            if before is not None:
                before()
            trainer = load(name)
            flags = [*_TRAINERS[name], f"--log_dir={log_dir}", *arguments]
            trainer.run(parse(trainer, *flags))
            status = 0
        except SystemExit as end:
            status = end.code
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status if isinstance(status, int) else 1)

    def kill(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def is_running(self):
        """Whether it has not ended; its zombie is left for `wait`."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is None

    def sleep(self, seconds):
        """Waits so long, or until it has ended; whether it still runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.is_running():
            time.sleep(0.005)
        return self.is_running()

    def wait(self):
        """Its exit status, negative where a signal ended it."""
        _, status = os.waitpid(self.pid, 0)
        self.seconds = time.monotonic() - self.start
        with open(self._output, errors="replace") as file:
            self._text = file.read()
        return os.waitstatus_to_exitcode(status)

    def text(self):
        """What it has said, once it has ended."""
        return self._text


def results(log_dir):
    """What a run has found, without what is of one machine or moment."""
    summary = json.loads((log_dir / "summary.json").read_text())
    return [
        {
            name: run.get(name)
            for name in (
                "method",
                "settings",
                "per_task",
                "steps_per_learner",
                "units_replaced_per_learner",
            )
        }
        for run in summary["runs"]
    ]


def check_same(found, expected, what):
    """Results of two runs are equal, to the last bit."""
    different = [
        f"{run['method']} {key}: {run[key]} expected {other[key]}"
        for run, other in zip(found, expected)
        for key in run
        if run[key] != other[key]
    ]
    check(found == expected, f"{what}: other results: {different}")


@functools.cache
def whole(name, folder):
    """The results of a run that nobody ended, and its seconds."""
    run = Run(name, folder / "whole")
    check(run.wait() == 0, run.text())
    return results(folder / "whole"), run.seconds


def trainers(wanted):
    for name in wanted or _TRAINERS:
        if name != "slowly_changing_regression" and _DATA_DIR is None:
            print(f"{name}: left out, there is no KERAS_PLASTICITY_DATA_DIR")
            continue
        load(name)
        yield name


def kills(rng, folder, number, wanted):
    for name in trainers(wanted):
        expected, seconds = whole(name, folder / name)
        counts = dict.fromkeys((*(s.name for s in _SIGNALS), "twice"), 0)
        runs = in_order = 0
        while sum(counts.values()) < number:
            log_dir = folder / name / f"{runs}"
            runs += 1
            was_ended = False
            while True:
                before = set(log_dir.glob("*/*tfevents*"))
                run = Run(name, log_dir, ["--resume=auto"])
                ends = {0}
                if run.sleep(rng.uniform(0, 1.2 * seconds)):
                    one = rng.choice(_SIGNALS)
                    was_ended = True
                    counts[one.name] += 1
                    # A run that catches signals opens a file of its own.
                    has_begun = set(log_dir.glob("*/*tfevents*")) - before
                    run.kill(one)
                    ends = _ENDS
                    if rng.random() < 0.2 and run.sleep(rng.uniform(0, 0.3)):
                        counts["twice"] += 1
                        run.kill(rng.choice(_SIGNALS))
                    elif has_begun and one != signal.SIGKILL:
                        ends = {0, 128 + one}
                status = run.wait()
                check(status in ends, f"status {status}\n{run.text()}")
                in_order += status > 128
                if status == 0:
                    break
            if not was_ended:
                # Faster than the first one, whose programs were compiled.
                seconds = min(seconds, run.seconds)
            check_same(results(log_dir), expected, f"{log_dir}\n{run.text()}")
            shutil.rmtree(log_dir)
        print(
            f"kills, {name}: {counts} in {runs} runs, ended in order "
            f"{in_order} times, all as uninterrupted"
        )


def damage(rng, content):
    """Bytes that are damaged in one of many ways."""
    content = bytearray(content)
    way = rng.randrange(8)
    at = rng.randrange(len(content))
    size = min(rng.choice((1, 8, 100, 4096)), len(content) - at)
    if way == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        del content[at:]
    elif way == 2:
        content[at : at + size] = bytes(size)
    elif way == 3:
        content[at : at + size] = rng.randbytes(size)
    elif way == 4:
        del content[at : at + size]
    elif way == 5:
        content[at:at] = rng.randbytes(size)
    elif way == 6:
        content[at:at] = content[at : at + size]
    else:
        content += rng.randbytes(size)
    return bytes(content)


def _canonical(nest):
    """A nest as text in which arrays are checksums."""
    if isinstance(nest, np.ndarray):
        data = zlib.crc32(np.ascontiguousarray(nest).tobytes())
        return f"{nest.dtype}{nest.shape}{data}"
    if isinstance(nest, dict):
        return {name: _canonical(each) for name, each in nest.items()}
    if isinstance(nest, (list, tuple)):
        return [_canonical(each) for each in nest]
    return nest


def _read_checkpoint(log_dir):
    path = log_dir / "cbp" / "checkpoint.npz"
    saved, _ = checkpoints.load(path, checkpoints.journal_of(path))
    return _canonical(vars(saved))


def _read_settings(log_dir):
    return run_folder._read_settings(str(log_dir))


def _read_summary(log_dir):
    return summary_file.read_summary(str(log_dir))


def _read_cache(log_dir):
    from keras_plasticity.datasets import image_cache

    source = Source()
    images, labels = image_cache.load(log_dir / "cache", source)
    return _canonical([np.asarray(images), labels])


class Source:
    """Some images, as `image_cache` wants them."""

    title = "Noise"
    fingerprint = {"name": "noise"}
    num_images = 300
    image_shape = (4, 4, 3)

    def labels(self):
        yield np.random.default_rng(0).integers(0, 5, self.num_images)

    def images(self, start, stop):
        rng = np.random.default_rng(1)
        shape = (self.num_images, *self.image_shape)
        yield rng.integers(0, 256, shape, "uint8")[start:stop]


# File -> how it is read, and what else may be read of it: JSON that is still
# JSON with another digit in it has no checksum.
_FILES = {
    "cbp/checkpoint.npz": (_read_checkpoint, False),
    "cbp/checkpoint.npz.journal.jsonl": (_read_checkpoint, False),
    "settings.json": (_read_settings, True),
    "summary.json": (_read_summary, True),
    "cache/images.bin": (_read_cache, False),
    "cache/checksums.bin": (_read_cache, False),
    "cache/labels.bin": (_read_cache, False),
    "cache/record.json": (_read_cache, False),
}


def files(rng, folder, number):
    name = "slowly_changing_regression"
    log_dir = folder / name / "whole"
    whole(name, folder / name)
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        _read_cache(log_dir)
    for each in (log_dir / "cbp").glob("*.previous.npz"):
        each.unlink()
    for file, (read, may_differ) in _FILES.items():
        path = log_dir / file
        content, status = path.read_bytes(), path.stat()
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            expected = read(log_dir)
        counts = {"as it was": 0, "refused": 0, "other values": 0}
        for _ in range(number):
            damaged = damage(rng, content)
            path.write_bytes(damaged)
            # A disk that fails keeps the time.
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            try:
                with contextlib.redirect_stdout(open(os.devnull, "w")):
                    found = read(log_dir)
            except ValueError as error:
                check(str(path.parent) in str(error), f"{file}: {error}")
                counts["refused"] += 1
                continue
            except Exception as error:
                check(False, f"{file}: {type(error).__name__}: {error}")
            same = found == expected
            check(same or may_differ, f"{file}: other values without an error")
            counts["as it was" if same else "other values"] += 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        print(f"files, {file}: {counts} of {number}")


def _fail_to_write(run):
    """Lets no file of a process grow, as on a full disk."""
    limits = resource.prlimit(run.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    return lambda: resource.prlimit(run.pid, resource.RLIMIT_FSIZE, limits)


def _before_full_disk():
    # What a full disk is not: a signal.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def disks(rng, folder, number, wanted):
    for name in trainers(wanted):
        expected, seconds = whole(name, folder / name)
        counts = {"whole": 0, "told": 0, "resumed": 0, "all removed": 0}
        for i in range(number):
            log_dir = folder / name / f"disk-{i}"
            run = Run(
                name, log_dir, ["--resume=auto"], before=_before_full_disk
            )
            path = log_dir / "settings.json"
            while not path.exists() and run.is_running():
                time.sleep(0.005)
            are_removed = False
            if run.sleep(rng.uniform(0, seconds)):
                if rng.random() < 0.5:
                    mend = _fail_to_write(run)
                    if rng.random() < 0.5 and run.sleep(
                        rng.uniform(0, seconds)
                    ):
                        mend()
                else:
                    are_removed = (log_dir / "summary.json").exists()
                    shutil.rmtree(log_dir, ignore_errors=True)
            status = run.wait()
            text = run.text()
            check(status in (0, 1), f"status {status}\n{text}")
            check("Traceback" not in text, text)
            if are_removed:
                # The results were there; nobody can tell what is left.
                counts["all removed"] += 1
                shutil.rmtree(log_dir, ignore_errors=True)
                continue
            counts["whole" if status == 0 else "told"] += 1
            check(status == 0 or "Not written: " in text, text)
            if status == 1:
                again = Run(name, log_dir, ["--resume=auto"])
                check(again.wait() == 0, again.text())
                counts["resumed"] += 1
            check_same(results(log_dir), expected, log_dir)
            shutil.rmtree(log_dir)
        print(f"disks, {name}: {counts} of {number}")


def clocks(rng, folder, number):
    name = "slowly_changing_regression"
    expected, _ = whole(name, folder / name)
    for i in range(number):
        seed = rng.randrange(10**9)

        def jump(seed=seed):
            jumps = random.Random(seed)
            now = time.time
            offset = [0.0]

            def jumping():
                if jumps.random() < 0.05:
                    offset[0] = jumps.uniform(-1, 1) * 86400
                return now() + offset[0]

            time.time = jumping

        log_dir = folder / name / f"clock-{i}"
        run = Run(name, log_dir, before=jump)
        check(run.wait() == 0, run.text())
        check_same(results(log_dir), expected, log_dir)
        shutil.rmtree(log_dir)
    print(f"clocks: {number} runs, all as with a steady clock")


def tasks(folder, number):
    """Memory and open files at a tenth of the tasks, and at the end."""
    noted = []

    class Note(training.TaskCallback):
        def on_task_end(self, task, results):
            if task in (number // 10, number - 1):
                with open("/proc/self/statm") as file:
                    pages = int(file.read().split()[1])
                opened = len(os.listdir("/proc/self/fd"))
                noted.append((pages * resource.getpagesize() / 1e6, opened))

    trainer = load("slowly_changing_regression")
    flag_values = parse(
        trainer,
        "--method=cbp",
        "--num_learners=2",
        f"--num_examples={20 * number}",
        "--examples_per_task=20",
        "--diagnostics",
        f"--log_dir={folder / 'tasks'}",
    )
    run = experiments.run
    experiments.run = lambda *args, **kwargs: run(
        *args, **kwargs, task_callbacks=[Note()]
    )
    try:
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            trainer.run(flag_values)
    finally:
        experiments.run = run
    (before, opened), (after, still_opened) = noted
    grown = 1000 * (after - before) / (0.9 * number)
    print(
        f"tasks: {number}, {before:.0f} MB and {opened} files at a tenth, "
        f"{after:.0f} MB and {still_opened} files at the end "
        f"({grown:.1f} kB a task)"
    )
    check(still_opened <= opened + 2, "open files grow")
    # The records of the tasks themselves are kept, for the summary.
    check(grown < 40, "memory grows")


def folders(rng, folder, number):
    name = "slowly_changing_regression"
    expected, seconds = whole(name, folder / name)
    refused = 0
    for i in range(number):
        log_dir = folder / name / f"two-{i}"
        one = Run(name, log_dir, ["--resume=auto"])
        time.sleep(rng.uniform(0, 0.5 * seconds))
        two = Run(name, log_dir, ["--resume=auto"])
        ends = sorted((each.wait(), each.text()) for each in (one, two))
        # One may have ended before the other one began.
        check(ends[0][0] == 0 and ends[1][0] in (0, 2), f"{ends}")
        if ends[1][0] == 2:
            refused += 1
            check("written to by another run" in ends[1][1], ends[1][1])
        check_same(results(log_dir), expected, log_dir)
        shutil.rmtree(log_dir)
    print(f"folders: {number} pairs, {refused} times one was refused")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--disks", type=int, default=0)
    parser.add_argument("--clocks", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--folders", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trainer", action="append", choices=list(_TRAINERS), default=None
    )
    given = parser.parse_args(arguments)
    print(f"backend {keras.backend.backend()}, seed {given.seed}", flush=True)
    # Keras imports it when it first saves the settings of a layer.
    importlib.import_module("tensorflow")
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for each in _TRAINERS:
            (folder / each).mkdir()
        for part, number, more in (
            (kills, given.kills, (given.trainer,)),
            (files, given.files, ()),
            (disks, given.disks, (given.trainer,)),
            (clocks, given.clocks, ()),
            (folders, given.folders, ()),
        ):
            if number:
                start = time.monotonic()
                part(rng, folder, number, *more)
                seconds = time.monotonic() - start
                print(f"{part.__name__}: {seconds:.0f} s", flush=True)
                for each in folder.glob("*/*"):
                    if each.name != "whole":
                        shutil.rmtree(each)
        if given.tasks:
            # Last: it computes in this process, after which none may be
            # forked.
            tasks(folder, given.tasks)


if __name__ == "__main__":
    main()
