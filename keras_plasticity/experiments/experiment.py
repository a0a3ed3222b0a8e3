"""Trains methods on a stream and reports the results."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

from keras_plasticity import training
from keras_plasticity import validation
from keras_plasticity.experiments import device
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import method_file
from keras_plasticity.experiments import method_run
from keras_plasticity.experiments import report
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import run_settings
from keras_plasticity.experiments import side_by_side
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments import trackers
from keras_plasticity.experiments.methods import Method
from keras_plasticity.experiments.methods import check_flag_values
from keras_plasticity.experiments.methods import check_parts
from keras_plasticity.experiments.methods import choose_methods
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part
from keras_plasticity.experiments.problem import Problem
from keras_plasticity.experiments.unwritten import Unwritten
from keras_plasticity.training.interruption import catch_signals


def run(
    flag_values: flags.FlagValues,
    problem: Problem,
    build_model: Callable[[Method, int], keras.Model],
    build_stream: Callable[[int], Any],
    num_tasks: int,
    batch_size: int = 1,
    epochs: int = 1,
    task_callbacks: Sequence[training.TaskCallback] = (),
    parts: Sequence[Part] = PARTS,
) -> dict[str, Any]:
    """Trains all methods that the flags ask for, and reports on them.

    It sets the device and the precision of the process (`configure_backend`),
    keeps checkpoints, writes TensorBoard logs, `summary.json` and a figure to
    `--log_dir`, and prints progress and tables.

    Args:
        flag_values: The parsed `absl.flags.FlagValues`, in which the trainer
            defined its own flags and called `define_flags`.
        problem: `Problem`.
        build_model: Function of a `Method` and a seed that returns a compiled
            Keras model.
        build_stream: Function of a seed that returns a stream.
        num_tasks: Integer.
        batch_size: Integer. Defaults to `1`.
        epochs: Integer. Defaults to `1`.
        task_callbacks: Sequence of `training.TaskCallback`s that the problem
            needs. Defaults to `()`.
        parts: Sequence of all `Part`s, those of `define_flags`. Defaults to
            `PARTS`.

    Returns:
        Dict, the content of `summary.json`; empty with `--dry_run`.

    Raises:
        SystemExit: With a message, which was printed, as its argument and the
            exit status as its `code`: 2 if flags contradict each other or the
            folder's run; 1 if a learner diverges, or if something could not be
            written; 128 and the signal's number after Ctrl-C, SIGTERM or
            SIGHUP. What was finished is written first.

    Example:

    ```python
    experiments.run(
        flags.FLAGS,
        problem,
        build_model,
        lambda seed: streams.SlowlyChangingRegression(seed=seed),
        num_tasks=100,
    )
    ```
    """
    check_flag_values(flag_values, defined=("method",))
    check_parts(parts)
    parts = method_file.known(parts)
    validation.check_type("problem", problem, Problem, "a `Problem`")
    validation.check_function("build_model", build_model)
    validation.check_function("build_stream", build_stream)
    num_tasks = validation.check_positive_integer("num_tasks", num_tasks)
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    epochs = validation.check_positive_integer("epochs", epochs)
    task_callbacks = validation.check_list(
        "task_callbacks",
        task_callbacks,
        training.TaskCallback,
        "a list of `keras_plasticity.training.TaskCallback`s",
    )
    # Before an optimizer makes its first variable.
    used_device = device.configure_backend(flag_values, problem, batch_size)
    try:
        # Of each setting the methods; most runs have one setting.
        variants = [
            choose_methods(each, problem.defaults, problem.methods, parts)
            for each in side_by_side.read(flag_values, parts)
        ]
        all_methods = [method for chosen in variants for method in chosen]
        run_settings.check_batch_size(
            all_methods, batch_size, problem.examples_per_task
        )
        for method in all_methods:
            # What does not fit together is said now, not by a later method.
            method.optimizer(flag_values.seed, "he_uniform")
    except ValueError as error:
        exit_status.end(str(error), exit_status.WRONG_FLAGS)
    try:
        figures.check_matplotlib()
        trackers.check(flag_values.tracker)
    except ImportError as error:
        exit_status.end(str(error), exit_status.FAILED)
    if flag_values.dry_run:
        return {}
    chosen = variants[0]
    settings = run_settings.settings_of(flag_values, problem, chosen)
    with terminal.lasting_output(), catch_signals(raises=False) as caught:
        try:
            folder = run_folder.open_folder(
                flag_values.log_dir,
                problem.name,
                f"{'+'.join(method.name for method in chosen)}-"
                f"seed{flag_values.seed}",
                run_settings.all_that_matters(settings, variants, parts),
                problem.may_grow,
                flag_values.resume,
                flag_values.overwrite,
            )
        except (FileExistsError, ValueError) as error:
            exit_status.end(str(error), exit_status.WRONG_FLAGS)
        with contextlib.closing(folder):
            terminal.print_start(
                problem.title,
                used_device,
                settings | {"log_dir": folder.path},
            )
            if flag_values.resume and not folder.is_resumed:
                print(
                    f"There is no run to resume in {folder.path}: starting a "
                    "new one."
                )
            plan = method_run.Plan(
                problem=problem,
                build_model=build_model,
                build_stream=build_stream,
                num_tasks=num_tasks,
                batch_size=batch_size,
                epochs=epochs,
                task_callbacks=task_callbacks,
                settings=settings,
                seeds=[
                    flag_values.seed + i
                    for i in range(settings["num_learners"])
                ],
                on_nan=flag_values.on_nan,
                folder=folder,
                unwritten=Unwritten(),
                caught=caught,
            )
            records = _train_all(plan, variants)
            summary = _report(plan, chosen, records, used_device)
            _end(plan, records)
    return summary


def _train_all(plan, variants):
    """Trains one method after the other; returns their records."""
    records = []
    num_methods = len(variants[0])
    for number in range(num_methods):
        records += method_run.train(plan, [each[number] for each in variants])
        # Not to be compiled before it sees that it has to stop.
        is_last = number == num_methods - 1
        is_over = plan.caught.signal is not None and not is_last
        if is_over or records[-1]["interrupted"]:
            records[-1]["interrupted"] = True
            break
        # A method that fails, as its loss diverges, does not end the others.
    return records


def _report(plan, chosen, records, used_device):
    """Writes and prints what was measured; returns the summary."""
    problem, folder = plan.problem, plan.folder
    # With one method, whatever there is to say is about it.
    about_all = dict(records[0]) if len(records) == 1 else {}
    about_all.pop("settings", None)
    summary = summary_file.make_summary(
        plan.settings,
        **about_all,
        device_choice=used_device,
        problem=problem.name,
        title=report.title(problem, chosen, len(plan.seeds)),
        metric={
            "name": problem.metric,
            "label": problem.metric_label,
            "lower_is_better": problem.lower_is_better,
            "scale": problem.scale,
            "format": problem.format,
        },
        x_axis={"label": problem.x_label, "per_task": problem.x_per_task},
        tasks_per_bin=problem.tasks_per_bin,
        runs=records,
    )
    _write_summary(plan, summary)
    if "side_by_side" in records[0]:
        print(f"Results of all settings: {folder.path}/{run_folder.SUMMARY}")
        return summary
    report.report(problem, summary, folder.path, plan.unwritten)
    # A figure takes a while, in which somebody may remove the folder.
    _write_summary(plan, summary)
    return summary


def _write_summary(plan, summary):
    path = os.path.join(plan.folder.path, run_folder.SUMMARY)
    with plan.unwritten.attempt(path):
        plan.folder.keep()
        run_folder.write_json(path, summary)


def _end(plan, records):
    """Ends the process, with the reason, unless all is done and written."""
    last = records[-1]
    reasons = plan.unwritten.reasons
    if reasons:
        print(plan.unwritten, file=sys.stderr)
    # Settings that were trained side by side failed together.
    failures = dict.fromkeys(
        record["failure"] for record in records if record["failure"]
    )
    if failures and not last["interrupted"]:
        exit_status.end("\n".join(failures), exit_status.FAILED)
    if last["interrupted"]:
        for failure in failures:
            print(failure, file=sys.stderr)
        number = plan.caught.signal or signal.SIGINT
        message = (
            f"Interrupted by {signal.Signals(number).name} in "
            f"{last['method']}, after {len(last['per_task'])} of "
            f"{plan.num_tasks} tasks."
        )
        if any("checkpoint" in what for what in reasons):
            exit_status.end(
                f"{message} The checkpoint could not be written: what was done "
                "since the one before it is lost.",
                exit_status.FAILED,
            )
        command = run_settings.command_to_resume(plan.folder.path)
        exit_status.end(
            f"{message} To resume: {command}",
            exit_status.INTERRUPTED + number,
        )
    if reasons:
        exit_status.end(
            "All tasks are done, but not all of it could be written.",
            exit_status.FAILED,
        )
