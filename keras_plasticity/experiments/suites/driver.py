"""Tunes methods on problems, and reports them on seeds of their own."""

import contextlib
import datetime
import os
import time
from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import validation
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import method_file as method_files
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.suites import against as comparison
from keras_plasticity.experiments.suites import report
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.experiments.suites.cells import Cell
from keras_plasticity.experiments.suites.problems import SIZES
from keras_plasticity.experiments.suites.problems import problems_of
from keras_plasticity.experiments.sweeps import driver as sweep_driver
from keras_plasticity.training.interruption import catch_signals

_SUITE = "suite.json"
# Those that most papers have.
METHODS = (
    "bp",
    "cbp",
    "l2",
    "shrink_and_perturb",
    "l2_init",
    "layer_norm",
    "input_norm",
    "linear",
    "reset",
)


def suite(
    size: str,
    methods: Sequence[str] = METHODS,
    problems: Sequence[str] | None = None,
    log_dir: str | None = None,
    method_file: str | None = None,
    against: str | None = None,
    data_dir: str | None = None,
    trainers: str | None = None,
    processes: int = 1,
    ray_address: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Tunes methods on problems with equal budgets, and compares them.

    For each problem and method it trains as many settings on seeds that nothing
    else uses, and the one with the best area under its curve on fresh seeds,
    the same for all methods. What differs between settings is the step size
    and the one to three numbers that matter most in a method, drawn as the
    sampler `"random"` of `sweep` does; step sizes alone are spaced evenly.

    In `log_dir` are `results.json`, which `keras_plasticity/experiments/
    suites/results.schema.json` describes, `results.csv`, `results.md` and
    `results.png`: for each problem and method the means of two measures with
    their 95 % bootstrap intervals, the difference from the best method and
    from `bp`, paired by seed, and what a step costs. Only where the interval of
    a difference does not meet zero are two methods told apart.

    Args:
        size: `"minutes"`, `"hours"` or `"published"`: how long the tasks and
            how many the settings and seeds are.
        methods: Sequence of strings, as `--method` of the trainers has them.
            Defaults to nine that most papers have.
        problems: Sequence of strings: `"slowly_changing_regression"`,
            `"online_permuted_mnist"`, `"label_permuted_mnist"` and, not in
            minutes, `"continual_imagenet"`. Defaults to `None`: all of them.
        log_dir: String, the folder. Defaults to `None`: a new one in
            `logs/suites`.
        method_file: String, a file of Python with a list `PARTS` of `Part`s of
            your own, which `methods` may name, and, if they have settings to
            tune, a dict `SEARCH` from the name of a part to a dict from the
            name of a flag to a `Range` or a list of values. Defaults to
            `None`: no file.
        against: `"reference"`, the results that this package has of a size, or
            the path of a `results.json`: what differs from it by more than
            chance is told. Defaults to `None`: nothing is compared.
        data_dir: String, the folder of `tensorflow_datasets` that the trainers
            read. Defaults to `None`: its own folder, to which data are
            downloaded if need be.
        trainers: String, the folder of the trainers. Defaults to `None`: the
            examples of the checkout that this package is in.
        processes: Integer, how many runs this machine trains at a time.
            Defaults to `1`.
        ray_address: String, the address of a cluster of Ray that trains in
            place of this machine, see `sweep`. Defaults to `None`: no cluster.
        resume: Boolean, whether to resume the suite in `log_dir`, if there is
            one. Defaults to `False`.

    Returns:
        Dict, the content of `results.json`.

    Raises:
        ConnectionError: If there is no cluster at `ray_address`, or if this
            process is connected to another one.
        FileExistsError: If `log_dir` holds a suite, and not `resume`.
        ImportError: If matplotlib is not installed, or with `ray_address` Ray.
        SystemExit: With a message, which was printed: 1 if a method failed;
            128 and the signal's number after Ctrl-C, SIGTERM or SIGHUP.
        ValueError: If an argument is not as described, if a method cannot be
            trained on a problem, or if `log_dir` cannot be what it should be.

    Example:

    ```python
    results = experiments.suite(
        "minutes",
        methods=["bp", "cbp", "l2"],
        problems=["slowly_changing_regression"],
        log_dir="logs/suite",
    )
    ```

    References:

    - [Agarwal et al., 2021](https://arxiv.org/abs/2108.13264)
    """
    size = validation.check_choice("size", size, SIZES)
    own = method_files.load(method_file)
    problems = _check_problems(problems, size)
    methods = _check_methods(methods)
    processes = validation.check_positive_integer("processes", processes)
    if ray_address is not None:
        ray_address = validation.check_path("ray_address", ray_address)
    resume = validation.check_boolean("resume", resume)
    if method_file is not None:
        method_file = os.path.abspath(method_file)
    if data_dir is not None:
        data_dir = validation.check_path("data_dir", data_dir)
        data_dir = os.path.abspath(data_dir)
    cells = [
        Cell(problem, method, size, own, method_file, data_dir, trainers)
        for problem in problems
        for method in methods
    ]
    reference = None
    if against is not None:
        reference = comparison.read_reference(against, size)
        comparison.check_comparable(reference, cells)
    figures.check_matplotlib()
    if log_dir is None:
        if resume:
            raise ValueError(
                "--resume needs the folder of the suite. Give it by --log_dir."
            )
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        log_dir = os.path.join("logs", "suites", f"{size}-{now}")
    log_dir = os.path.abspath(validation.check_path("log_dir", log_dir))
    identity = {
        "size": size,
        "problems": problems,
        "methods": methods,
        "backend": keras.backend.backend(),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminal.lasting_output())
        caught = stack.enter_context(catch_signals(raises=False))
        lock = run_folder.lock_folder(log_dir)
        stack.callback(run_folder.unlock_folder, log_dir, lock)
        _open(log_dir, identity, resume)
        files = list(dict.fromkeys(cell.trainer for cell in cells))
        executors = stack.enter_context(
            sweep_driver.open_executors(files, processes, ray_address, caught)
        )
        of_trainers = dict(zip(files, executors))
        suite_run = _Suite(cells, log_dir, of_trainers, caught)
        suite_run.check()
        run_folder.write_json(os.path.join(log_dir, _SUITE), identity)
        results = suite_run.train()
        report.write(results, log_dir)
        if reference is not None:
            comparison.report(results, reference, log_dir)
        suite_run.end()
    return results


class _Suite:
    """Does the cells of a suite, a problem after the other.

    Args:
        cells: List of `Cell`s.
        log_dir: String.
        executors: Dict from a trainer's file to its executor.
        caught: `Interruption`.
    """

    def __init__(self, cells, log_dir, executors, caught):
        self._cells = cells
        self._log_dir = log_dir
        self._executors = executors
        self._caught = caught
        self._failures = []
        # Of the cells that were done: problem and seconds.
        self._seconds = []

    def check(self):
        """Has the trainers check what all methods begin with.

        Raises:
            SystemExit: After a signal.
            ValueError: If one of them refuses a setting.
        """
        for trainer, executor in self._executors.items():
            arguments = [
                each
                for cell in self._cells
                if cell.trainer == trainer
                for each in cell.to_check()
            ]
            try:
                refused = sweep_driver.check_flags(
                    trainer, arguments, executor, self._caught
                )
            except sweep_driver.Interrupted:
                self._end_interrupted()
            # It may take long until the trainer has its turn, and what it
            # holds of the memory is that of others meanwhile.
            executor.end_idle()
            if refused is not None:
                index, error = refused
                raise ValueError(
                    "A method cannot be trained, and nothing was. "
                    f"{error}\nReceived: {' '.join(arguments[index])}"
                )

    def train(self):
        """Does all cells that are not done; returns the results of all."""
        for number, cell in enumerate(self._cells):
            print(
                f"\n[{number + 1}/{len(self._cells)}] {cell.problem.title}, "
                f"{cell.method}: {cell.about}{self._time_left(number)}",
                flush=True,
            )
            self._train_cell(cell)
            following = self._cells[number + 1 : number + 2]
            if not any(each.trainer == cell.trainer for each in following):
                self._executors[cell.trainer].end_idle()
            results = result_files.make_results(self._cells, self._log_dir)
            result_files.write_results(results, self._log_dir)
        return results

    def end(self):
        """Ends the process if a method failed."""
        if self._failures:
            exit_status.end(
                f"{len(self._failures)} of {len(self._cells)} failed. The "
                f"first one: {self._failures[0]}",
                exit_status.FAILED,
            )

    def _train_cell(self, cell):
        was_done = cell.is_done(self._log_dir)
        start = time.monotonic()
        try:
            cell.train(
                self._log_dir, self._executors[cell.trainer], self._caught
            )
        except SystemExit as error:
            if self._caught.signal is not None:
                self._end_interrupted()
            cell.failure = str(error)
            self._failures.append(f"{cell.method}: {error}")
        if not was_done:
            seconds = time.monotonic() - start
            self._seconds.append((cell.problem, seconds))

    def _end_interrupted(self):
        exit_status.end(
            "The suite was interrupted. To resume it: the same command with "
            f"--resume --log_dir={self._log_dir}",
            exit_status.INTERRUPTED + self._caught.signal,
        )

    def _time_left(self, number):
        """How long the rest is going to take, by what was done so far."""
        if not self._seconds:
            return ""
        left = 0.0
        for cell in self._cells[number:]:
            if cell.is_done(self._log_dir):
                continue
            same = [
                s for problem, s in self._seconds if problem is cell.problem
            ]
            known = same or [seconds for _, seconds in self._seconds]
            left += sum(known) / len(known)
        return f", about {max(1, round(left / 60))} min left" if left else ""


def _open(log_dir, identity, resume):
    """Sees that a folder may hold a suite."""
    path = os.path.join(log_dir, _SUITE)
    if not os.path.exists(path):
        if os.path.exists(os.path.join(log_dir, result_files.NAME)):
            raise FileExistsError(
                "--log_dir holds results, and no suite that wrote them. Use "
                f"another folder. Received: --log_dir={log_dir}"
            )
        if resume:
            print(f"There is no suite in {log_dir}: starting a new one.")
        return
    if not resume:
        raise FileExistsError(
            "--log_dir holds another suite. Use --resume to continue it, or "
            f"another folder. Received: --log_dir={log_dir}"
        )
    before = run_folder.read_json(path)
    different = [
        f"{name}={before.get(name)} there, {name}={value} here"
        for name, value in identity.items()
        if before.get(name) != value
        # Methods and problems may be added.
        and not (
            isinstance(value, list) and set(before.get(name, ())) <= set(value)
        )
    ]
    if different:
        raise ValueError(
            "The suite in --log_dir is another one, so --resume cannot "
            "continue it. Give the same flags (there may be more methods and "
            f"problems), or another --log_dir: {'; '.join(different)}"
        )


def _check_problems(problems, size):
    known = problems_of(size)
    if problems is None:
        return known
    names = validation.check_list(
        "problems", problems, str, "a list of strings"
    )
    if not names or len({*names}) < len(names) or not {*names} <= {*known}:
        rule = (
            f"a list of one or more of {', '.join(known)}, each once, which "
            f"are the problems of the size {size}"
        )
        raise validation.error("problems", rule, problems)
    return [name for name in known if name in names]


def _check_methods(methods):
    names = validation.check_list("methods", methods, str, "a list of strings")
    if not names or len({*names}) < len(names):
        rule = "a list of one or more names of methods, each once"
        raise validation.error("methods", rule, methods)
    return names
