"""Checks and times on one GPU, in less than eight minutes.

    python tests/benchmarks/on_gpu.py --seconds=480 --out=results.json

It needs Keras, pytest and one or more of JAX, PyTorch and TensorFlow, and
takes the library from its own checkout. For each backend that it finds it

1. runs the tests that follow recorded runs step by step, and those that depend
   on the device, in full precision, and
2. times training steps, each cell in a process of its own. The processes
   compile side by side, while the tests run; when both have ended, one process
   after another is timed, and nothing runs beside it.

It prints one table. In it are also the eager PyTorch loop of `eager_torch.py`
on the same device, the memory that was in use at the most, the seconds that it
took to build, to draw data and to compile, and the time that it would take to
read and write the weights once for each pass over them, at the speed of a copy.

What does not fit into `--seconds` is left out, and named at the end. `--out`
gets all of it as JSON, after each cell that is measured. `--tiny` is to try the
script itself, on any machine.
"""

import argparse
import concurrent.futures
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import step_time

_ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKENDS = ("jax", "torch", "tensorflow")
_PACKAGES = ("keras", "numpy", "jax", "jaxlib", "torch", "tensorflow")
TRACES = ("tests/golden_traces_test.py", "tests/method_traces")
# What a GPU may compute otherwise than a CPU, or in another place.
SUITE = (
    "tests/backend",
    "tests/distribution_test.py",
    "tests/layers/dense_test.py",
    "tests/layers/convolutional_test.py",
    "tests/optimizers/continual_backprop_test.py",
    "tests/optimizers/redo_test.py",
    "tests/optimizers/self_normalized_resets_test.py",
    "tests/optimizers/shrink_and_perturb_test.py",
    "tests/training/online_trainer_test.py",
    "tests/training/checkpoint_test.py",
)
TINY_TESTS = (
    "tests/golden_traces_test.py::test_fit[dense_overall-channels_last]",
)
# `ContinualBackprop` with nothing to replace is what its statistics cost.
METHODS = {
    "bp": ("bp", {}),
    "stats": ("contribution", {"rate": 0.0}),
    "cbp": ("contribution", {}),
}
# Microseconds of a step of `cbp`, about: how many steps are a run.
EXPECTED = {
    ("regression", 30): 40,
    ("mnist 3x100", 1): 100,
    ("mnist 3x100", 30): 500,
    ("mnist 3x2000", 1): 300,
    ("mnist 3x2000", 30): 2500,
    ("imagenet", 1): 1500,
    ("imagenet", 10): 6000,
}
# On eager backends, with one learner.
EXPECTED_EAGER = {
    "regression": 2000,
    "mnist 3x100": 3000,
    "mnist 3x2000": 3500,
    "imagenet": 5000,
}
_SECONDS_OF_A_RUN = 0.3
_REPEATS = 3
# Of the time for all, until which cells compile and tests run.
_SHARE_TO_PREPARE = 0.7
# Seconds at the end in which nothing is begun, to write what there is.
_SECONDS_TO_END = 10
# Numbers that are copied to measure the memory: 256 MiB, more than any cache.
_COPIED = 2**26


def cells(backend, tiny):
    """The cells of a backend, those first that matter most."""
    if backend == "jax":
        problems = list(EXPECTED)
    else:
        problems = [("mnist 3x100", 1), ("imagenet", 1)]
    if tiny:
        problems = [("regression", 2)]
    result = [copy_cell(tiny)]
    for problem, learners in problems:
        microseconds = EXPECTED.get((problem, learners), 1000)
        if backend != "jax":
            microseconds = 3 * EXPECTED_EAGER[problem] if not tiny else 1000
        result += [
            _cell(row, problem, "engine", learners, microseconds, tiny)
            for row in METHODS
        ]
    if backend == "torch":
        result += [
            _cell(row, problem, "eager", 1, microseconds, tiny)
            for problem, microseconds in EXPECTED_EAGER.items()
            if not tiny or problem == "regression"
            for row in ("bp", "cbp")
        ]
    return [{**cell, "backend": backend} for cell in result]


def _cell(row, problem, mode, learners, microseconds, tiny):
    method, changes = METHODS[row]
    steps = max(20, round(_SECONDS_OF_A_RUN * 1e6 / microseconds))
    cell = step_time.cell(problem, method, mode, learners, **changes)
    return {**cell, "row": row, "steps": 20 if tiny else steps}


def copy_cell(tiny):
    """A cell that measures the memory."""
    return {
        "row": "copy",
        "mode": "copy",
        "size": 2**20 if tiny else _COPIED,
        "steps": 20,
    }


def prepare_copy(size):
    """A function that reads and writes arrays and returns the seconds."""
    import keras

    x = keras.ops.ones((size,))

    def run(steps):
        start = time.perf_counter()
        for _ in range(steps):
            y = x + 1.0
        float(y[0])  # Waits for the last one.
        return time.perf_counter() - start

    return run


def peak_memory():
    """Bytes that were in use at the most on the device, or by the process."""
    import keras

    from keras_plasticity import backend

    if backend.platform() == "cpu":
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def measure_when_told(cell, precision, repeats):
    """The life of a cell's process: prepare, say so, wait, measure.

    It prints a line of JSON when it is ready and one with what it measured,
    which it does when there is something to read.
    """
    from keras_plasticity import backend
    from keras_plasticity.experiments import terminal

    backend.set_matmul_precision(precision)
    start = time.perf_counter()
    if cell["mode"] == "copy":
        run = prepare_copy(cell["size"])
    else:
        run = step_time.prepare(cell)
    steps = cell["steps"]
    run(steps)
    first = time.perf_counter() - start
    _say({"ready": first})
    if not sys.stdin.readline():
        return  # It was left out.
    times, walls = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        seconds = run(steps)
        if repeat:
            times.append(seconds / steps * 1e6)
            walls.append((time.perf_counter() - start) / steps * 1e6)
    _say(
        {
            "microseconds": statistics.median(times),
            "least": min(times),
            "most": max(times),
            "wall_microseconds": statistics.median(walls),
            # Building the model is a part of it.
            "compile_seconds": first - statistics.median(walls) * steps / 1e6,
            "peak_bytes": peak_memory(),
            "device": terminal.device_name(),
        }
    )


def _say(content):
    print(json.dumps(content), flush=True)


class CellProcess:
    """A process that prepares a cell, and measures it when it is told to.

    Args:
        cell: Dict, the cell.
        precision: String, the value of `--matmul_precision`.
        repeats: Integer, the number of counted runs.
        log: Path of a file for what the process writes besides results.
    """

    def __init__(self, cell, precision, repeats, log):
        self.cell = cell
        self._log = log
        self._arguments = [
            sys.executable,
            __file__,
            f"--cell={json.dumps(cell)}",
            f"--precision={precision}",
            f"--repeats={repeats}",
        ]
        self._process = None
        self._is_stopped = False

    def prepare(self):
        """Starts the process, and returns when it is ready to measure."""
        if self._is_stopped:
            return
        environment = environment_of(self.cell["backend"])
        # It would hide how long it takes to compile.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        if self._is_stopped:  # Meanwhile.
            self.stop()
        self._read()

    def measure(self, seconds):
        """Measures; returns a dict. After some seconds it is an error."""
        timer = threading.Timer(seconds, self.stop)
        timer.start()
        try:
            self._process.stdin.write("measure\n")
            self._process.stdin.flush()
            return self._read()
        finally:
            timer.cancel()
            self.stop()

    def stop(self):
        self._is_stopped = True
        if self._process is not None:
            self._process.kill()

    def _read(self):
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        words = self._log.read_text().strip().splitlines()[-1:]
        raise RuntimeError("; ".join(["the process ended", *words]))


def environment_of(backend):
    paths = [str(_ROOT), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Many processes share the device.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


# Lines of `pytest -v`, without and with `pytest-xdist`.
_OUTCOMES = (
    re.compile(r"^(?P<test>tests/.*?::.*?) (?P<outcome>[A-Z]{4,})\b"),
    re.compile(r"^\[gw\d+\] \[ *\d+%\] (?P<outcome>[A-Z]+) (?P<test>tests/.*)"),
)


def outcomes(lines):
    """Dict from test to outcome, such as `"PASSED"`, of pytest's output."""
    result = {}
    for line in lines:
        for pattern in _OUTCOMES:
            match = pattern.match(line)
            if match:
                result[match["test"].strip()] = match["outcome"]
    return result


class PytestRun:
    """A run of pytest, on one backend.

    Args:
        name: String.
        backend: String.
        tests: Sequence of files, or of names of tests.
        jobs: Integer, the number of processes, where `pytest-xdist` is there.
        log: Path of a file for the output.
    """

    def __init__(self, name, backend, tests, jobs, log):
        self.name = name
        self.backend = backend
        self._log = log
        self._command = [sys.executable, "-m", "pytest", "-v", "--tb=short"]
        self._command += ["-m", "not slow", "-p", "no:cacheprovider", *tests]
        if importlib.util.find_spec("xdist"):
            self._command += ["-n", str(jobs)]
        self._process = None
        self._is_stopped = False
        self._seconds = 0.0

    def run(self):
        if self._is_stopped:
            return
        start = time.perf_counter()
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env=environment_of(self.backend),
            )
        if self._is_stopped:  # Meanwhile.
            self.stop()
        self._process.wait()
        self._seconds = time.perf_counter() - start

    def stop(self):
        self._is_stopped = True
        if self._process is not None:
            # Its workers, if it has any, end when it does.
            self._process.kill()

    def report(self):
        """Dict, what is known of the tests so far."""
        lines = []
        if self._log.exists():
            lines = self._log.read_text(errors="replace").splitlines()
        found = outcomes(lines)
        # pytest ends with 1 where a test fails; beyond, it could not run.
        status = self._process.poll() if self._process else None
        return {
            "name": self.name,
            "backend": self.backend,
            "ended": status in (0, 1),
            "passed": sum(each == "PASSED" for each in found.values()),
            "skipped": sum(each == "SKIPPED" for each in found.values()),
            "failed": [
                test
                for test, outcome in found.items()
                if outcome in ("FAILED", "ERROR")
            ],
            "errors": [line for line in lines if line.startswith("E  ")][:40],
            "seconds": self._seconds,
        }


class Results:
    """All that was found, and the file that holds it.

    Args:
        path: Path of the file, or `None`.
        about: Dict, what is known beforehand.
    """

    def __init__(self, path, about):
        self.content = {**about, "tests": [], "cells": [], "left_out": []}
        self._path = path

    def add(self, kind, entry):
        self.content[kind].append(entry)
        self.write()

    def write(self):
        if self._path is not None:
            self._path.write_text(json.dumps(self.content, indent=1))


def run_all(arguments, results, folder):
    """Prepares side by side, measures one by one; see the module."""
    start = time.perf_counter()

    def left(share=1.0):
        return share * arguments.seconds - (time.perf_counter() - start)

    cores = os.cpu_count() or 1
    processes = [
        CellProcess(
            cell,
            arguments.precision,
            arguments.repeats,
            folder / f"cell{i}-{backend}.log",
        )
        for backend in arguments.backends
        for i, cell in enumerate(cells(backend, arguments.tiny))
    ]
    test_runs = [
        PytestRun(
            name,
            backend,
            tests,
            max(1, cores // 4),
            folder / f"{name}-{backend}.log",
        )
        for name, tests in _tests(arguments.tiny).items()
        for backend in arguments.backends
    ]
    executors = [
        concurrent.futures.ThreadPoolExecutor(max(1, cores // 2)),
        concurrent.futures.ThreadPoolExecutor(max(1, cores // 8)),
    ]
    try:
        prepared = [executors[0].submit(each.prepare) for each in processes]
        tested = [executors[1].submit(each.run) for each in test_runs]
        concurrent.futures.wait(
            [*prepared, *tested], timeout=left(_SHARE_TO_PREPARE)
        )
        for each, future in zip(test_runs, tested):
            if not future.done():
                each.stop()
        ready = []
        for each, future in zip(processes, prepared):
            if not future.done():
                each.stop()
                _leave_out(results, each.cell, "it was not compiled in time")
            elif future.exception() is not None:
                _leave_out(results, each.cell, str(future.exception()))
            else:
                ready.append(each)
        # What was stopped ends.
        concurrent.futures.wait([*prepared, *tested], timeout=_SECONDS_TO_END)
        _tell(f"measuring {len(ready)} of {len(processes)} cells", start)
        for each in test_runs:
            results.add("tests", each.report())
        for each in ready:
            seconds = left() - _SECONDS_TO_END
            if seconds <= 0:
                _leave_out(results, each.cell, "there was no time to measure")
                continue
            try:
                measured = each.measure(seconds)
            except (OSError, RuntimeError) as error:
                _leave_out(results, each.cell, str(error))
                continue
            results.add("cells", {**each.cell, **measured})
            _tell(
                f"{name_of(each.cell)}: {measured['microseconds']:.1f} us",
                start,
            )
    finally:
        for each in [*processes, *test_runs]:
            each.stop()
        for executor in executors:
            executor.shutdown(cancel_futures=True)
    results.content["seconds"] = time.perf_counter() - start
    results.write()


def _tests(tiny):
    if tiny:
        return {"traces": TINY_TESTS}
    return {"traces": TRACES, "suite": SUITE}


def _leave_out(results, cell, reason):
    results.add("left_out", f"{name_of(cell)}: {reason}")


def _tell(words, start):
    seconds = time.perf_counter() - start
    print(f"[{seconds:3.0f} s] {words}", file=sys.stderr, flush=True)


def name_of(cell):
    if cell["mode"] == "copy":
        return f"{cell['backend']} copy"
    learners = cell["learners"]
    return (
        f"{cell['backend']} {cell['mode']}, {cell['problem']}, {learners} "
        f"learner{'s' * (learners > 1)}, {cell['row']}"
    )


def table(content):
    """The lines of a Markdown table of all that was measured."""
    measured = content["cells"]
    # Bytes a second, read and written; the fastest copy is the device's.
    speed = max(
        (
            2 * 4 * cell["size"] / cell["microseconds"] * 1e6
            for cell in measured
            if cell["mode"] == "copy"
        ),
        default=None,
    )
    eager = {
        (cell["problem"], cell["row"]): cell["microseconds"]
        for cell in measured
        if cell["mode"] == "eager"
    }
    lines = [
        "| backend | mode | problem | learners | method | us/step | min-max | "
        "with data, us | eager PyTorch, 1 learner | bound by memory, us | "
        "compile, s | peak, GB |",
        "|" + " --- |" * 12,
    ]
    for cell in measured:
        if cell["mode"] == "copy":
            continue
        bound = None
        if speed is not None and cell["problem"] != "imagenet":
            bound = step_time.moved_bytes(cell) / speed * 1e6
        peak = cell["peak_bytes"]
        lines.append(
            f"| {cell['backend']} | {cell['mode']} | {cell['problem']} | "
            f"{cell['learners']} | {cell['row']} | "
            f"{cell['microseconds']:.1f} | "
            f"{cell['least']:.1f}-{cell['most']:.1f} | "
            f"{cell['wall_microseconds']:.1f} | "
            f"{_number(eager.get((cell['problem'], cell['row'])), '.0f')} | "
            f"{_number(bound, '.1f')} | "
            f"{cell['compile_seconds']:.1f} | "
            f"{_number(None if peak is None else peak / 1e9, '.2f')} |"
        )
    if speed is not None:
        lines += ["", f"A copy reads and writes {speed / 1e9:,.0f} GB/s."]
    return lines


def _number(value, form):
    return "-" if value is None else format(value, form)


def summary(content):
    """The lines about tests, and about what was left out."""
    lines = []
    for run in content["tests"]:
        lines.append(
            f"{run['name']}, {run['backend']}: {run['passed']} passed, "
            f"{len(run['failed'])} failed, {run['skipped']} skipped in "
            f"{run['seconds']:.0f} s"
            + ("" if run["ended"] else "; NOT ENDED, so some were left out")
        )
        lines += [f"    FAILED {test}" for test in run["failed"]]
    lines += [f"left out: {each}" for each in content["left_out"]]
    return lines


def _about(arguments):
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "revision": revision or None,
        "python": platform.python_version(),
        "versions": versions,
        "cores": os.cpu_count(),
        "precision": arguments.precision,
        "repeats": arguments.repeats,
        "tiny": arguments.tiny,
    }


def parse(arguments):
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=480, help="for all; default: 480"
    )
    parser.add_argument("--out", type=pathlib.Path, help="file for the results")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=found,
        help="default: those that are installed",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "tensorfloat32"),
        default="float32",
        help="of products in the cells; the tests have float32",
    )
    parser.add_argument(
        "--repeats", type=int, default=_REPEATS, help="counted runs of a cell"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="few small cells, to try the script"
    )
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments):
    arguments = parse(arguments)
    if arguments.cell is not None:
        measure_when_told(
            arguments.cell, arguments.precision, arguments.repeats
        )
        return 0
    if not arguments.backends:
        sys.exit("One of these is needed: " + ", ".join(BACKENDS))
    results = Results(arguments.out, _about(arguments))
    with tempfile.TemporaryDirectory() as folder:
        run_all(arguments, results, pathlib.Path(folder))
    content = results.content
    devices = sorted({cell["device"] for cell in content["cells"]})
    versions = [f"{k} {v}" for k, v in content["versions"].items() if v]
    print(
        f"{', '.join(devices) or 'no device'}; Python {content['python']}, "
        f"{', '.join(versions)}; {content['cores']} cores, commit "
        f"{content['revision']}, {content['precision']}, medians of "
        f"{content['repeats']} runs, {content['seconds']:.0f} s\n"
    )
    print("\n".join([*table(content), "", *summary(content)]))
    failed = any(run["failed"] or not run["ended"] for run in content["tests"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
