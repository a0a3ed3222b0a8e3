"""Trains many settings of a trainer, on many processes, into one table."""

import collections
import concurrent.futures
import contextlib
import datetime
import os
import signal
from collections.abc import Mapping
from typing import Any

from keras_plasticity import validation
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps.executors import LocalProcesses
from keras_plasticity.experiments.sweeps.executors import RayCluster
from keras_plasticity.experiments.sweeps.executors import connected_ray
from keras_plasticity.experiments.sweeps.log import SweepLog
from keras_plasticity.experiments.sweeps.plan import Plan
from keras_plasticity.experiments.sweeps.proposals import Proposals
from keras_plasticity.experiments.sweeps.worker_process import WorkerDied
from keras_plasticity.training.interruption import Interruption
from keras_plasticity.training.interruption import catch_signals

# In which a signal is noticed.
_SECONDS_BETWEEN_LOOKS = 0.2


class Interrupted(Exception):
    """A signal has asked for the end."""


def sweep(
    trainer: str,
    space: Mapping[str, Any],
    log_dir: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sampler: str = "grid",
    num_settings: int | None = None,
    sampler_seed: int = 0,
    measure: str = "last_tenth",
    processes: int = 1,
    ray_address: str | None = None,
    retries: int = 3,
    table_format: str = "csv",
    report_seeds: int | None = None,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Trains many settings of a trainer, and keeps their results in a table.

    Each setting is a run of the trainer, in `log_dir/runs`, with a checkpoint.
    On JAX, up to 64 settings that differ in numbers of the methods only share
    a run, whose learners train side by side in one program: their results are
    those of runs of their own, up to rounding. (Not where `flags` ask for
    `diagnostics` or a `tracker`, which are of one setting, and not where a
    number decides what is computed, as a momentum of zero does.)

    The table, `log_dir/table.csv`, has a row for each setting, method and
    seed; it is replaced whole whenever a run ends. In
    `tensorboard --logdir=log_dir/tensorboard`, "HParams" has a row for each
    setting. Before anything is trained, all flags are checked by the trainer.

    A worker process that dies is replaced, and its run resumed from its
    checkpoint. After a signal, or whatever kills the sweep, it is resumed by
    `resume=True`, to the table of a sweep without an interruption, but for the
    seconds.

    A learner that diverges has no measures in its row. A run that fails,
    because its trainer says so, is in `failures.csv`, and is tried again when
    the sweep is resumed.

    Args:
        trainer: String, the trainer's file, which calls `experiments.launch`.
        space: Dict from the name of a flag of the trainer to a list of its
            values, or to a `Range` of numbers.
        log_dir: String, the folder. Defaults to `None`: a new one in
            `logs/sweeps`.
        flags: Dict from the name of a flag to its value in all runs, or to a
            list of values of a flag that is repeated. Defaults to `None`:
            none. `on_nan` is `"continue"` unless it is given.
        sampler: `"grid"`: all combinations of the values; `"random"`: draws
            `num_settings` different ones; `"optuna"`: Optuna's
            tree-structured Parzen estimator proposes them, eight at a time,
            from the results of those before; what it has proposed stays when
            runs are redone. Defaults to `"grid"`.
        num_settings: Integer, how many are drawn or proposed.
        sampler_seed: Integer, of the settings that are drawn; those of
            `num_settings` are the first ones of more. Defaults to `0`.
        measure: `"last_tenth"` or `"area_under_curve"`: what `"optuna"`
            improves, the mean over seeds and methods, and what the best
            settings that are printed at the end are best in. Defaults to
            `"last_tenth"`.
        processes: Integer, how many runs this machine trains at a time.
            The backend has a share of the cores for each, which may change
            results by rounding. Defaults to `1`.
        ray_address: String, the address of a cluster of Ray that trains in
            place of this machine, one run a CPU, such as `"10.0.0.1:6379"` or
            `"auto"`. Its nodes need this package and the trainer's file, and
            should share `log_dir`. Defaults to `None`: no cluster.
        retries: Integer, how often a run whose worker died is tried again.
            Defaults to `3`.
        table_format: `"csv"` or `"parquet"`. Defaults to `"csv"`.
        report_seeds: Integer: at the end the best setting of each method, by
            the mean of `measure` over its seeds, is trained on so many seeds
            that no setting was chosen by, and reported in
            `log_dir/report.csv`. Defaults to `None`: no report.
        resume: Boolean, whether to resume the sweep in `log_dir`, if there is
            one. More settings may be asked for, but nothing else may differ.
            It needs `log_dir`. Defaults to `False`.

    Returns:
        List of dicts, the rows of the table.

    Raises:
        ConnectionError: If the cluster is not there, or if this process is
            connected to another one.
        FileExistsError: If `log_dir` holds a sweep, and not `resume`.
        ImportError: If Optuna, Ray or pyarrow is needed and not there.
        SystemExit: With a message, which was printed: 1 if a run failed; 128
            and the signal's number after Ctrl-C, SIGTERM or SIGHUP.
        ValueError: If an argument is not as described, if the trainer refuses
            the flags of a setting, if learners of two runs of a setting share
            a seed, or if `log_dir` cannot be what it should be.

    Example:

    ```python
    rows = experiments.sweep(
        "examples/slowly_changing_regression.py",
        {"learning_rate": [0.003, 0.01], "l2": [1e-3, 1e-2]},
        flags={"method": "l2", "num_examples": 100_000},
        log_dir="logs/l2",
        processes=2,
    )
    ```

    References:

    - [Bergstra et al., 2011](https://papers.nips.cc/paper/4443)
    """
    plan = Plan(
        trainer=trainer,
        space=space,
        flags=flags,
        sampler=sampler,
        num_settings=num_settings,
        sampler_seed=sampler_seed,
        measure=measure,
    )
    processes = validation.check_positive_integer("processes", processes)
    if ray_address is not None:
        ray_address = validation.check_path("ray_address", ray_address)
    retries = validation.check_integer("retries", retries, 0)
    table_format = validation.check_choice(
        "table_format", table_format, ("csv", "parquet")
    )
    if report_seeds is not None:
        report_seeds = validation.check_positive_integer(
            "report_seeds", report_seeds, 10**6
        )
    resume = validation.check_boolean("resume", resume)
    if log_dir is None:
        if resume:
            raise ValueError(
                "--resume needs the folder of the sweep. Give it by --log_dir."
            )
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        log_dir = os.path.join("logs", "sweeps", f"{plan.name}-{now}")
    log_dir = os.path.abspath(validation.check_path("log_dir", log_dir))
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminal.lasting_output())
        caught = stack.enter_context(catch_signals(raises=False))
        return run_plan(
            plan,
            log_dir,
            lambda: _open_executor(
                plan.trainer, processes, ray_address, caught
            ),
            caught,
            retries,
            table_format,
            report_seeds,
            resume,
            f"the same command with --resume --log_dir={log_dir}",
        )


def run_plan(
    plan,
    log_dir,
    open_executor,
    caught,
    retries=3,
    table_format="csv",
    report_seeds=None,
    resume=True,
    to_resume="the same command",
):
    """Does a sweep.

    Args:
        plan: `Plan`.
        log_dir: String, the folder.
        open_executor: Function that returns a context with an executor. It is
            called after the folder is known to be right.
        caught: `Interruption`.
        retries: See `sweep`, as the next ones.
        table_format: String.
        report_seeds: Integer or `None`.
        resume: Boolean.
        to_resume: String, what resumes it after a signal.

    Returns:
        List of dicts, the rows of the table.
    """
    with contextlib.ExitStack() as stack:
        log = SweepLog(log_dir, plan, table_format, resume)
        stack.callback(log.close)
        driver = _Driver(plan, log, retries, caught)
        try:
            with open_executor() as executor:
                driver.check(executor)
                log.begin()
                driver.train(executor)
                if report_seeds is not None:
                    driver.report(executor, report_seeds)
        except Interrupted:
            pass  # `end` tells of it, and ends the process.
        driver.end(to_resume)
    return log.table.rows


def check_flags(trainer, arguments, executor, caught, retries=3):
    """Has a trainer check flags, until a signal asks for the end.

    Args:
        trainer: String, the trainer's file.
        arguments: List of lists of flags.
        executor: Executor of the trainer.
        caught: `Interruption`.
        retries: Integer, how often it is tried again if the worker dies.
            Defaults to `3`.

    Returns:
        The first that it refuses, its index and the error; `None` if there is
        none.

    Raises:
        Interrupted: After a signal.
        ValueError: If the trainer cannot be run.
    """
    for attempt in range(retries + 1):
        future = executor.check(arguments)
        _wait([future], executor, caught)
        try:
            return future.result()
        except WorkerDied as error:
            if attempt == retries:
                raise ValueError(
                    f"{trainer} cannot be run, and nothing was trained: {error}"
                ) from error


@contextlib.contextmanager
def open_executors(trainers, processes, ray_address, caught):
    """A context with executors, which share a connection to a cluster.

    Args:
        trainers: List of strings, the trainers' files.
        processes: Integer, where there is no cluster.
        ray_address: String or `None`, see `sweep`.
        caught: `Interruption`, after which jobs have time to end in order.

    Returns:
        List of executors, one for each trainer.
    """
    with contextlib.ExitStack() as stack:
        ray = None
        if ray_address is not None:
            ray = stack.enter_context(connected_ray(ray_address))
        yield [
            stack.enter_context(_executor(trainer, processes, ray, caught))
            for trainer in trainers
        ]


@contextlib.contextmanager
def _open_executor(trainer, *arguments):
    with open_executors([trainer], *arguments) as [executor]:
        yield executor


@contextlib.contextmanager
def _executor(trainer, processes, ray, caught):
    if ray is None:
        executor = LocalProcesses(trainer, processes)
    else:
        executor = RayCluster(trainer, ray)
    try:
        yield executor
    except BaseException:
        executor.close(at_once=caught.signal is None)
        raise
    executor.close()


class _Driver:
    """Has the runs of a sweep done, and keeps count.

    Args:
        plan: `Plan`.
        log: `SweepLog`.
        retries: Integer.
        caught: `Interruption`.
    """

    def __init__(self, plan, log, retries, caught: Interruption):
        self._plan = plan
        self._log = log
        self._retries = retries
        self._caught = caught
        self._failures = []
        self._settings = []
        self._proposals = Proposals(log.path, plan.space)
        self._num_reports = 0

    def check(self, executor):
        """Has the trainer check all settings that are known already.

        Raises:
            ValueError: If it refuses one.
        """
        checked = self._plan.to_check()
        arguments = [
            jobs.arguments_of(self._plan.flags, setting) for setting in checked
        ]
        print(f"Checking {len(checked)} settings of {self._plan.trainer}")
        refused = check_flags(
            self._plan.trainer,
            arguments,
            executor,
            self._caught,
            self._retries,
        )
        if refused is not None:
            index, error = refused
            raise ValueError(
                f"{self._plan.trainer} refuses a setting of the sweep, and "
                f"nothing was trained. {error}\nIt is the setting "
                f"{_as_flags(checked[index])}"
            )

    def train(self, executor):
        """Does all runs that are not in the table."""
        with self._log.progress(self._plan.most_settings) as progress:
            while True:
                settings = self._plan.next_settings(
                    self._settings,
                    self._log.table.rows,
                    self._proposals.settings,
                )
                if not settings:
                    return
                first = len(self._settings)
                self._settings += settings
                if self._plan.is_proposed:
                    self._proposals.keep(self._settings)
                found = [
                    self._plan.job(first + index, setting, self._log.path)
                    for index, setting in enumerate(settings)
                ]
                waiting = self._plan.side_by_side(
                    found, executor.at_a_time, self._log.table.has
                )
                num_waiting = sum(len(each.jobs) for each in waiting)
                progress.found(len(found) - num_waiting)
                self._do(executor, waiting, progress, self._log.add)

    def report(self, executor, num_seeds):
        """Trains the best setting of each method on seeds of their own."""
        rows = self._log.table.rows
        if not rows:
            return
        found = self._plan.report_jobs(rows, num_seeds, self._log.path)
        self._num_reports = len(found)
        table = self._log.report
        # A sweep that has grown may have found others.
        table.keep(found)
        waiting = [job for job in found if not table.has(job)]
        with self._log.progress(len(found)) as progress:
            progress.found(len(found) - len(waiting))
            self._do(
                executor,
                waiting,
                progress,
                lambda job, rows: table.add(rows),
            )

    def end(self, to_resume):
        """Prints what there is to say; ends the process unless all is done."""
        done = len({row["run"] for row in self._log.table.rows})
        self._log.print_results()
        if self._caught.signal is not None:
            exit_status.end(
                f"Interrupted by {self._caught.signal.name} after {done} runs. "
                f"To resume the sweep: {to_resume}",
                exit_status.INTERRUPTED + self._caught.signal,
            )
        if self._failures:
            total = len(self._settings) + self._num_reports
            exit_status.end(
                f"{len(self._failures)} of {total} runs failed, see "
                f"{self._log.failures_path}. The first one: "
                f"{self._failures[0]}",
                exit_status.FAILED,
            )

    def _do(self, executor, waiting, progress, keep):
        attempts = collections.Counter()
        running = {executor.submit(job): job for job in waiting}
        while running:
            done = _wait(list(running), executor, self._caught)
            for future in done:
                job = running.pop(future)
                attempts[job.run] += 1
                try:
                    outcome = future.result()
                except ValueError:
                    raise  # The trainer is none, or its results are damaged.
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    reason = reason or repr(error)
                else:
                    if outcome.status == 0:
                        keep(job, outcome.rows)
                        for each in job.jobs:
                            rows = [
                                row
                                for row in outcome.rows
                                if row["run"] == each.run
                            ]
                            progress.done(self._log.result(rows))
                        continue
                    sent = _signal_of(outcome.status)
                    if sent is None:
                        del attempts[job.run]
                        again = self._fail(job, _reason(outcome), progress)
                        running |= {executor.submit(j): j for j in again}
                        continue
                    reason = f"something sent it {sent.name}"
                if attempts[job.run] <= self._retries:
                    print(f"{_title(job)}: {reason}. It is tried again.")
                    running[executor.submit(job)] = job
                else:
                    reason = f"{reason}, {attempts.pop(job.run)} times"
                    again = self._fail(job, reason, progress)
                    running |= {executor.submit(j): j for j in again}

    def _fail(self, job, message, progress):
        """Keeps why a job has failed; returns what is to be done instead."""
        if len(job.jobs) > 1:
            print(
                f"Runs {job.run} to {job.jobs[-1].run} cannot be trained side "
                f"by side: {message}\nThey are trained one after another."
            )
            return job.jobs
        self._failures.append(message)
        self._log.add_failure(job, message)
        print(f"{_title(job)} failed: {message}")
        progress.done("failed")
        return []


def _wait(futures, executor, caught):
    """The futures that are done; raises `Interrupted` after a signal."""
    while True:
        done, _ = concurrent.futures.wait(
            futures,
            _SECONDS_BETWEEN_LOOKS,
            concurrent.futures.FIRST_COMPLETED,
        )
        if caught.signal is not None:
            executor.stop()
            raise Interrupted
        if done:
            return done


def _signal_of(status):
    """The signal that an exit status tells of; `None` if it is no signal's."""
    with contextlib.suppress(ValueError):
        return signal.Signals(status - exit_status.INTERRUPTED)
    return None


def _reason(outcome):
    """Why a run has failed: a number says nothing on its own."""
    if outcome.message in ("", str(outcome.status)):
        return f"exit status {outcome.status}"
    return outcome.message


def _title(job):
    """The name of a job at the beginning of a sentence."""
    return job.name[0].upper() + job.name[1:]


def _as_flags(setting):
    return " ".join(f"--{name}={value}" for name, value in setting.items())
